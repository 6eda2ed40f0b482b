"""What an ablation's file may say, and the shipped ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phoenix_d2.config import load_config
from phoenix_d2.engine import ablation as engine
from phoenix_d2.engine.ablation import Ablation, _with, prepare_inputs, read_ablation
from phoenix_d2.modeling.build import build_noise_sampler
from phoenix_d2.perturbation import get_degradation

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path.name for path in (CONFIGS / "ablations").glob("[a-z]*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write_yaml(text):
        path = tmp_path / "ablation.yaml"
        path.write_text(text)
        return str(path)

    return write_yaml


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ablations_name_what_there_is(name):
    ablation = read_ablation(f"ablations/{name}")
    base = load_config(ablation.base)
    assert len(ablation.variants) * len(ablation.inference) > 1
    for overrides in ablation.variants.values():
        build_noise_sampler(_with(base, ablation.overrides | overrides))
    for kind, strength in ablation.inputs.values():
        get_degradation(kind, strength=strength)


def test_variants_are_all_combinations_the_first_ones_first():
    axes = {"x": {"a": {"X": 1}, "b": {"X": 2}}, "y": {"c": {"Y": 3}, "d": {}}}
    ablation = Ablation(base="Base-Phoenix.yaml", max_iter=1, axes=axes)
    assert ablation.variants == {"a, c": {"X": 1, "Y": 3}, "a, d": {"X": 1}, "b, c": {"X": 2, "Y": 3}, "b, d": {"X": 2}}
    assert next(iter(ablation.variants)) == "a, c"
    assert Ablation(base="Base-Phoenix.yaml", max_iter=1).variants == {"": {}}


def test_names_may_look_like_numbers(write):
    ablation = read_ablation(
        write("base: b.yaml\nmax_iter: 1\naxes: {x: {0.5: {X: 1}}}\ninference: {1: {num_iters: 1}}")
    )
    assert list(ablation.variants) == ["0.5"] and list(ablation.inference) == ["1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: b.yaml\nmax_iter: 1\nvariants: {}", r"ablation\.yaml: expected .*axes, base.*variants"),
        ("- 1", r"ablation\.yaml: expected a mapping"),
        ("max_iter: 1", r"ablation\.yaml: .*base"),
        ("base: b.yaml", "max_iter is None and seconds is None: give one of the two"),
        ("base: b.yaml\nmax_iter: 1\nseconds: 2", "give one of the two"),
        ("base: b.yaml\nmax_iter: 1\naxes: {x: {}}", "at least one value"),
        ("base: b.yaml\nmax_iter: 1\nseeds: []", "at least one value"),
        ("base: b.yaml\nmax_iter: 1\ninference: {a: {num_iter: 2}}", "num_iter"),
    ],
)
def test_files_that_say_something_else(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_ablation(write(text))


def test_an_ablation_that_there_is_not():
    with pytest.raises(FileNotFoundError, match=r"ablations/noise_cmrl\.yaml"):
        read_ablation("ablations/noise.yaml")


@pytest.mark.parametrize(("trained_on", "seconds"), [("cpu", 2.0), ("cuda:0", 30.0)])
def test_time_on_a_gpu_is_that_on_the_wall(monkeypatch, trained_on, seconds):
    processor, wall = itertools.count(step=2), itertools.count(step=30)
    synchronized = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(True))
    monkeypatch.setattr(
        engine, "time", SimpleNamespace(process_time=lambda: next(processor), perf_counter=lambda: next(wall))
    )
    clock = engine.StepTime()
    clock.trainer = SimpleNamespace(cfg=SimpleNamespace(MODEL=SimpleNamespace(DEVICE=trained_on)))
    clock.before_step()
    clock.after_step()
    assert clock.seconds == clock.first_step == seconds
    assert len(synchronized) == (2 if trained_on == "cuda:0" else 0)


def test_nothing_to_evaluate_on(drawn_folder, tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        prepare_inputs(Ablation(base="b.yaml", max_iter=1), tmp_path, test=Path(drawn_folder))
