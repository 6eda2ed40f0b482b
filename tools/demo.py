#!/usr/bin/env python
"""The main job from end to end, on pictures that it draws itself: refine noisy masks, measure, look.

Every step is a command that serves any dataset as well; each is printed before it runs, and skipped when its output is
there. Refines with the weights that come with the package, or with --train with some that it first trains from
scratch, in about ten minutes on two cores. Needs no GPU and no download.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

TOOLS = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    """Arguments of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="default: output/demo")
    parser.add_argument("--noise", default="morphological", help="kind of noise, see degrade_json.py --help")
    parser.add_argument("--train", action="store_true", help="train a refiner on drawn pictures first")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the steps."""
    # torch's, of what Detectron2 imports
    warnings.simplefilter("ignore", FutureWarning)
    from phoenix_d2.data.datasets.drawn import draw_dataset

    folder = args.output
    test = folder / "test"
    draw_dataset(test, num_images=30, image_size=(256, 256), seed=2)
    annotations, noisy = test / "instances.json", folder / "noisy.json"
    weights = train(folder) if args.train else "phoenix_tiny"
    refined = folder / ("refined_trained_here.json" if args.train else "refined.json")
    pictures = folder / refined.stem

    step(
        "Make noisy masks of drawn pictures", noisy, "degrade_json.py", "--annotations", annotations,
        "--kind", args.noise, "--output", noisy,
    )  # fmt: skip
    step(
        "Refine them", refined, "refine_json.py", "--weights", weights,
        "--images", test / "images", "--annotations", annotations, "--input", noisy, "--output", refined,
    )  # fmt: skip
    step(
        "Measure mask AP and boundary AP, before and after", None, "evaluate_json.py", "--annotations", annotations,
        "--results", noisy, refined,
    )  # fmt: skip
    step(
        "Draw", pictures / "overview.png", "draw_json.py", "--images", test / "images",
        "--annotations", annotations, "--results", noisy, refined, "--output", pictures,
    )  # fmt: skip
    print(f"\nBefore and after: {pictures / 'overview.png'}")


def train(folder: Path) -> Path:
    """Train a refiner on pictures of its own; the path of its weights."""
    from phoenix_d2.data.datasets.drawn import draw_dataset

    pictures = folder / "train"
    draw_dataset(pictures, num_images=240, image_size=(256, 256), seed=1)
    datasets = ["DATASETS.TRAIN", f"('{pictures}',)", "DATASETS.TEST", "()"]
    pretrained = folder / "pretrain" / "model_final.pth"
    weights = folder / "phoenix" / "model_final.pth"
    step(
        "Pre-train a small promptable decoder", pretrained, "train_net.py", "--config", "phoenix_demo_pretrain.yaml",
        "--resume", *datasets, "OUTPUT_DIR", pretrained.parent,
    )  # fmt: skip
    step(
        "Train it as a refiner: adversarial noise, contrastive losses", weights, "train_net.py",
        "--config", "phoenix_demo.yaml", "--resume", *datasets, "OUTPUT_DIR", weights.parent,
        "MODEL.WEIGHTS", pretrained,
    )  # fmt: skip
    return weights


def step(title: str, output: Path | None, tool: str, *arguments: str | Path) -> None:
    """Run a tool unless its output is there."""
    command = [str(TOOLS / tool), *map(str, arguments)]
    print(f"\n{title}\n  $ python {shlex.join(command)}", flush=True)
    if output is not None and output.exists():
        print(f"  done before: {output}", flush=True)
        return
    if subprocess.run([sys.executable, "-W", "ignore::FutureWarning", *command], check=False).returncode:
        sys.exit(f"{tool} failed, see above. The same command goes on where it stopped.")


if __name__ == "__main__":
    main(parse_args())
