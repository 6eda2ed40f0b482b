"""Noise for training: masks as wrong as asked, from targets that are right.

`NoiseSampler` chooses, `perturb_masks` attacks a decoder (paper, Algorithm 1), `morphology` edits pixels, and
`DEGRADATIONS` imitates coarse masks at image resolution for evaluation.
"""

from phoenix_d2.perturbation.adversarial import Decode, perturb_masks
from phoenix_d2.perturbation.criteria import CRITERIA, get_criterion
from phoenix_d2.perturbation.degradations import DEGRADATIONS
from phoenix_d2.perturbation.guidance import Guide, draw_guides, guidance_masks
from phoenix_d2.perturbation.sampler import NoiseSampler

__all__ = [
    "CRITERIA",
    "DEGRADATIONS",
    "Decode",
    "Guide",
    "NoiseSampler",
    "draw_guides",
    "get_criterion",
    "guidance_masks",
    "perturb_masks",
]
