"""Attacks on the masks of images and annotation files, by a refiner of random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from phoenix_d2.data.mask_json import check_results, decode_segmentation
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.perturb import Attack, adversarial_alone, perturb_image_masks, perturb_tasks
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.structures import PerturbationOutcome

SAMPLER = NoiseSampler(num_embeddings=2, max_steps=2, max_decays=1, step_size=0.5)


@pytest.fixture
def network(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test", options=RefineOptions(chunk_size=2)).eval()


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def masks():
    """A large one, one that only a zoom can see, another large one, none."""
    masks = torch.zeros(4, 96, 128, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, [(10, 10, 90, 80), (60, 40, 68, 48), (20, 8, 60, 90)], strict=False):
        mask[y0:y1, x0:x1] = True
    return masks


def perturb(network, image, masks, sampler, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return perturb_image_masks(network, image, masks, sampler=sampler, dense_prompt="target", generator=generator)


def test_masks_come_back_from_their_frames(network, image, masks):
    # "noise" that leaves every mask as it is
    noisy, result = perturb(network, image, masks, replace(SAMPLER, iou_range=(1.0, 1.0), morphology_prob=1.0))
    assert (mask_iou(noisy, masks)[:3] > 0.9).all() and (result.iou == 1).all()
    assert result.masks.shape == (4, network.low_res_size, network.low_res_size)
    # in its zoomed window the small mask is as large as others are
    assert result.masks[1].sum() > 100


def test_noise_is_as_strong_as_asked(network, image, masks):
    noisy, result = perturb(network, image, masks, replace(SAMPLER, iou_range=(0.6, 0.6), morphology_prob=1.0))
    assert ((result.iou[:3] >= 0.6) & (result.iou[:3] < 0.7)).all()
    assert ((mask_iou(noisy, masks)[:3] - result.iou[:3]).abs() < 0.1).all()


def test_every_mask_is_attacked_but_the_empty_one(network, image, masks):
    noisy, result = perturb(network, image, masks, replace(SAMPLER, min_iou=0.0))
    assert (result.outcome < PerturbationOutcome.MORPHOLOGICAL).all()
    assert noisy[:3].flatten(1).any(1).all() and not (noisy == masks)[:3].flatten(1).all(1).any()
    assert not noisy[3].any() and result.iou[3] == 1
    assert result.outcome[3] == PerturbationOutcome.EXHAUSTED_ABOVE
    again, _ = perturb(network, image, masks, replace(SAMPLER, min_iou=0.0))
    assert torch.equal(noisy, again)
    other, _ = perturb(network, image, masks, replace(SAMPLER, min_iou=0.0), seed=1)
    assert not torch.equal(noisy, other)


def test_no_masks(network, image):
    noisy, result = perturb(network, image, torch.zeros(0, 96, 128, dtype=torch.bool), SAMPLER)
    assert len(noisy) == len(result.masks) == 0


def test_adversarial_alone():
    mixed = NoiseSampler(morphology_prob=0.5, shapeless_prob=0.2)
    alone = adversarial_alone(mixed, min_iou=0.3)
    assert alone.adversarial_prob == 1 and alone.min_iou == 0.3
    assert adversarial_alone(mixed, morphology_prob=1.0).adversarial_prob == 0


def test_annotations_become_results_that_name_them(network, dataset):
    tasks = plan_job(dataset.path, image_folder=dataset.folder).tasks
    attack = Attack(PhoenixRefiner(network), replace(SAMPLER, guides=("expansion",)), "none")
    records, outcomes = perturb_tasks(attack, tasks, strength=1.0)
    check_results(records, source="test", annotations=dataset.data)
    # in the order of the file, and without the crowd
    assert [record["gt_id"] for record in records] == [10, 11, 12, 13, 14] and len(outcomes) == 5
    size = (dataset.data["images"][0]["height"], dataset.data["images"][0]["width"])
    targets = [decode_segmentation(a["segmentation"], *size) for a in dataset.data["annotations"]]
    noisy = [decode_segmentation(record["segmentation"], *size) for record in records]
    assert [mask.any() for mask in noisy] == [target.any() for target in targets[:5]]
    assert not np.array_equal(noisy[0], targets[0])
    # what is drawn for an image does not hang on others
    alone, _ = perturb_tasks(attack, tasks[1:], strength=1.0)
    assert alone == [record for record in records if record["image_id"] == 2]
    assert perturb_tasks(attack, tasks, strength=1.0, seed=1)[0] != records
    # whichever guides the sampler has: training may need some alone, evaluation all
    assert perturb_tasks(replace(attack, sampler=SAMPLER), tasks, strength=1.0)[0] == records


def test_a_strength_out_of_range(network):
    with pytest.raises(ValueError, match=r"1\.5.*0 to 1"):
        perturb_tasks(Attack(PhoenixRefiner(network), SAMPLER, "none"), [], strength=1.5)


def test_the_whole_image_is_encoded_once(network, image, masks, monkeypatch):
    encoded, encode = [], network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda images: encoded.append(len(images)) or encode(images))
    many, known = masks[0].expand(20, -1, -1), {}
    generator = torch.Generator().manual_seed(0)
    arguments = {"sampler": SAMPLER, "dense_prompt": "target", "generator": generator, "known": known}
    perturb_image_masks(network, image, many, **arguments)
    perturb_image_masks(network, image, many, **arguments)
    assert encoded == [1] and len(known) == 1
    # noise that attacks nothing needs no embedding, and those of windows are not kept
    perturb(network, image, masks[1:2], replace(SAMPLER, morphology_prob=1.0))
    assert encoded == [1]
    perturb_image_masks(network, image, masks[1:2], **arguments)
    assert encoded == [1, 1] and len(known) == 1
