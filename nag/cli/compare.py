"""`nag compare`: a grid of schedulers, budgets and methods, one file per cell, and the pages that sum it up.

A folder of results belongs to one set of settings, kept in its settings.json: model, data, seeds, numbers of samples.
Schedulers, budgets and methods are not among them, so a comparison can be extended; a run that stops loses at most the
cell it was at. Started by `accelerate launch`, the processes share the cells.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nag.cli.options import Corrections, FeatureOptions, SamplerOptions, Schedulers, plain

if TYPE_CHECKING:
    import torch

    from nag.corrections.text import Method
    from nag.quality.comparison import Cell
    from nag.quality.stage import Stage

__all__ = ["CompareOptions", "run"]

DERIVED_SEEDS = 5  # --seed and the four that follow; see nag.quality.stage


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SamplerOptions, FeatureOptions):
    """Compare corrections at equal cost, for every scheduler and budget: compare.html, compare.md and compare.json.

    Values divided by | are candidates: the best on the tuning seed is reported, on other seeds.

    nag compare MODEL --data IMAGES --schedulers ddim heun --steps 10 20 --corrections "nag:scale=0.5|1" calibrated
    """

    schedulers: Schedulers = ("ddim",)
    steps: tuple[int, ...] = (20,)
    """Budgets in network evaluations per sample. Every method takes as many steps as its budget pays for."""
    corrections: Corrections = ("plain", "nag:scale=0.25|0.5|1|2")
    reference: Path | None = None
    """Images that samples are compared with: a folder or a parquet file. None: every second image of --data,
    which then serves for nothing else."""
    num_samples: int = 2000
    """Samples per seed."""
    seeds: tuple[int, ...] = (101, 102)
    """Seeds that are reported."""
    seed: int = 1
    """Seed of tuning, calibration and shift; must not be one of --seeds."""
    tune_samples: int = 500
    """Samples per candidate."""
    scheduler_config: tuple[str, ...] = ()
    """Settings of every scheduler as NAME=VALUE, for example timestep_spacing=trailing clip_sample=false."""
    judge: str | None = None
    """Regressor that measures the shift, better an independent one. None: --regressor."""
    calibration_samples: int = 512
    """Samples that a calibration is measured with."""
    shift: bool = True
    """Measure the noise shift of every cell; needs a regressor."""
    shift_samples: int = 256
    """Trajectories that a shift is measured with."""
    resamples: int = 50
    """Bootstrap resamples behind the error bars."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast precision of the samples. Calibration and shift are measured in float32."""
    batch_size: int = 250
    """Samples per batch."""
    output_dir: Path = Path("outputs/compare")
    """Folder of the result. Cells that it holds already are not measured again."""


@dataclass(frozen=True, kw_only=True)
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
    """
    from tqdm.auto import tqdm

    from nag.files import written_file
    from nag.quality.bench import scheduler_line
    from nag.quality.cells import measure_cell
    from nag.quality.stage import load_stage

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
    from nag.corrections.text import parse_methods
    from nag.noise.named import SCHEDULERS
    from nag.quality.bench import read_assignments

    methods = parse_methods(dict.fromkeys(("plain", *options.corrections)))
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
    from nag.files import written_file
    from nag.quality.stage import SETTINGS_FILE

    # settings first: a folder with cells and no settings is refused
    with written_file(folder / SETTINGS_FILE) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    for name in ("cells", "features", "calibrations"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _path(folder: Path, scheduler: str, budget: int, method: Method) -> Path:
    from nag.quality.comparison import cell_name

    return folder / "cells" / f"{cell_name(scheduler, budget, method.label)}.json"


def _read(path: Path) -> Cell:
    from nag.files import read_json
    from nag.quality.comparison import Cell

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
    from nag import __version__
    from nag.quality.comparison import cell_name, compare
    from nag.quality.comparison_report import write_comparison

    folder = options.output_dir
    earlier = sorted(set((folder / "cells").glob("[!.]*.json")) - set(paths))
    cells = [_read(path) for path in (*paths, *earlier)]
    data = {
        "title": f"Comparison on {Path(options.model).name}",
        "version": __version__,
        "settings": {name: value for name, value in plain(options).items() if value is not None},
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
