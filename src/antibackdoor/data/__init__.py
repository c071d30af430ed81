"""From folders, arrays and named sets to image sets, and from those to batches."""
