"""Masks, frames and boundaries: tensor functions that know no model."""
