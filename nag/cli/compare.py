"""`nag compare`: a grid of schedulers, budgets and methods, one file per cell, and the pages that sum it up.

A folder of results belongs to one set of settings, kept in its settings.json: model, data, seeds, numbers of samples.
Schedulers, budgets and methods are not among them, so a comparison can be extended; a run that stops loses at most the
cell it was at. Started by `accelerate launch`, the processes share the cells.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nag import __version__
from nag.cli.measuring import CompareOptions
from nag.corrections.text import Method, parse_methods
from nag.files import read_json, written_file
from nag.noise.named import SCHEDULERS
from nag.quality.bench import (
    read_assignments,
    scheduler_line,
)
from nag.quality.cells import measure_cell
from nag.quality.comparison import Cell, cell_name, compare
from nag.quality.comparison_report import write_comparison
from nag.quality.stage import SETTINGS_FILE, Stage, load_stage

__all__ = ["run"]

DERIVED_SEEDS = 5  # --seed and the four that follow; see nag.quality.stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Processes:
    """Which of how many processes this is."""

    index: int
    count: int
    device: str | torch.device | None


def _processes(device: str | None) -> _Processes:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return _Processes(index=0, count=1, device=device)
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return _Processes(index=state.process_index, count=state.num_processes, device=device or state.device)


def run(options: CompareOptions) -> Path | None:
    """Measures what is missing and writes compare.json, compare.html and compare.md.

    Returns:
        The path of compare.html; None in all processes but the first.

    Raises:
        ValueError: if an option is wrong, something that a method needs is missing, there are too few samples or images,
            or the output folder holds results of other settings.
    """
    methods = _check(options)
    processes = _processes(options.device)
    stage, settings = load_stage(options, methods, processes.device)
    folder = options.output_dir
    _claim(folder, settings)
    first = processes.index == 0
    if first:
        for scheduler in stage.schedulers.values():
            print(scheduler_line(scheduler))
        if stage.judge is None:
            print("The noise shift is not measured: there is no regressor beside the model, or --no_shift.")
    grid = [
        (scheduler, budget, method)
        for scheduler in options.schedulers
        for budget in options.steps
        for method in methods
    ]
    dearest_first = sorted(grid, key=lambda cell: -cell[1])
    mine = dearest_first[processes.index :: processes.count]
    for scheduler, budget, method in tqdm(mine, desc="Cells", unit="cell", disable=not first):
        path = _path(folder, scheduler, budget, method)
        known = _read(path) if path.exists() else None
        if known is not None and known.refused is None:
            continue
        cell = measure_cell(stage, scheduler, budget, method, folder)
        with written_file(path) as part:
            part.write_text(json.dumps(cell.to_dict(), indent=1) + "\n", encoding="utf-8")
        tqdm.write(_line(cell))
    if not first:
        return None
    paths = [_path(folder, *cell) for cell in grid]
    while not all(path.exists() for path in paths):  # the other processes are still at it
        time.sleep(0.5)
    return _write(options, settings, stage, paths)


def _check(options: CompareOptions) -> list[Method]:
    """Refuses what can be seen without loading anything; returns the methods, plain first."""
    methods = parse_methods(dict.fromkeys(("plain", *options.methods)))
    unknown = [name for name in options.schedulers if name not in SCHEDULERS]
    if unknown or not options.schedulers:
        raise ValueError(
            f"schedulers must be of {', '.join(SCHEDULERS)}, got {', '.join(unknown) or 'none'}. Check the spelling."
        )
    for name, least in (
        ("num_images", 8),
        ("num_samples", 2),
        ("tune_samples", 2),
        ("calibration_samples", 8),
        ("shift_samples", 8),
        ("batch_size", 1),
        ("resamples", 2),
    ):
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}. Raise it.")
    if not options.steps or min(options.steps) < 1:
        raise ValueError(
            f"steps must be budgets of at least 1 evaluation, got {list(options.steps)}. Give for example 10 20 50."
        )
    used = range(options.seed, options.seed + DERIVED_SEEDS)
    if not options.seeds or len(set(options.seeds)) < len(options.seeds) or set(options.seeds) & set(used):
        raise ValueError(
            f"seeds must differ from each other and from {used[0]} to {used[-1]}, which choose and calibrate, got "
            f"{list(options.seeds)}. Take others."
        )
    if min(options.seed, *options.seeds) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(options.seed, *options.seeds)}. Take others.")
    for name in ("schedulers", "steps"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must differ from each other, got {list(values)}. Leave one out.")
    read_assignments(options.scheduler_config)
    return methods


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder that of these settings."""
    # settings first: a folder with cells and no settings is refused
    with written_file(folder / SETTINGS_FILE) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    for name in ("cells", "features", "calibrations"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _path(folder: Path, scheduler: str, budget: int, method: Method) -> Path:
    return folder / "cells" / f"{cell_name(scheduler, budget, method.label)}.json"


def _read(path: Path) -> Cell:
    return Cell.from_dict(read_json(path))


def _line(cell: Cell) -> str:
    """A cell in one line."""
    where = f"{cell.scheduler} {cell.budget} {cell.method}"
    if cell.refused is not None:
        return f"{where}: refused: {cell.refused}"
    distance = f"Frechet distance {cell.frechet.value:.3f} ± {cell.frechet.standard_error:.3f}"
    chosen = "" if cell.chosen == cell.method else f" chose {cell.chosen},"
    return f"{where}:{chosen} {cell.steps} steps, {cell.evaluations:.4g} evaluations, {distance}"


def _write(options: CompareOptions, settings: dict[str, Any], stage: Stage, paths: list[Path]) -> Path:
    """The summary of all cells of the folder: this run's in their order, then those of earlier runs."""
    folder = options.output_dir
    earlier = sorted(set((folder / "cells").glob("[!.]*.json")) - set(paths))
    cells = [_read(path) for path in (*paths, *earlier)]
    command = {
        item.name: value
        for item in dataclasses.fields(options)
        if (value := getattr(options, item.name)) is not None
    }
    data = {
        "title": f"Comparison on {Path(options.model).name}",
        "version": __version__,
        "settings": {name: _plain(value) for name, value in command.items()},
        "fingerprints": settings,
        "num_reference_images": stage.reference.num_images,
        "num_features": stage.reference.num_features,
        "independent_judge": options.judge is not None and settings["judge"] != settings["regressor"],
        "shift_measured": stage.judge is not None,
        "rows": compare(cells),
    }
    names = [cell_name(cell.scheduler, cell.budget, cell.method) for cell in cells]
    path = write_comparison(data, [folder / "features" / f"{name}.safetensors" for name in names], folder)
    print(f"Written: {path}, compare.md, compare.json")
    return path


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
