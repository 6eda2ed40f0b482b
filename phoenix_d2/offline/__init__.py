"""Refine the masks of a JSON file: planned and checked whole, done image by image, resumable."""
