"""What is said of an ablation's runs, worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from phoenix_d2.offline.ablation_report import AblationReport, AblationRun, paired_difference


def runs(**values):
    """Variants by name, each with the IoU of the seeds 1, 2, ...; AP is half of it."""
    return [
        AblationRun(name, seed, 100, 10.0 + seed, {"wine": {"1 pass": {"IoU": iou, "AP": iou / 2}}})
        for name, ious in values.items()
        for seed, iou in enumerate(ious, start=1)
    ]


def test_paired_difference():
    difference = paired_difference({1: 71.0, 2: 74.0, 3: 77.0}, {1: 70.0, 2: 72.0, 3: 74.0})
    # 1, 2 and 3: mean 2, standard deviation 1
    assert difference.mean == pytest.approx(2) and difference.num_pairs == 3
    assert difference.standard_error == pytest.approx(1 / math.sqrt(3))
    # 4.30 standard errors are 2.48
    assert not difference.is_beyond_chance
    assert paired_difference({1: 72.0, 2: 74.5, 3: 77.0}, {1: 70.0, 2: 72.0, 3: 74.0}).is_beyond_chance


def test_seeds_are_paired_and_one_alone_says_nothing():
    difference = paired_difference({1: 5.0, 9: 100.0}, {1: 3.0, 2: 0.0})
    assert difference.mean == 2 and difference.num_pairs == 1
    assert math.isnan(difference.standard_error) and not difference.is_beyond_chance


@pytest.fixture
def report():
    references = {"coarse": {"wine": {"": {"IoU": 60.0, "AP": 20.0}}}}
    return AblationReport(
        "test", runs(first=[70.0, 72.0, 74.0], better=[73.0, 75.1, 76.9], same=[71.0, 71.0, 75.0]), references
    )


def test_tables(report):
    text = report.markdown()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["first", "100", "12.00 ± 1.00"] in rows
    assert ["coarse", "60.0", "20.0"] in rows
    assert ["first, 1 pass", "72.00 ± 2.00", "36.00 ± 1.00"] in rows
    assert ["better, 1 pass", "**+3.00** ± 0.06", "**+1.50** ± 0.03"] in rows
    assert ["same, 1 pass", "+0.33 ± 0.67", "+0.17 ± 0.33"] in rows
    assert not any(row[0] == "first, 1 pass" and row[1].startswith("+") for row in rows)


def test_all_figures_can_be_written(report):
    plain = json.loads(json.dumps(report.plain()))
    assert len(plain["runs"]) == 9 and plain["references"]["coarse"]["wine"][""]["IoU"] == 60
    assert plain["differences"]["wine"]["better, 1 pass"]["IoU"]["is_beyond_chance"] is True


def test_plot(report, tmp_path):
    report.plot().savefig(tmp_path / "plot.png")
    panels = report.plot().axes
    assert [panel.get_title() for panel in panels] == ["IoU", "AP"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "first, 1 pass",
        "better, 1 pass",
        "same, 1 pass",
    ]


def test_one_run(tmp_path):
    report = AblationReport("one", runs(**{"": [70.0]}), {})
    assert "| 1 pass | 70.00 |" in report.markdown() and "difference |" not in report.markdown()
    report.plot().savefig(tmp_path / "plot.png")
