"""Prompts for the mask decoder, derived from a coarse mask or given by the user."""

from phoenix_d2.prompting.dropping import drop_visual_prompts
from phoenix_d2.prompting.points import to_sam_coords
from phoenix_d2.prompting.prompter import CoarseMaskPrompter

__all__ = ["CoarseMaskPrompter", "drop_visual_prompts", "to_sam_coords"]
