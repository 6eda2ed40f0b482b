"""Noise for training: masks as wrong as asked, from targets that are right.

`NoiseSampler` chooses, `perturb_masks` attacks a decoder (paper, Algorithm 1), `morphology` edits pixels, and
`DEGRADATIONS` imitates coarse masks at image resolution for evaluation.
"""

from phoenix_d2.perturbation.adversarial import perturb_masks
from phoenix_d2.perturbation.degradations import DEGRADATIONS, get_degradation
from phoenix_d2.perturbation.sampler import NoiseSampler

__all__ = ["DEGRADATIONS", "NoiseSampler", "get_degradation", "perturb_masks"]
