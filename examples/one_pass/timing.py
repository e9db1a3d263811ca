"""Times a head: processor time of sampling with it and without, in turns, on one thread; docs/one_pass/timing.json.

python examples/one_pass/timing.py --models outputs/one_pass
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import arg

from nag import NAGPipeline
from nag.corrections.text import parse_method
from nag.files import written_file

ROOT = Path(__file__).resolve().parents[2]
METHODS = {
    "direction": "direction:head={models}/direction,scale=1",
    "exit": "exit_head:head={models}/exit,scale=0.5",
}


def seconds(pipe: Any, count: int, **options: Any) -> float:
    """Processor time of 20 steps."""
    start = time.process_time()
    pipe(batch_size=count, class_labels=torch.arange(count) % 10, num_inference_steps=20, **options)
    return time.process_time() - start


def main(
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path("outputs/one_pass"),
    pairs: Annotated[int, arg(help="Times that each is sampled.")] = 15,
    samples: Annotated[int, arg(help="Samples each time.")] = 32,
) -> None:
    """Time the heads."""
    torch.set_num_threads(1)
    pipe = NAGPipeline.from_pretrained(ROOT / "examples" / "fashion_mnist" / "model")
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for name, text in METHODS.items():
        options = parse_method(text.format(models=models)).arguments()
        ratios = [seconds(pipe, samples, **options) / seconds(pipe, samples) for _ in range(pairs + 1)][1:]
        found[name] = {
            "ratio": statistics.median(ratios),
            "quartiles": [round(one, 4) for one in statistics.quantiles(ratios, n=4)[::2]],
            "pairs": pairs,
        }
        print(name, found[name])
    with written_file(ROOT / "docs" / "one_pass" / "timing.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
