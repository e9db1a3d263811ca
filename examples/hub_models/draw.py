"""Draws the tables of docs/hub_models.md, and copies its pictures, from what whole_way.py has measured.

python examples/hub_models/draw.py --models outputs/hub_models    # takes the results over, then draws
python examples/hub_models/draw.py                                # draws docs/hub_models/*.json again
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from nag.files import read_json, written_file

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "hub_models.md", ROOT / "docs" / "hub_models"
MODELS = {"emoji": "emoji", "fashion_dit": "Fashion-MNIST, DiT"}
PICTURES = {
    "emoji": "emoji/model",
    "fashion_dit": "fashion_dit/model",
    "fashion_flow": "fashion_dit/flow",
}
SCALES = (1, 4)
KEPT = ("mean_shift", "mean_abs_shift", "mean_is", "num_steps", "num_measured", "num_samples", "num_images")
ROWS = {
    "plain": "plain",
    "classifier-free noise guidance": "nag:",
    "one pass, distilled LoRA": "merged:",
    "class guidance alone, best scale": "class_guidance:",
}


def take_over(models: Path) -> None:
    """Results and pictures of a folder of models, as docs hold them: without times of this machine and names of its folders."""
    for name in MODELS:
        for scale in SCALES:
            here = models / name
            if (path := here / f"shift_{scale}" / "shift.json").exists():
                runs = [{"name": run["name"], **_kept(run["shift"])} for run in read_json(path)["runs"]]
                _write(f"{name}_shift_{scale}", {"runs": runs})
            if (path := here / f"compare_{scale}" / "compare.json").exists():
                rows = [
                    {
                        key: row[key]
                        for key in ("method", "chosen", "evaluations", "refused", "frechet", "minus_plain")
                    }
                    for row in read_json(path)["rows"]
                ]
                for row in rows:
                    row["method"], row["chosen"] = (_nameless(row[key]) for key in ("method", "chosen"))
                _write(f"{name}_compare_{scale}", {"rows": rows})
    for name, place in PICTURES.items():
        if (path := models / place / "samples.png").exists():
            with written_file(RESULTS / f"{name}.png") as part:
                copyfile(path, part)


def _kept(shift: dict[str, Any]) -> dict[str, Any]:
    return {key: shift[key] for key in shift if key.removesuffix("_standard_error") in KEPT}


def _nameless(text: str | None) -> str | None:
    return text and re.sub(r"network=[^,]*/", "network=", text)


def _write(name: str, value: dict[str, Any]) -> None:
    with written_file(RESULTS / f"{name}.json") as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else {}


def shown(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number and its standard error."""
    return "not measurable" if value is None or error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def shifts() -> str:
    """The mean shift of every model and scale."""
    lines = [
        "| model | class guidance | mean shift | mean \\|shift\\| | steps measured |",
        "| --- " * 5 + "|",
    ]
    for name, title in MODELS.items():
        for scale in SCALES:
            runs = _read(f"{name}_shift_{scale}").get("runs", [])
            lines += [] if runs else [f"| {title} | {scale} | not run | | |"]
            for run in runs:
                cells = [
                    shown(run[key], run[f"{key}_standard_error"]) for key in ("mean_shift", "mean_abs_shift")
                ]
                cells += [f"{run['num_measured']} of {run['num_steps']}"]
                lines.append(f"| {title} | {scale} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparisons() -> str:
    """Distances at equal cost."""
    lines = [
        "| model | class guidance | what is added | Fréchet distance | minus plain |",
        "| --- " * 5 + "|",
    ]
    for name, title in MODELS.items():
        for scale in SCALES:
            rows = [row for row in _read(f"{name}_compare_{scale}").get("rows", []) if row["refused"] is None]
            for label, start in ROWS.items():
                if scale == 1 and start == "class_guidance:":
                    continue
                row = next((row for row in rows if row["method"].startswith(start)), None)
                lines.append(f"| {title} | {scale} | {label}{_cells(row)} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | not run | "
    chosen = re.search(r"(?:scale|strength)=([-\d.]+)", row["chosen"] or "")
    apart = row["minus_plain"]
    distance = shown(row["frechet"]["value"], row["frechet"]["standard_error"], 2)
    minus = "–" if apart is None else shown(apart["value"], apart["standard_error"], 2)
    return f"{f' ({chosen[1]})' if chosen else ''} | {distance} | {minus}"


def page(text: str) -> str:
    """The page with its tables drawn anew."""
    for name, table in (("shifts", shifts()), ("comparisons", comparisons())):
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def main(
    models: Annotated[Path | None, arg(help="Take the results of this folder over.")] = None,
) -> None:
    """Draw docs/hub_models.md."""
    if models is not None:
        take_over(models)
    text = PAGE.read_text(encoding="utf-8")
    with written_file(PAGE) as part:
        part.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
