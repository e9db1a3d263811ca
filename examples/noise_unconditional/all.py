"""Everything behind docs/noise_unconditional.md, one script after the other; a stop loses little, a second call goes on.

python examples/noise_unconditional/all.py --data_dir data --output_dir outputs/noise_unconditional/models
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent


def commands(data: Path, models: Path) -> list[list[str]]:
    """The scripts and their flags, in order."""
    where, which = ["--data_dir", str(data)], ["--models", str(models)]
    return [
        ["train.py", *where, "--output_dir", str(models)],
        ["run.py", *where, *which],
        ["exact.py", "variance", *where],
        ["exact.py", "bound", *where, *which],
        ["circles.py"],
        ["out_of_distribution.py", *where, *which],
        ["samples.py", *which],
        ["draw.py"],
    ]


def main(
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16 and mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="Folder of the models.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    show: Annotated[bool, arg(help="Print the commands and run nothing.")] = False,
) -> None:
    """Train, sample, measure and draw."""
    for name, *flags in commands(data_dir, output_dir):
        print(" ".join(["python", f"examples/noise_unconditional/{name}", *flags]), flush=True)
        if not show:
            subprocess.run([sys.executable, str(HERE / name), *flags], check=True)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
