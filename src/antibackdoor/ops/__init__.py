"""Pure tensor functions: no disk, no device choice, no clock."""
