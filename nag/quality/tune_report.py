"""What `nag tune` has found as a page, noise_guidance.html, which leads with its answer as `nag.shift.page` has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nag import __version__
from nag.corrections.tuned import FILE_NAME, Entry
from nag.files import written_file
from nag.shift.chart import COLOURS, on_one_axis
from nag.shift.page import Answer, number, render, short, thumbnails

__all__ = ["answer", "write_tuned"]

GREY = "#565c66"


def answer(entry: Entry, source: str = "tuned") -> Answer:
    """Whether to use what was found, and the line that does: `source` is the file, or "tuned" for that beside the model."""
    found, steps = entry.evidence.get("confirmed"), entry.sampler.num_inference_steps
    sampler = f"{entry.sampler.scheduler} with {steps} steps"
    if found is None:
        return Answer(text=f"{sampler}: {entry.reason}")
    own, plain, apart = (found[name] for name in ("frechet", "plain_frechet", "difference"))
    figures = (
        f"Frechet distance {number(own['value'], 2)} instead of {number(plain['value'], 2)} "
        f"({number(apart['value'], 2, True)} ± {number(apart['standard_error'], 2)}) on fresh seeds"
    )
    if entry.helps:
        return Answer(
            text=f"{sampler}: {_named(entry.evidence['choice'])} is better than plain sampling at equal cost, {figures}.",
            then="A pipeline uses it when it is asked to:",
            command=f'pipe(num_inference_steps={steps}, noise_guidance="{source}")',
        )
    better = apart["value"] < -2 * apart["standard_error"]
    why = (
        "better than plain sampling only at the cost of recall"
        if better
        else "not clearly better than plain sampling"
    )
    best = f"the best of {entry.evidence['trials']} trials, {_named(entry.evidence['choice'])}"
    return Answer(text=f"{sampler}: leave it off; {best}, is {why} at equal cost, {figures}.")


def _named(trial: Mapping[str, Any]) -> str:
    """A candidate without its number of steps, which is the sampler's."""
    return short(trial["candidate"].rpartition(",")[0])


def write_tuned(
    entry: Entry,
    folder: Path,
    *,
    samples: Mapping[str, UInt8[np.ndarray, "kept height width channels"]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes noise_guidance.html, the page of the latest search, beside noise_guidance.json.

    Args:
        entry: of the search.
        folder: where to.
        samples: of plain sampling and of the choice, from the same noise.
        settings: of the command.
    """
    source = str(folder / FILE_NAME) if settings and settings.get("output_dir") else "tuned"
    found, rows = entry.evidence.get("confirmed"), list[dict[str, Any]]()
    if found is not None:
        plain, apart = found["plain_frechet"]["value"], found["difference"]
        clear = abs(apart["value"]) > 2 * apart["standard_error"]
        side = ("better" if apart["value"] < 0 else "worse") if clear else "not clear"
        rows += [
            {"name": "Confirmed on fresh seeds, other images", "first": True},
            {
                "name": _named(entry.evidence["choice"]),
                "first": False,
                "share": apart["value"] / plain,
                "half": 1.96 * apart["standard_error"] / plain,
                "colour": {"better": COLOURS[2], "worse": COLOURS[1], "not clear": GREY}[side],
                "value": f"{number(apart['value'], 2, True)} ± {number(apart['standard_error'], 2)}",
                "side": f"{number(100 * apart['value'] / plain, 0, True)} %, {side}",
                "tone": {"better": "good", "worse": "bad", "not clear": "soft"}[side],
            },
        ]
    trials = [trial for trial in entry.evidence.get("best", ()) if "reading" in trial]
    if trials:
        rows.append({"name": f"In the search, the best of {entry.evidence['trials']} trials", "first": True})
    for trial in trials:
        own, plain = trial["reading"], trial["plain"]["frechet"]
        rows.append(
            {
                "name": _named(trial),
                "first": False,
                "share": (own["frechet"] - plain) / plain,
                "half": 0.0,
                "colour": GREY,
                "value": number(own["frechet"] - plain, 2, True),
                "side": f"{own['num_samples']} samples",
                "tone": "soft",
            }
        )
    data = {
        "title": f"Tuned: {entry.sampler}",
        "version": __version__,
        "answer": asdict(answer(entry, source)),
        "reason": entry.reason,
        "settings": dict(settings or {}),
        "evidence": entry.evidence,
    }
    shown = data | on_one_axis(rows) | {"file": FILE_NAME, "trials": trials}
    shown["samples"] = [
        {"name": name, "images": thumbnails(images)} for name, images in (samples or {}).items()
    ]
    page = render(Path(__file__).parent, "tune.html.jinja", shown, json.dumps(data, allow_nan=False))
    path = folder / Path(FILE_NAME).with_suffix(".html")
    with written_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path
