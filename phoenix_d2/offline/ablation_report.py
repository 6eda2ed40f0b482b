"""Tables and a plot of an ablation: means over seeds, and which differences are more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from phoenix_d2.tables import format_table

Metrics: TypeAlias = dict[str, float]
Scores: TypeAlias = dict[str, dict[str, Metrics]]
"""{input: {way of refining: {metric: percent}}}."""

# two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the last one it is near the normal's
_STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
_NORMAL = 2.0


@dataclass(frozen=True)
class AblationRun:
    """A training of a variant with a seed.

    Attributes:
        variant: its name; "" where training is not varied.
        seed: of all draws.
        iterations: of the training.
        seconds: of the training: processor time, or on a GPU time on the wall.
        scores: of what was trained.
    """

    variant: str
    seed: int
    iterations: int
    seconds: float
    scores: Scores


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over seeds.

    Attributes:
        mean: difference to the reference, in points.
        standard_error: of that mean; NaN of a single pair.
        num_pairs: seeds that both have.
    """

    mean: float
    standard_error: float
    num_pairs: int

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the 95 % interval of Student's t leaves out 0."""
        if self.num_pairs < 2:
            return False
        quantile = _STUDENT_T[self.num_pairs - 2] if self.num_pairs - 2 < len(_STUDENT_T) else _NORMAL
        return abs(self.mean) > quantile * self.standard_error


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Difference of two variants, seed by seed.

    Args:
        values: by seed, as `reference`.
        reference: those of the variant to compare with; at least one seed is in both.
    """
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference]
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    return Difference(statistics.fmean(differences), error, n)


class AblationReport:
    """What the runs of an ablation say.

    A row is a variant refining in one way; the first one is what the others are compared with.

    Args:
        name: of the ablation.
        runs: at least one, all of the same inputs and ways of refining.
        references: scores by name of what was not trained here, such as the coarse masks.
    """

    def __init__(self, name: str, runs: Sequence[AblationRun], references: Mapping[str, Scores]) -> None:
        self.name = name
        self.runs = runs
        self.references = references
        self.inputs = list(runs[0].scores)
        # percent by input, row, metric and seed
        self.values: dict[str, dict[str, dict[str, dict[int, float]]]] = {given: {} for given in self.inputs}
        for run in runs:
            for given, ways in run.scores.items():
                for way, metrics in ways.items():
                    row = self.values[given].setdefault(_row_name(run.variant, way), {})
                    for metric, value in metrics.items():
                        row.setdefault(metric, {})[run.seed] = value

    def differences(self) -> dict[str, dict[str, dict[str, Difference]]]:
        """{input: {row: {metric: difference to the first row}}}, without the first row."""
        return {
            given: {
                name: {metric: paired_difference(values, first[metric]) for metric, values in row.items()}
                for name, row in list(rows.items())[1:]
            }
            for given, rows in self.values.items()
            for first in [next(iter(rows.values()))]
        }

    def plain(self) -> dict[str, Any]:
        """All figures as plain values."""
        differences = {
            given: {
                row: {m: asdict(d) | {"is_beyond_chance": d.is_beyond_chance} for m, d in metrics.items()}
                for row, metrics in rows.items()
            }
            for given, rows in self.differences().items()
        }
        return {"runs": [asdict(run) for run in self.runs], "references": self.references, "differences": differences}

    def markdown(self) -> str:
        """Training, then for each input a table of means and one of differences."""
        seeds = dict.fromkeys(run.seed for run in self.runs)
        parts = [
            f"# {self.name}",
            f"Percent, mean ± standard deviation over the seeds {', '.join(map(str, seeds))}. Differences are to the "
            "first row, paired by seed, ± their standard error; **bold** ones are beyond chance: the 95 % interval of "
            "Student's t leaves out 0.",
            format_table(self._training_rows()),
        ]
        differences = self.differences()
        for given in self.inputs:
            parts += [f"## {given}", format_table(self._rows(given))]
            if rows := differences[given]:
                cells = [
                    {"difference": name} | {metric: _difference_cell(d) for metric, d in row.items()}
                    for name, row in rows.items()
                ]
                parts.append(format_table(cells))
        return "\n\n".join(parts) + "\n"

    def _training_rows(self) -> list[dict[str, Any]]:
        rows = []
        for variant in dict.fromkeys(run.variant for run in self.runs):
            runs = [run for run in self.runs if run.variant == variant]
            seconds = _mean_cell([run.seconds for run in runs])
            rows.append({"training": variant or "all", "iterations": runs[0].iterations, "seconds": seconds})
        return rows

    def _rows(self, given: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"": _row_name(name, way)} | metrics
            for name, scores in self.references.items()
            for way, metrics in scores[given].items()
        ]
        for name, row in self.values[given].items():
            rows.append({"": name} | {metric: _mean_cell(list(by_seed.values())) for metric, by_seed in row.items()})
        return rows

    def plot(self) -> Figure:
        """A panel for each input and metric: every seed, the mean, and dashed lines at the references."""
        metrics = list(next(iter(self.values[self.inputs[0]].values())))
        num_rows = len(self.values[self.inputs[0]])
        figure = Figure(figsize=(3.2 * len(metrics), (0.9 + 0.25 * num_rows) * len(self.inputs)), layout="constrained")
        axes = figure.subplots(len(self.inputs), len(metrics), squeeze=False, sharey=True)
        for given, panels in zip(self.inputs, axes, strict=True):
            panels[0].set_ylabel(given, fontsize=8)
            for metric, axis in zip(metrics, panels, strict=True):
                self._plot_panel(axis, given, metric)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize=8)
        return figure

    def _plot_panel(self, axis: Any, given: str, metric: str) -> None:
        rows = self.values[given]
        for place, row in enumerate(rows.values()):
            values = list(row[metric].values())
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=4)
            axis.plot(statistics.fmean(values), place, "|", color="black", markersize=14)
        for (name, scores), color in zip(self.references.items(), ("tab:orange", "tab:green"), strict=False):
            # of several ways of refining the first one's, as a scale
            level = next(iter(scores[given].values()))[metric]
            axis.axvline(level, color=color, linestyle="--", linewidth=1, label=name)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(metric, fontsize=9)


def _row_name(variant: str, way: str) -> str:
    return ", ".join(filter(None, (variant, way))) or "trained"


def _mean_cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _difference_cell(difference: Difference) -> str:
    mean = f"{difference.mean:+.2f}"
    error = "" if math.isnan(difference.standard_error) else f" ± {difference.standard_error:.2f}"
    return f"**{mean}**{error}" if difference.is_beyond_chance else mean + error
