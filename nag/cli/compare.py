"""`nag compare`: a grid of schedulers, budgets and methods, one file per cell, and the pages that sum it up.

A folder of results belongs to one set of settings, kept in its settings.json: model, data, seeds, numbers of samples.
Schedulers, budgets and methods are not among them, so a comparison can be extended; a run that stops loses at most the
cell it was at. Started by `accelerate launch`, the processes share the cells.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nag.cli.options import (
    Corrections,
    FeatureOptions,
    SamplerOptions,
    Schedulers,
    about,
    at_least,
    feature_network,
    fresh_seeds,
    plain,
    same_flags,
    sampling,
)

if TYPE_CHECKING:
    from nag.corrections.text import Method
    from nag.quality.cells import Comparison
    from nag.quality.comparison import Cell

__all__ = ["CompareOptions", "load", "run"]

SETTINGS_FILE = "settings.json"
PARTS = ("cells", "features", "calibrations")
SIZES = (
    "seeds",
    "num_samples",
    "seed",
    "tune_samples",
    "calibration_samples",
    "shift_samples",
    "resamples",
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SamplerOptions, FeatureOptions):
    """Compare corrections at equal cost, for every scheduler and budget: compare.html, compare.md and compare.json.

    Values divided by | are candidates: the best on the tuning seed is reported, on other seeds.

    nag compare MODEL --data IMAGES --schedulers ddim heun --evaluations 10 20 --corrections "nag:scale=0.5|1" calibrated
    """

    schedulers: Schedulers = ("ddim",)
    evaluations: tuple[int, ...] = (20,)
    """Budgets: network evaluations per sample. Every method takes as many steps as its budget pays for."""
    corrections: Corrections = ("plain", "nag:scale=0.25|0.5|1|2")
    reference: str | None = None
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
    minutes: float | None = None
    """Time that may be taken: a comparison that needs more is refused before it begins. None: any."""
    output_dir: Path = Path("outputs/compare")
    """Folder of the result. Cells that it holds already are not measured again."""
    overwrite: bool = False
    """Begin anew in a folder that is in use."""


def run(options: CompareOptions) -> Path | None:
    """Measures what is missing and writes compare.json, compare.html and compare.md, whose path the first process returns."""
    from tqdm.auto import tqdm

    from nag.corrections.text import parse_methods
    from nag.quality.bench import scheduler_line
    from nag.quality.comparison import cell_name, save_cell

    methods = parse_methods(dict.fromkeys(("plain", *options.corrections)))
    _check(options)
    index, count, device = 0, 1, options.device
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        index, count, device = state.process_index, state.num_processes, device or str(state.device)
    comparison, settings = load(options, methods, device)
    folder = options.output_dir
    if options.overwrite and index == 0:
        for name in PARTS:
            shutil.rmtree(folder / name, ignore_errors=True)
    if count > 1:
        state.wait_for_everyone()
    for name in PARTS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    if index == 0:
        for scheduler in comparison.schedulers.values():
            print(scheduler_line(scheduler))
        if comparison.judging.regressor is None:
            print("The noise shift is not measured: there is no regressor beside the model, or --no_shift.")

    def path_of(scheduler: str, budget: int, method: Method) -> Path:
        return folder / "cells" / f"{cell_name(scheduler, budget, method.label)}.json"

    grid = [
        (scheduler, budget, method)
        for scheduler in options.schedulers
        for budget in options.evaluations
        for method in methods
    ]
    dearest_first = sorted(grid, key=lambda cell: -cell[1])
    missing = [place for place in dearest_first if not _measured(path_of(*place))]
    if index == 0 and missing:
        _plan(options, comparison, missing, len(grid), count)
    paths = [path_of(*place) for place in grid]
    try:
        for place in tqdm(missing[index::count], desc="Cells", unit="cell", disable=index > 0):
            cell = comparison.cell(*place)
            save_cell(path_of(*place), cell)
            tqdm.write(_line(cell))
    except KeyboardInterrupt:
        if index == 0 and any(path.exists() for path in paths):
            _write(options, settings, comparison, [path for path in paths if path.exists()])
        raise
    if index > 0:
        return None
    while not all(path.exists() for path in paths):  # the other processes are still at it
        time.sleep(0.5)
    return _write(options, settings, comparison, paths)


def _measured(path: Path) -> bool:
    """Whether a cell is there, and was not refused: its reason may be gone."""
    from nag.quality.comparison import load_cell

    return path.exists() and load_cell(path).refused is None


def _plan(
    options: CompareOptions, comparison: Comparison, missing: list[Any], total: int, count: int
) -> None:
    """Says how long the missing cells take, judged by a few batches; refuses them where that is too long."""
    from nag.quality.measures import too_few

    reference = comparison.judging.reference
    if few := too_few(options.num_samples, reference.num_features):
        print(few)
    seconds = comparison.seconds(missing, comparison.judging.pace()) / count
    print(f"{len(missing)} of {total} cells are to be measured: needs {about(seconds)}.")
    if options.minutes is not None and seconds > 60 * options.minutes:
        share = 60 * options.minutes / seconds
        raise ValueError(
            f"minutes must be enough for the comparison, which needs {about(seconds)}, got {options.minutes:g}. "
            f"Raise it, lower --num_samples to {int(share * options.num_samples)}, or leave all but "
            f"{int(share * len(missing))} of {len(missing)} cells out."
        )


def load(
    options: CompareOptions, methods: list[Method], device: str | None
) -> tuple[Comparison, dict[str, Any]]:
    """Loads everything, checks that it fits, makes the folder one of these settings, and returns these.

    Nothing is written before everything is checked.
    """
    from nag.files import written_file
    from nag.network.regressor import whole_fingerprint
    from nag.noise.read import read_settings
    from nag.quality.bench import (
        configured_schedulers,
        held_out_images,
        open_bench,
        open_regressor,
        read_assignments,
    )
    from nag.quality.cells import Comparison, Sizes, arguments_of_candidates
    from nag.quality.measures import too_few
    from nag.quality.reference import reference_features
    from nag.shift.calls import main_network
    from nag.shift.images import fingerprint_of_images

    bench = open_bench(
        options.model,
        options,
        **sampling(options) | {"device": device},
        batch_size=options.batch_size,
        mixed_precision=options.mixed_precision,
    )
    pipe, assigned = bench.pipeline, read_assignments(options.scheduler_config)
    schedulers = configured_schedulers(options.schedulers, pipe.scheduler, assigned)
    network = feature_network(options, pipe.device)
    judge = pipe.regressor if options.shift else None
    if options.shift and options.judge is not None:
        judge = open_regressor(pipe, options.judge)
    bench.check_sampler(schedulers.values())
    arguments = arguments_of_candidates(bench, schedulers, methods)
    with_labels = any(one is not None and one.config.uses_class for one in (pipe.regressor, judge))
    table = held_out_images(pipe, options, with_labels=with_labels)
    images = table.tensor()
    real, chosen_on, note = images[1::2], images[::2], table.note
    if options.reference is not None:
        other = held_out_images(pipe, replace(options, data=options.reference), with_labels=False)
        real, note = other.tensor(), f"{note}; samples are compared with {other.note}"
    size = network(images[:1].to(pipe.device)).shape[1]
    too_few(options.num_samples, size)
    if tunes := any(len(method.candidates()) > 1 for method in methods):
        too_few(options.tune_samples, size, "tune_samples")
    for name, found, least in (
        ("data", images, max(16, 2 * (size + 1) if tunes else 0)),
        ("reference", real, size + 1),
    ):
        if len(found) < least:
            raise ValueError(
                f"{name} must hold at least {least} images for a network of {size} features, got {len(found)}. "
                "Use more images, or a network with fewer features."
            )
    settings: dict[str, Any] = {
        "model": whole_fingerprint(main_network(pipe)),
        "scheduler": read_settings(pipe.scheduler),
        "scheduler_config": assigned,
        "features": str(getattr(network, "fingerprint", type(network).__name__)),
        "data": fingerprint_of_images(images),
        "reference": fingerprint_of_images(real),
        "regressor": None if pipe.regressor is None else whole_fingerprint(pipe.regressor),
        "judge": None if judge is None else whole_fingerprint(judge),
    }
    if settings["reference"] == settings["data"]:
        raise ValueError(
            f"reference must not be the images of data, got {options.reference} for both: what is chosen on may not judge. "
            "Leave --reference out, and half of --data judges."
        )
    names = (*SIZES, "guidance_scale", "eta", "num_images", "mixed_precision")
    settings |= {name: getattr(options, name) for name in names}
    settings["resampled_within_classes"] = bench.conditions.classes is not None  # not so in older folders
    if not options.overwrite:
        refuse_other(options.output_dir, settings)

    def features(images: Any) -> Any:
        folder = options.output_dir / "reference"
        return reference_features(
            images, network, cache_dir=folder, batch_size=options.batch_size, device=pipe.device
        )

    def half(k: int, **changes: Any) -> Any:
        rows = slice(k, k + 2 * options.num_images, 2)
        return replace(bench.holding(table, rows), network=network, **changes)

    comparison = Comparison(
        choosing=half(0, reference=features(chosen_on)),
        judging=replace(half(1, reference=features(real), regressor=judge), note=note),
        schedulers=schedulers,
        arguments=arguments,
        sizes=Sizes(**{name: getattr(options, name) for name in SIZES}),
        folder=options.output_dir,
    )
    with written_file(options.output_dir / SETTINGS_FILE) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return comparison, settings


def refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    """Raises unless the folder is free or holds results of these settings."""
    from nag.files import read_json

    path = folder / SETTINGS_FILE
    if not any(entry.is_file() for part in PARTS for entry in (folder / part).glob("*")):
        others = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        others = [
            name for name in others if name not in ("reference", SETTINGS_FILE, *PARTS) and name[0] != "."
        ]
        if others:
            raise ValueError(
                f"output_dir must be new, empty, or hold a comparison, got {str(folder)!r} with {others[0]!r}. "
                "Name another folder, or pass --overwrite."
            )
        return
    there, here = read_json(path), json.loads(json.dumps(settings))
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"output_dir must hold results of the same settings, got {name} = {there.get(name)} in {str(folder)!r} "
                f"where {name} is {here.get(name)} now. Results are not mixed: name another folder, or pass --overwrite."
            )


def _check(options: CompareOptions) -> None:
    """Refuses what can be seen without loading anything."""
    from nag.noise.named import SCHEDULERS
    from nag.quality.cells import DERIVED_SEEDS

    at_least(
        options,
        num_images=8,
        num_samples=2,
        tune_samples=2,
        calibration_samples=8,
        shift_samples=8,
        batch_size=1,
        resamples=2,
    )
    fresh_seeds("seeds", options.seeds, range(options.seed, options.seed + DERIVED_SEEDS))
    unknown = [name for name in options.schedulers if name not in SCHEDULERS]
    if unknown:
        raise ValueError(
            f"schedulers must be of {', '.join(SCHEDULERS)}, got {', '.join(unknown)}. Check the spelling."
        )
    for name in ("schedulers", "evaluations"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values) or 0 in values:
            raise ValueError(
                f"{name} must be one or more, each once and none of them 0, got {list(values)}. Leave the others out."
            )


def _line(cell: Cell) -> str:
    """A cell in one line."""
    where = f"{cell.scheduler} {cell.budget} {cell.method}"
    if cell.refused is not None:
        return f"{where}: refused: {cell.refused}"
    distance = f"Frechet distance {cell.frechet.value:.3f} ± {cell.frechet.standard_error:.3f}"
    chosen = "" if cell.chosen == cell.method else f" chose {cell.chosen},"
    return f"{where}:{chosen} {cell.steps} steps, {cell.evaluations:.4g} evaluations, {distance}"


def _write(
    options: CompareOptions, settings: dict[str, Any], comparison: Comparison, paths: list[Path]
) -> Path:
    """The summary of all cells of the folder: this run's in their order, then those of earlier runs."""
    from nag import __version__
    from nag.files import read_json
    from nag.quality.comparison import cell_name, compare, load_cell
    from nag.quality.comparison_report import write_comparison
    from nag.shift.page import Answer

    folder = options.output_dir
    earlier = sorted(set((folder / "cells").glob("[!.]*.json")) - set(paths))
    cells = [load_cell(path) for path in (*paths, *earlier)]
    reference = comparison.judging.reference
    data = {
        "title": f"Comparison on {Path(options.model).name}",
        "version": __version__,
        "about": same_flags(options),
        "settings": {name: value for name, value in plain(options).items() if value is not None}
        | {"images": comparison.judging.note},
        "fingerprints": settings,
        "num_reference_images": reference.num_images,
        "num_features": reference.num_features,
        "independent_judge": options.judge is not None and settings["judge"] != settings["regressor"],
        "shift_measured": comparison.judging.regressor is not None,
        "rows": compare(cells, reference.num_features),
    }
    names = [cell_name(cell.scheduler, cell.budget, cell.method) for cell in cells]
    path = write_comparison(data, [folder / "features" / f"{name}.safetensors" for name in names], folder)
    print(
        f"\n{Answer(**read_json(folder / 'compare.json')['answer'])}\nWritten: {path}, compare.md, compare.json"
    )
    return path
