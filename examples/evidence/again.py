"""Samples published rows again, for errors that are resampled within classes; what was chosen and measured stays.

    python examples/evidence/again.py --data_dir data --output_dir outputs/again heun_100 dpm++_100 ddim_50

The features of a run are not published, so that its errors can only be had by sampling again: the same weights, seed and
number of samples. Distances must come out as published; by how much they do not is printed, and the published ones are kept.
The rows that the page's first table needs come first, in all studies. A stop loses at most one row.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from published import DIFFERENCES, RESAMPLED, picked
from run import RESULTS, STUDIES
from tyro.conf import Positional, arg

from nag.files import read_json, written_file


def stage_of(settings: dict[str, Any], methods: list[str], data: Path, output: Path) -> Any:
    """What `nag compare` loads for a study, without what measures shifts."""
    from nag.cli.compare import CompareOptions, load
    from nag.corrections.text import parse_methods

    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if name in CompareOptions.__dataclass_fields__
    }
    values |= {"shift": False, "judge": None, "corrections": tuple(methods), "output_dir": output}
    values |= {"reference": data / "fashion_mnist_16" / "test.parquet"}
    return load(CompareOptions(**values), parse_methods(methods), None)[0]


def measured(stage: Any, row: dict[str, Any], folder: Path) -> Any:
    """The cell of a row, read if it was sampled before."""
    from nag.corrections.text import parse_method
    from nag.quality.comparison import cell_name, load_cell, save_cell

    path = folder / "cells" / f"{cell_name(row['scheduler'], row['budget'], row['chosen'])}.json"
    if path.exists():
        return load_cell(path)
    start = time.perf_counter()
    cell = stage().cell(row["scheduler"], row["budget"], parse_method(row["chosen"]))
    if cell.refused is not None:
        raise RuntimeError(f"{row['chosen']} must be measurable again, got: {cell.refused}")
    save_cell(path, cell)
    before, found = row["frechet"], cell.frechet
    print(
        f"{path.stem}: {found.value:.6f} ({found.value - before['value']:+.2g}), error {found.standard_error:.4f} "
        f"(published {before['standard_error']:.4f}), {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return cell


def publish(study: str, cells: dict[str, Any]) -> None:
    """New errors, z and p of the rows that were sampled again, and of differences both of whose sides were."""
    from nag.quality.comparison import degrees_of_freedom, difference, holm, tested

    found = read_json(RESULTS / f"{study}.json")
    rows = [row for row in found["rows"] if row["refused"] is None]
    baseline = picked(rows, ours=False)
    for row in rows:
        cell = cells.get(row["chosen"])
        if cell is None:
            continue
        for place in (row, row["seeds"][0]["quality"]):
            place["frechet"] |= {"standard_error": cell.frechet.standard_error, RESAMPLED: True}
        others = (
            next((one for one in rows if one["method"] == "plain"), None),
            next((one for one in rows if one["method"] == row["best_baseline"]), None),
            baseline,
        )
        for name, other in zip(DIFFERENCES, others, strict=True):
            if other is None or other is row or other["chosen"] not in cells:
                continue
            apart = dataclasses.replace(
                difference(cell, cells[other["chosen"]]),
                value=row["frechet"]["value"] - other["frechet"]["value"],
            )
            row[name] = tested(apart, degrees_of_freedom(cell, cells[other["chosen"]])) | {RESAMPLED: True}
    for name in ("minus_plain", "minus_best_baseline"):
        holm([row[name] for row in rows if row[name] is not None])
    with written_file(RESULTS / f"{study}.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def in_order(studies: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the page's first table first, then the others; those with a calibration last."""
    rest: list[tuple[str, dict[str, Any]]] = []
    for study in studies:
        rows = [row for row in read_json(RESULTS / f"{study}.json")["rows"] if row["refused"] is None]
        first = [picked(rows, ours=True), picked(rows, ours=False), rows[0]]
        yield from ((study, row) for row in first if row is not None)
        rest += [(study, row) for row in rows if not any(row is one for one in first)]
    yield from sorted(rest, key=lambda item: "calibrated" in item[1]["chosen"])


def main(
    studies: Annotated[Positional[tuple[str, ...]], arg(help="Studies of run.py.")],
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="Folder of the cells.")] = Path("outputs/again"),
) -> None:
    """Sample published rows again for their errors."""
    unknown = sorted(set(studies) - set(STUDIES))
    if unknown:
        raise SystemExit(f"studies must be among {', '.join(STUDIES)}, got {', '.join(unknown)}.")
    stages: dict[str, Any] = {}
    cells: dict[str, dict[str, Any]] = {study: {} for study in studies}

    def stage(study: str) -> Any:
        if study not in stages:
            found = read_json(RESULTS / f"{study}.json")
            methods = [row["chosen"] for row in found["rows"] if row["refused"] is None]
            stages[study] = stage_of(
                found["settings"], list(dict.fromkeys(methods)), data_dir, output_dir / study / "stage"
            )
        return stages[study]

    for study, row in in_order(studies):
        cells[study][row["chosen"]] = measured(lambda study=study: stage(study), row, output_dir / study)
        publish(study, cells[study])


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
