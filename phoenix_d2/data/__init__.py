"""Datasets, their masks and the way to the model."""
