"""The command `phoenix-weights`: official checkpoints of the encoders, listed, downloaded and verified."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
examples:
  phoenix-weights list
  phoenix-weights download vit_b hq_vit_b
  phoenix-weights verify                      # all that are there

Downloaded checkpoints are found by their encoder's name: MODEL.PHOENIX.ENCODER.WEIGHTS vit_b.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="phoenix-weights",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--folder", type=Path, help="where the files lie (default: torch.hub's checkpoints)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[shared], help="files, sizes, hashes, and which are there")
    fetch = commands.add_parser("download", parents=[shared], help="fetch and check; goes on where it broke off")
    fetch.add_argument("encoders", nargs="+", metavar="ENCODER", help="see list")
    verify = commands.add_parser("verify", parents=[shared], help="check the hashes of files that are there")
    verify.add_argument("encoders", nargs="*", metavar="ENCODER", help="see list (default: all that are there)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run a command, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.sam.official import checkpoint_folder, get_checkpoint

    folder = args.folder or checkpoint_folder()
    with errors_in_words():
        if args.command == "list":
            print(_table(folder))
            return
        for encoder in args.encoders:
            get_checkpoint(encoder)
        if args.command == "download":
            _download(args.encoders, folder)
        else:
            _verify(args.encoders, folder)


def _table(folder: Path) -> str:
    from tabulate import tabulate

    from phoenix_d2.sam.official import CHECKPOINTS

    rows = [
        [name, known.url, f"{known.num_bytes / 1e6:,.0f}", known.sha256, "yes" if _is_there(folder, name) else "-"]
        for name, known in CHECKPOINTS.items()
    ]
    table: str = tabulate(
        rows,
        headers=["encoder", "url", "MB", "sha256", f"in {folder}"],
        colalign=("left", "left", "right", "left", "left"),
        disable_numparse=True,
    )
    return table


def _download(encoders: list[str], folder: Path) -> None:
    from phoenix_d2.sam.download import download

    for encoder in encoders:
        print(f"{encoder}: {download(encoder, folder)}")


def _verify(encoders: list[str], folder: Path) -> None:
    from phoenix_d2.sam.official import CHECKPOINTS, check_file

    wrong = []
    for encoder in encoders or [name for name in CHECKPOINTS if _is_there(folder, name)]:
        path = folder / CHECKPOINTS[encoder].file_name
        try:
            check_file(path, CHECKPOINTS[encoder])
            print(f"{encoder}: ok")
        except FileNotFoundError:
            wrong.append(f"{path} is not there: run `phoenix-weights download {encoder} --folder {folder}`.")
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))


def _is_there(folder: Path, encoder: str) -> bool:
    from phoenix_d2.sam.official import CHECKPOINTS

    return (folder / CHECKPOINTS[encoder].file_name).is_file()


if __name__ == "__main__":
    main()
