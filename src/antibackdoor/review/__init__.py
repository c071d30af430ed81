"""The page on which a person decides about suspects: images in groups, keys, and a plain file of decisions."""

from __future__ import annotations
