"""`nag weak-check`: which weaker model is worth guiding by, judged before anything is sampled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nag.cli.options import ModelOptions, Scheduler, candidates, free_for, plain
from nag.corrections.text import FROM_ONE

if TYPE_CHECKING:
    from nag.quality.weak_check import LevelScreen

__all__ = ["WeakCheckOptions", "run"]

FILES = ("weak_check.json", "weak_check.png")


@dataclass(frozen=True, kw_only=True)
class WeakCheckOptions(ModelOptions):
    """Say which weaker model could take how much off a network's error, per noise level: weak_check.json and .png.

    nag weak-check MODEL --data IMAGES --weak null_autoguidance autoguidance:network=SMALL_MODEL
    """

    weak: tuple[str, ...] = ("null_autoguidance",)
    """Weak models: null_autoguidance (the network without its level), autoguidance:network=MODEL (a smaller or earlier one),
    blind_autoguidance:network=MODEL (that one without its level), class_interval (the network without its class),
    perturbed_attention and block_drop (the network without its middle self-attention, or without its middle block)."""
    scheduler: Scheduler = None
    steps: int = 20
    """Sampling steps, at whose levels is asked."""
    ahead: int = 3
    """Steps of the sampler that reached states are taken after; 0: forward states only."""
    prompts: Path | None = None
    """Prompts of a text-to-image model, one in each line. None: the captions of --data."""
    comparison: Path | None = None
    """compare.json of `nag compare` with these weak models: the rank correlation of both is told."""
    batch_size: int = 64
    """Images per batch."""
    output_dir: Path = Path("outputs/weak_check")
    """Folder of the result."""
    overwrite: bool = False
    """Replace the files of a folder that is in use."""


def run(options: WeakCheckOptions) -> list[LevelScreen]:
    """Asks all weak models about held-out images, prints a table, writes JSON and a picture."""
    from nag.corrections import WeakModel
    from nag.files import written_file
    from nag.noise.named import make_scheduler
    from nag.quality.bench import held_out_images, open_bench
    from nag.quality.weak_check import draw, rank_correlation, screen, shares
    from nag.shift.calls import classes_of

    free_for(options.output_dir, FILES, overwrite=options.overwrite)
    methods = candidates(*map(_with_scale, options.weak))
    bench = open_bench(
        options.model,
        options,
        device=options.device,
        prompts=options.prompts,
        num_images=options.num_images,
    )
    pipe = bench.pipeline
    pipe.scheduler = make_scheduler(options.scheduler, pipe.scheduler)
    weak = {}
    for text, method in zip(options.weak, methods, strict=True):
        found = method.arguments(pipe.device).get("corrections", [])
        if len(found) != 1 or not isinstance(found[0], WeakModel):
            raise ValueError(
                f"weak must name one weak model each, got {text!r}. Write null_autoguidance, autoguidance:network=MODEL, "
                "class_interval, perturbed_attention or block_drop."
            )
        weak[text] = found[0]
    bench.left_out(
        {
            (f"{options.steps} steps", text): (
                pipe.scheduler,
                options.steps,
                bench.sized | {"corrections": [one]},
            )
            for text, one in weak.items()
        }
    )
    classes = classes_of(pipe) is not None
    table = held_out_images(pipe, options, options.num_images, with_labels=classes)
    given = {"class_labels": table.classes} if classes else bench.conditions.of(len(table))
    rows = screen(
        pipe,
        bench.holding(table).images,
        weak,
        conditions=given | bench.sized,
        num_inference_steps=options.steps,
        ahead=options.ahead,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    for row in rows:
        print(
            f"{row.weak:<40} {row.states:<8} {row.log_snr:7.2f}  w* {row.weight.value:+6.3f} ± {row.weight.standard_error:.3f}"
            f"  off the loss {100 * row.gain.value:6.2f} ± {100 * row.gain.standard_error:.2f} %"
        )
    found = shares(rows)
    for name, by_states in found.items():
        print(
            f"{name}: "
            + ", ".join(f"{100 * v:.2f} % of the loss on {k} states" for k, v in by_states.items())
        )
    summary: dict[str, Any] = {
        "settings": plain(options) | {"images": table.note},
        "rows": [asdict(row) for row in rows],
        "mean": found,
    }
    if options.comparison is not None:
        summary["rank_correlation"] = rank_correlation(found, options.comparison)
        print(
            f"rank correlation with the distances of {options.comparison}: {summary['rank_correlation']:+.2f}"
        )
    with written_file(options.output_dir / FILES[0]) as part:
        part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    with written_file(options.output_dir / FILES[1]) as part:
        draw(rows, part)
    print(f"Written: {', '.join(str(options.output_dir / name) for name in FILES)}")
    return rows


def _with_scale(text: str) -> str:
    """The text of a weak model with some weight, if it has none: which one does not matter here."""
    if any(word in text for word in (":scale=", ",scale=", "guidance_scale=")):
        return text
    key = "guidance_scale=2" if text.startswith(FROM_ONE) else "scale=1"
    return f"{text}{',' if ':' in text else ':'}{key}"
