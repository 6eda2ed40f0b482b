"""META_ARCH Phoenix: what it returns, what it trains, and which noise it sees."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from phoenix_d2.modeling.build import amp_dtype
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.structures import PerturbationOutcome


@pytest.fixture
def build(cfg):
    def build_phoenix(*overrides):
        cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return build_model(cfg).train()

    return build_phoenix


def losses_at(model, batch, iteration=0):
    with EventStorage(iteration) as storage:
        losses = model(batch)
    return losses, {name: value for name, (value, _) in storage.latest().items()}


def with_coarse_masks(batch):
    """The batch with the targets themselves as a model's masks: nothing is wrong with the noise."""
    for inputs in batch:
        inputs["instances"].coarse_masks = BitMasks(inputs["instances"].gt_masks.tensor.clone())
    return batch


def assert_gradients_reach_what_is_trained(model, losses):
    sum(losses.values()).backward()
    wrong = [name for name, p in model.named_parameters() if (p.grad is not None) != p.requires_grad]
    assert not wrong
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_training_returns_finite_scalar_losses_alone(build, training_batch):
    losses, _ = losses_at(build(), training_batch)
    assert set(losses) == {
        "loss_focal",
        "loss_dice",
        "loss_iou",
        "loss_cmrl_intra",
        "loss_cmrl_inter",
        "loss_cmrl_self",
    }
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    "trainable", [("mask_decoder",), ("image_encoder", "prompt_encoder", "mask_decoder")], ids=["decoder", "all"]
)
@pytest.mark.parametrize("drop_prob", [0.0, 1.0])
def test_every_trainable_parameter_gets_a_gradient_and_no_other(build, training_batch, trainable, drop_prob, device):
    model = build(
        *("MODEL.PHOENIX.TRAINABLE", trainable, "MODEL.PHOENIX.PROMPT.DROP_PROB", drop_prob),
        *("MODEL.DEVICE", device),
    )
    losses, _ = losses_at(model, training_batch)
    assert_gradients_reach_what_is_trained(model, losses)
    encoder = model.refiner.image_encoder
    assert all(p.grad is None for p in encoder.backbone.parameters())
    assert all((p.grad is not None) == ("image_encoder" in trainable) for p in encoder.neck.parameters())


def test_gradients_when_nothing_is_wrong(build, training_batch):
    model = build()
    losses, diagnostics = losses_at(model, with_coarse_masks(training_batch))
    assert diagnostics["iou_noisy"] == 1
    assert_gradients_reach_what_is_trained(model, losses)


@pytest.mark.parametrize("box_growth", [0.0, 0.5])
def test_gradients_without_a_single_mask(build, training_batch, box_growth, device):
    for inputs in training_batch:
        inputs["instances"] = inputs["instances"][:0]
    model = build("MODEL.DEVICE", device, "MODEL.PHOENIX.PROMPT.BOX_GROWTH", box_growth)
    losses, diagnostics = losses_at(model, training_batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not any(math.isnan(value) for value in diagnostics.values())
    assert_gradients_reach_what_is_trained(model, losses)


def test_without_cmrl_there_is_neither_its_loss_nor_its_projector(build, training_batch):
    model = build("MODEL.PHOENIX.CMRL.WEIGHT", 0.0)
    losses, diagnostics = losses_at(model, training_batch)
    assert set(losses) == {"loss_focal", "loss_dice", "loss_iou"}
    assert not list(model.criterion.parameters())
    assert "region_true_fg" in diagnostics


@pytest.mark.parametrize("part", ["decoder", "image_encoder,"])
def test_unknown_trainable_part(build, part):
    with pytest.raises(ValueError, match=r"TRAINABLE.*mask_decoder"):
        build("MODEL.PHOENIX.TRAINABLE", (part,))


def test_unknown_dense_prompt(build):
    with pytest.raises(ValueError, match="'both'"):
        build("MODEL.PHOENIX.PERTURBATION.DENSE_PROMPT", "both")


def test_unknown_arithmetic(build):
    with pytest.raises(ValueError, match=r"MODEL\.PHOENIX\.AMP_DTYPE is 'half'.*bfloat16, float16"):
        build("MODEL.PHOENIX.AMP_DTYPE", "half")


def test_a_cascade_of_no_depth(build):
    with pytest.raises(ValueError, match="cascade_depth is 0"):
        build("MODEL.PHOENIX.CASCADE.MAX_DEPTH", 0)


def test_unknown_encoder(build):
    with pytest.raises(ValueError, match="'vit_x'"):
        build("MODEL.PHOENIX.ENCODER.NAME", "vit_x")


@pytest.mark.parametrize("dense_prompt", ["none", "target"])
def test_adversarial_noise(build, training_batch, dense_prompt):
    overrides = ("MODEL.PHOENIX.PERTURBATION.MIN_IOU", 0.0, "MODEL.PHOENIX.PERTURBATION.DENSE_PROMPT", dense_prompt)
    _, diagnostics = losses_at(build(*overrides), training_batch)
    assert diagnostics["noise_morphological"] == diagnostics["noise_from_model"] == 0


def test_morphological_noise(build, training_batch):
    _, diagnostics = losses_at(build("MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB", 1.0), training_batch)
    assert diagnostics["noise_morphological"] == 1
    assert diagnostics["noise_steps"] == 0
    assert 0.3 <= diagnostics["noise_iou"] < 1


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_noise_of_a_model(build, training_batch, probability):
    model = build("MODEL.PHOENIX.PERTURBATION.MODEL_NOISE_PROB", probability)
    _, diagnostics = losses_at(model, with_coarse_masks(training_batch))
    assert diagnostics["noise_from_model"] == probability


def test_a_mask_that_the_model_missed_gets_other_noise(build, training_batch):
    with_coarse_masks(training_batch)[0]["instances"].coarse_masks.tensor[0] = False
    _, diagnostics = losses_at(build(), training_batch)
    assert diagnostics["noise_from_model"] == pytest.approx(2 / 3)


def test_perturbing_leaves_gradients_alone(build, training_batch):
    # a band below what the untrained decoder reaches, so that there are steps to make
    model = build("MODEL.PHOENIX.PERTURBATION.IOU_RANGE", (0.05, 0.05))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    with EventStorage():
        noise = model.perturb(model.load_batch(training_batch), model.generator())
    assert noise.num_steps.max() > 0
    assert all((p.grad == 7).all() for p in model.parameters())


def test_noise_does_not_reach_into_the_padding(build, training_batch):
    model = build()
    with EventStorage():
        batch = model.load_batch(training_batch)
        noise = model.perturb(batch, model.generator())
    # 80 of 128 rows hold image: 20 of 32 at low resolution
    assert batch.valid[0].any(1).tolist() == [True] * 20 + [False] * 12
    assert not (noise.masks & ~batch.valid).any()


@pytest.mark.parametrize(("iteration", "replaced"), [(0, False), (6, True)])
def test_cascade_replaces_noise_by_what_the_refiner_makes_of_it(build, training_batch, iteration, replaced):
    model = build("MODEL.PHOENIX.CASCADE.MAX_PROB", 1.0, "MODEL.PHOENIX.CASCADE.MAX_DEPTH", 1)
    with EventStorage(iteration), torch.no_grad():
        batch = model.load_batch(training_batch)
        noisy = model.perturb(batch, model.generator()).masks
        result = model._run_cascade(batch, noisy, model.generator())
        prompts = model.refiner.prompter(noisy.float(), stride=model.refiner.stride)
        refined = model.refiner.decode_best(batch.embeddings, prompts).low_res_logits[:, 0] > 0
    expected = refined & batch.valid if replaced else noisy
    assert torch.equal(result, expected)


def test_a_mask_that_the_cascade_would_erase_stays(build, training_batch):
    model = build("MODEL.PHOENIX.CASCADE.MAX_PROB", 1.0)
    decode = model.refiner.decode_best

    def decode_nothing(*args):
        prediction = decode(*args)
        prediction.low_res_logits.fill_(-1)
        return prediction

    model.refiner.decode_best = decode_nothing
    with EventStorage(6):
        batch = model.load_batch(training_batch)
        assert torch.equal(model._run_cascade(batch, batch.masks, model.generator()), batch.masks)


def test_prompts_are_derived_as_in_use(build, training_batch):
    """Boxes grow into the image alone, in the attack, the cascade and the pass that is trained."""
    model = build("MODEL.PHOENIX.PROMPT.BOX_GROWTH", 0.5, "MODEL.PHOENIX.CASCADE.MAX_PROB", 1.0)
    prompter, seen = model.refiner.prompter, []

    def spy(soft_masks, *, image_embeddings, valid, **stride):
        seen.append((len(soft_masks), image_embeddings.shape, valid.flatten(1).sum(1).tolist()))
        return prompter(soft_masks, image_embeddings=image_embeddings, valid=valid, **stride)

    model.refiner.prompter = spy
    losses, _ = losses_at(model, training_batch, 6)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(seen) > 2
    assert all(shape == (n, 256, 8, 8) and len(valid) == n for n, shape, valid in seen)
    # 80 of 128 rows of the first image
    assert seen[0][2] == seen[-1][2] == [20 * 32, 20 * 32, 32 * 32]


def test_same_seed_same_losses_and_another_iteration_others(build, training_batch):
    model = build()
    first, again, later = (losses_at(model, training_batch, i)[0] for i in (0, 0, 1))
    assert first == again
    assert first != later


def test_diagnostics_reach_the_storage(build, training_batch):
    _, diagnostics = losses_at(build(), training_batch)
    outcomes = [outcome.name.lower() for outcome in PerturbationOutcome]
    regions = ("true_fg", "true_bg", "success_fg", "success_bg", "failure_fg", "failure_bg")
    assert set(diagnostics) == {
        *("iou_noisy", "iou_refined", "iou_gain", "noise_iou", "noise_steps"),
        *(f"noise_{name}" for name in outcomes),
        *(f"region_{name}" for name in regions),
    }
    assert sum(diagnostics[f"noise_{name}"] for name in outcomes) == pytest.approx(1)
    assert sum(diagnostics[f"region_{name}"] for name in regions) <= 1 + 1e-6
    assert diagnostics["iou_gain"] == pytest.approx(diagnostics["iou_refined"] - diagnostics["iou_noisy"], abs=1e-6)


def test_the_panel_shows_the_first_image_that_has_a_mask(build, training_batch):
    training_batch[0]["instances"] = training_batch[0]["instances"][:0]
    model = build()
    losses_at(model, training_batch)
    assert set(model.latest_panel) == {"image", "target", "noisy", "refined"}
    assert torch.equal(model.latest_panel["image"], training_batch[1]["image"])
    assert (model.latest_panel["target"] > 0).nonzero().amin(0).tolist() == [30 // 4, 20 // 4]


def test_mixed_precision_trains(build, training_batch):
    model = build("SOLVER.AMP.ENABLED", True)
    losses, _ = losses_at(model, training_batch)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert_gradients_reach_what_is_trained(model, losses)


def test_gradients_of_scaled_losses_in_float16(build, training_batch):
    """They are about those of float32, once they are scaled back."""
    overrides = (*("MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB", 1.0), *("MODEL.PHOENIX.CASCADE.MAX_PROB", 0.0))
    gradients = []
    for amp in (False, True):
        model = build(*overrides, "SOLVER.AMP.ENABLED", amp, "MODEL.PHOENIX.AMP_DTYPE", "float16")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=amp)
        losses, _ = losses_at(model, training_batch)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        scaler.scale(sum(losses.values())).backward()
        scaler.unscale_(optimizer)
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize(("capability", "known"), [((8, 0), ("bfloat16", "float16")), ((7, 5), ("float16",))])
def test_arithmetic_that_a_gpu_only_emulates_is_refused(cfg, monkeypatch, capability, known):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    cfg.MODEL.DEVICE = "cuda"
    cfg.SOLVER.AMP.ENABLED = True
    for name in ("bfloat16", "float16"):
        cfg.MODEL.PHOENIX.AMP_DTYPE = name
        if name in known:
            assert amp_dtype(cfg) == getattr(torch, name)
        else:
            with pytest.raises(ValueError, match=r"AMP_DTYPE is 'bfloat16'.*set it to 'float16'"):
                amp_dtype(cfg)
    cfg.MODEL.PHOENIX.AMP_DTYPE, cfg.SOLVER.AMP.ENABLED = "bfloat16", False
    assert amp_dtype(cfg) is None


def test_config_reaches_the_parts(build):
    model = build(
        *("MODEL.PHOENIX.PERTURBATION.STEP_SIZE", 0.02, "MODEL.PHOENIX.CMRL.TEMPERATURE", 0.2),
        *("MODEL.PHOENIX.PROMPT.BOX", False, "MODEL.REFINER.CHUNK_SIZE", 3),
    )
    assert isinstance(model.noise_sampler, NoiseSampler) and model.noise_sampler.step_size == 0.02
    assert model.criterion.temperature == 0.2
    assert not model.refiner.prompter.box
    assert model.refiner.options.chunk_size == 3


def test_evaluation_keeps_the_fields_of_the_coarse_instances(build, training_batch):
    masks = training_batch[0]["instances"].gt_masks.tensor
    scores, classes = torch.tensor([0.25, 0.75]), torch.tensor([3, 1])
    coarse = Instances((80, 128), pred_masks=masks, scores=scores, pred_classes=classes)
    inputs = {"image": training_batch[0]["image"], "coarse_instances": coarse}
    (output,) = build().eval()([inputs])
    refined = output["instances"]
    assert set(refined.get_fields()) == {"pred_masks", "scores", "pred_classes"}
    assert refined.pred_masks.shape == masks.shape and refined.pred_masks.dtype == torch.bool
    assert torch.equal(refined.scores, scores) and torch.equal(refined.pred_classes, classes)
