"""Checkpoints: what is in them, what may be loaded, and what a kill leaves behind."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from detectron2.modeling import build_model

from phoenix_d2.engine.checkpointer import RefinerCheckpointer
from phoenix_d2.sam.checkpoint import METADATA_KEY, save_refiner
from phoenix_d2.sam.encoders import ENCODERS


@pytest.fixture
def build(cfg):
    def build_seeded(seed=0):
        torch.manual_seed(seed)
        return build_model(cfg)

    return build_seeded


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def saved(model, folder, name="model"):
    RefinerCheckpointer(model, str(folder)).save(name, iteration=3)
    return str(folder / f"{name}.pth")


def test_a_checkpoint_has_what_was_trained_and_names_the_rest(build, tmp_path):
    content = torch.load(saved(build(), tmp_path), weights_only=True)
    names = content["model"].keys()
    assert {name.split(".")[0] for name in names} == {"refiner", "criterion"}
    assert any(name.startswith("refiner.image_encoder.neck.") for name in names)
    assert not any(name.startswith("refiner.image_encoder.backbone.") for name in names)
    assert content["iteration"] == 3
    assert content[METADATA_KEY]["encoder"] == "test" and len(content[METADATA_KEY]["encoder_sha256"]) == 64


def test_what_was_saved_comes_back(build, tmp_path):
    model, other = build(0), build(1)
    path = saved(model, tmp_path)
    assert not same_weights(model, other)
    rest = RefinerCheckpointer(other).load(path)
    assert rest["iteration"] == 3
    assert same_weights(model, other)


def test_a_published_refiner_starts_a_run(build, tmp_path):
    model, other = build(0), build(1)
    path = tmp_path / "refiner.safetensors"
    save_refiner(model.refiner, path, dtype=torch.float32)
    RefinerCheckpointer(other).load(str(path))
    assert same_weights(model.refiner, other.refiner)


def test_weights_of_the_package_start_a_run_by_name(build, tmp_path, monkeypatch):
    model, other = build(0), build(1)
    save_refiner(model.refiner, tmp_path / "packaged.safetensors", dtype=torch.float32)
    monkeypatch.setattr("phoenix_d2.sam.pretrained.WEIGHTS_DIR", tmp_path)
    RefinerCheckpointer(other).load("packaged")
    assert same_weights(model.refiner, other.refiner)


def test_a_pre_trained_decoder_starts_a_run_though_it_has_no_projector(build, cfg, tmp_path):
    cfg.MODEL.META_ARCHITECTURE = "PromptableDecoder"
    pretrained = build(1)
    path = saved(pretrained, tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "Phoenix"
    model = build(0)
    RefinerCheckpointer(model).load(path)
    assert same_weights(model.refiner, pretrained.refiner)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_of_another_encoder(build, cfg, tmp_path, monkeypatch, kind):
    model = build()
    path = saved(model, tmp_path)
    if kind == "safetensors":
        path = str(tmp_path / "refiner.safetensors")
        save_refiner(model.refiner, path)
    monkeypatch.setitem(ENCODERS, "other", ENCODERS["test"])
    cfg.MODEL.PHOENIX.ENCODER.NAME = "other"
    with pytest.raises(ValueError, match=r"'test'.*'other'.*ENCODER\.NAME test"):
        RefinerCheckpointer(build()).load(path)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_of_other_weights_of_the_encoder(build, tmp_path, kind):
    model = build()
    path = saved(model, tmp_path)
    if kind == "safetensors":
        path = str(tmp_path / "refiner.safetensors")
        save_refiner(model.refiner, path)

    other = build()
    torch.nn.init.zeros_(other.refiner.image_encoder.backbone.weight)
    with pytest.raises(ValueError, match=r"other weights of the encoder 'test'.*ENCODER\.WEIGHTS"):
        RefinerCheckpointer(other).load(path)


def test_a_detectors_checkpoint(build, tmp_path):
    path = tmp_path / "detector.pth"
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(4)}, "iteration": 9}, path)
    with pytest.raises(ValueError, match=r"lacks .* weights of the refiner.*MODEL\.WEIGHTS"):
        RefinerCheckpointer(build()).load(str(path))


def test_weights_of_another_shape(build, tmp_path):
    path = saved(build(), tmp_path)
    content = torch.load(path, weights_only=True)
    content["model"]["refiner.mask_decoder.iou_token.weight"] = torch.zeros(1, 3)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"iou_token"):
        RefinerCheckpointer(build()).load(path)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["model_final.pkl", "model.pth"])
def test_pickles_are_not_executed(build, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with open(name, "wb") as file:
        pickle.dump({"model": Malice()}, file)
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        RefinerCheckpointer(build()).load(name)
    assert not os.path.exists("executed")


def test_a_checkpoint_that_is_cut_short(build, tmp_path):
    path = saved(build(), tmp_path)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=r"model\.pth cannot be read.*cut short"):
        RefinerCheckpointer(build()).load(path)


def test_a_kill_while_saving_leaves_the_checkpoint_before(build, tmp_path, monkeypatch):
    model = build()
    path = saved(model, tmp_path, "first")

    def killed(content, file):
        with open(file, "wb") as half:
            half.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(model, tmp_path, "second")
    monkeypatch.undo()
    other = build(1)
    checkpointer = RefinerCheckpointer(other, str(tmp_path))
    assert checkpointer.get_checkpoint_file() == path
    checkpointer.resume_or_load("", resume=True)
    assert same_weights(model, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pth", "last_checkpoint"]


def test_a_kill_between_checkpoint_and_note_leaves_the_note_before(build, tmp_path, monkeypatch):
    model = build()
    path = saved(model, tmp_path, "first")
    replace = os.replace

    def killed_before_the_note(source, target):
        if str(target).endswith("last_checkpoint"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_before_the_note)
    with pytest.raises(KeyboardInterrupt):
        saved(model, tmp_path, "second")
    assert RefinerCheckpointer(model, str(tmp_path)).get_checkpoint_file() == path


def test_nothing_is_written_without_a_folder(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RefinerCheckpointer(build()).save("model")
    assert not list(tmp_path.iterdir())
