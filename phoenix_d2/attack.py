"""A refiner as the decoder that an attack drives: the one place where perturbation meets SAM.

Shape letters: N masks, A masks whose attack goes on, P perturbation embeddings, s the side of the low-resolution frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.perturbation.adversarial import Decode
from phoenix_d2.refiner import MaskRefiner

DENSE_PROMPTS = ("none", "target")
"""Dense prompts under attack: SAM's embedding of an absent mask, or of the target mask."""


def check_dense_prompt(name: str) -> None:
    """Check a name of `DENSE_PROMPTS`.

    Raises:
        ValueError: it is none.
    """
    if name not in DENSE_PROMPTS:
        known = " or ".join(map(repr, DENSE_PROMPTS))
        raise ValueError(f"Unknown dense prompt under attack {name!r}: expected {known}.")


@torch.no_grad()
def attackable_decoder(
    refiner: MaskRefiner,
    image_embeddings: Tensor,
    coverage: Tensor,
    *,
    valid: Tensor | None = None,
    dense_prompt: str,
) -> Decode:
    """The decoder of a refiner, prompted with the targets themselves and open to perturbation embeddings.

    It decodes in float32, with gradients where the caller enables them; the prompts are made once, without.

    Args:
        refiner: whose decoder is attacked, with its prompts.
        image_embeddings: (N, C, h, w).
        coverage: (N, s, s) float in [0, 1], share of each low-resolution pixel that the target covers.
        valid: (N, s, s) bool, pixels that are image and not padding; all when None.
        dense_prompt: one of `DENSE_PROMPTS`.

    Returns:
        (embeddings (A, P, C), active (A,) long) -> (A, s, s) logits of the single-mask output.

    Raises:
        ValueError: there is no such dense prompt.
    """
    check_dense_prompt(dense_prompt)
    prompts = refiner.derive_prompts(coverage, image_embeddings, valid)
    sparse, dense = refiner.prompt_encoder.encode(prompts)
    if dense_prompt == "none":
        dense = refiner.prompt_encoder.no_mask_embeddings(len(prompts))
    else:
        # a decoder that is handed the target as it is passes it on, whatever the perturbation
        dense = refiner.prompt_encoder.without_mask(dense)

    def decode(perturbation: Tensor, active: Tensor) -> Tensor:
        # the perturbation comes before the visual prompt embeddings (Algorithm 1, line 4)
        tokens = torch.cat([perturbation, sparse[active]], dim=1)
        prediction = refiner.decode_embeddings(image_embeddings[active], tokens, dense[active])
        return prediction.single().low_res_logits[:, 0]

    return decode
