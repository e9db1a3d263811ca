"""`nag diagnose`: what works with a checkpoint, and with --run the shift of its own sampler and one verdict."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nag.cli.options import ModelOptions, plain
from nag.shift.data import DataOptions

if TYPE_CHECKING:
    from nag.quality.diagnose import Diagnosis
    from nag.quality.verdict import Verdict

__all__ = ["DiagnoseOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(ModelOptions):
    """Begin here: what works with this checkpoint, and the command that mends what is missing; with --run, the shift of its
    sampler and one verdict.

    nag diagnose MODEL --data IMAGES --run --minutes 10 --output_dir outputs/diagnosis
    """

    num_images: int = 4000
    """Images that are used at most."""
    regressor: str | None = None
    """Noise-level regressor: a folder or a Hub id. None: the one beside the model, or in the output folder."""
    prompts: Path | None = None
    """Prompts of a text-to-image model, one in each line. None: the captions of --data."""
    run: bool = False
    """Measure: train a quick regressor if there is none, measure the shift, try a calibration, and write a report."""
    minutes: float = 10.0
    """Time that --run may take; what it does is planned to fit."""
    steps: int = 20
    """Sampling steps of --run."""
    output_dir: Path | None = None
    """Folder of diagnosis.json and of what --run makes. None: nothing is written, and outputs/diagnosis with --run."""
    overwrite: bool = False
    """Replace the files of a folder that is in use."""


TRAINED, FEWEST = 400, 50
"""Steps of a quick regressor, if time allows, and at least."""
BATCH = 64
NEEDED = ("network", "images", "states", "scheduler", "process", "prediction")
THEN = {
    "shift": "This line mends what can be mended:",
    "nothing": "A student that is guided by a weak model may be better:",
    "unclear": "More samples tell:",
    "not measurable": "A regressor of its own tells more:",
}
COLD = 4.0  # the first passes, of a few samples, may take so many times longer for each


def run(options: DiagnoseOptions) -> Diagnosis:
    """Looks, prints what it finds, and measures if asked."""
    from diffusers.utils import logging

    from nag.cli.options import at_least, free_for
    from nag.quality.diagnose import Diagnosis, broken_parts, diagnose, write_diagnosis

    at_least(options, num_images=40, steps=2)
    folder = options.output_dir or (Path("outputs/diagnosis") if options.run else None)
    named = options.regressor
    if folder is not None:
        if options.run:
            free_for(folder, ["report/report.html"], overwrite=options.overwrite)
        if named is None and (folder / "regressor" / "config.json").is_file():
            named = str(folder / "regressor")
    logging.disable_progress_bar()
    try:
        found = diagnose(
            options.model,
            options,
            regressor=named,
            device=options.device,
            num_images=options.num_images if options.run else 100,
        )
    except Exception as error:
        if not Path(options.model).is_dir():
            raise
        broken = Diagnosis(model=options.model, findings=broken_parts(options.model))
        print(broken.table())
        if folder is not None:
            write_diagnosis(broken, folder)
        raise ValueError(
            f"model must be a pipeline that can be opened, got {options.model!r}: "
            f"{'mend what is wrong above' if broken.findings else ' '.join(str(error).split()).rstrip('.')}."
        ) from error
    print(found.table())
    if not options.run:
        print(_next(options, found))
        if folder is not None:
            print(f"Diagnosis: {write_diagnosis(found, folder)}")
        return found
    assert folder is not None
    verdict, figures = _measured(options, found, folder, named)
    path = write_diagnosis(found, folder, verdict=vars(verdict), figures=figures)
    print(f"\nVerdict: {verdict}\nDiagnosis: {path}")
    return found


def _next(options: DiagnoseOptions, found: Diagnosis) -> str:
    """What to do after a look."""
    wrong = [one.name for one in found.findings if one.state == "wrong"]
    if wrong:
        return f"Mend first: {', '.join(wrong)}."
    if not hasattr(found.pipe, "regressor"):
        return f"Next: {_command('blind-check', options)}"
    return f"Next: {_command('diagnose', options, '--run')}"


def _command(words: str, options: DiagnoseOptions, *more: str) -> str:
    import shlex

    return " ".join(["nag", words, shlex.quote(options.model), "--data", shlex.quote(options.data), *more])


def _measured(
    options: DiagnoseOptions, found: Diagnosis, folder: Path, named: str | None
) -> tuple[Verdict, dict[str, Any]]:
    """Trains a regressor if there is none, measures, and writes the report."""
    from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
    from nag.quality.bench import Bench, conditions_of
    from nag.quality.verdict import LEAST, Budget, Verdict, judge, measure_sampler, pass_time
    from nag.shift import write_report
    from nag.shift.calls import sizes
    from nag.shift.page import Answer

    pipe = found.pipe
    blocked = next((one for one in found.findings if one.state == "wrong" and one.name in NEEDED), None)
    if not hasattr(pipe, "regressor"):
        return Verdict(kind="not measurable", sentence="not measurable: it is never told its noise level"), {}
    if blocked is not None or found.seconds is None:
        why = "it could not be asked" if blocked is None else f"{blocked.name}: {blocked.text}"
        return Verdict(kind="not measurable", sentence=f"not measurable: {why}"), {}
    budget = Budget(minutes=options.minutes)
    if budget.samples(found.seconds / COLD, options.steps) < LEAST:
        return _no_time(options, folder, found.seconds / COLD), {}
    rows, quick = slice(None), str(folder / "regressor")
    if pipe.regressor is None or named == quick:
        named, rows = quick, _unseen(options, found)
    if pipe.regressor is None:
        _train(options, found, folder, 0.3 * budget.left)
    regressor = pipe.regressor
    table = found.images
    assert table is not None
    if table.classes is not None and set(table.classes[rows].tolist()) != set(table.classes.tolist()):
        rows = slice(None)  # sorted by class: better images that the head has seen than some classes alone
    bench = Bench(
        pipeline=pipe,
        regressor=regressor.eval(),
        conditions=conditions_of(pipe, options, options.num_images, options.prompts),
        arguments=sizes(pipe, options.resolution),
    ).holding(table, rows)
    each = pass_time(bench)
    if budget.samples(each, options.steps) < LEAST:
        return _no_time(options, folder, each), {}
    measured = measure_sampler(bench, options.steps, budget, each, seed=options.seed)
    kind, sentence = judge(measured.plain, options.steps, measured.calibrated, measured.why_not)
    known = "" if named is None else f" --regressor {named}"
    more = [f"--num_{what} {4 * getattr(measured.plain, f'num_{what}')}" for what in ("samples", "images")]
    beside = "" if Path(options.model).is_dir() else f" --output_dir {folder}"
    follows = {
        "shift": ("calibrate", f"--steps {options.steps} {' '.join(more)}{known}{beside}"),
        "nothing": (
            "finetune distill",
            "--weak train --output_dir " + (f"{options.model}/student" if not beside else "student"),
        ),
        "unclear": ("shift", f"--steps {options.steps} --num_samples 2000 --num_images 1000{known}"),
        "not measurable": ("finetune regressor", f"--kind full --output_dir {folder}/full"),
    }
    if kind == "shift" and "mends" not in sentence:
        follows["shift"] = ("tune", f"--steps {options.steps}{known}")
    words, flags = follows[kind]
    if kind == "nothing":
        sentence += "; a guided student may help"
    verdict = Verdict(kind=kind, sentence=sentence, command=_command(words, options, flags))
    if measured.table is not None:
        measured.table.save(folder)
    path = write_report(
        measured.runs,
        folder / "report",
        title=f"Diagnosis of {Path(options.model).name}",
        answer=Answer(text=f"{sentence[0].upper()}{sentence[1:]}.", then="Next:", command=verdict.command),
        settings={"verdict": sentence, "command": verdict.command, **plain(options)},
        overwrite=options.overwrite,
    )
    print(f"Report: {path}")
    if kind == "shift" and "mends" in sentence:
        call = f'num_inference_steps={options.steps}, noise_calibration="{folder / CALIBRATION_FILE}"'
        print(f"Its table, for this sampler: NAGPipeline.from_pretrained({options.model!r})({call})")
    if budget.left < -0.1 * 60 * options.minutes:
        took = options.minutes - budget.left / 60
        print(
            f"This took {took:.0f} minutes, not {options.minutes:g}: the machine had other work than when a pass was timed."
        )
    figures = {
        name: {
            "mean_shift": one.shift.mean_shift,
            "mean_shift_standard_error": one.shift.mean_shift_standard_error,
            "mean_abs_shift": one.shift.mean_abs_shift,
            "mean_abs_shift_standard_error": one.shift.mean_abs_shift_standard_error,
            "samples": one.shift.num_samples,
            "images": one.shift.num_images,
        }
        for name, one in measured.runs.items()
    }
    return verdict, figures


def _no_time(options: DiagnoseOptions, folder: Path, seconds_per_pass: float) -> Verdict:
    from nag.quality.verdict import Verdict, minutes_needed

    need = max(2 * minutes_needed(seconds_per_pass, options.steps), 1)
    return Verdict(
        kind="not measurable",
        sentence=f"not measurable: not enough time, it needs about {need:.0f} minutes here",
        command=_command("diagnose", options, f"--run --minutes {need:.0f} --output_dir {folder}"),
    )


def _unseen(options: DiagnoseOptions, found: Diagnosis) -> slice:
    """The images that a quick regressor is not trained on: the second half, or all where there is a split to train on."""
    count = len(found.images or ())
    if count < 160:
        raise ValueError(
            f"data must hold at least 160 images to train a regressor and to measure, got {count}. Give more."
        )
    return slice(None) if _split(options) == "train" else slice(count // 2, None)


def _train(options: DiagnoseOptions, found: Diagnosis, folder: Path, seconds: float) -> None:
    """Trains a quick frozen regressor on other images than those that measure."""
    import torch

    from nag.finetune.regressor import RegressorOptions
    from nag.finetune.regressor import run as train
    from nag.network.regressor import NoiseLevelRegressor

    count, seen = len(found.images or ()), _unseen(options, found).start or options.num_images
    steps = int(min(TRAINED, seconds / (1.5 * BATCH * (found.seconds or 1))))
    print(f"\nTraining a frozen regressor, {max(steps, FEWEST)} steps", flush=True)
    before = torch.get_rng_state()
    train(
        RegressorOptions(
            **{item.name: getattr(options, item.name) for item in fields(DataOptions)}
            | {"split": options.split or _split(options)},
            model=options.model,
            output_dir=folder / "regressor",
            overwrite=options.overwrite,
            seed=options.seed,
            max_train_samples=seen,
            held_out_samples=min(1000, seen // 2, count // 2),
            train_batch_size=BATCH,
            max_train_steps=max(steps, FEWEST),
            learning_rate=3e-3,
            lr_warmup_steps=20,
            ema_max_decay=0.99,
            checkpointing_steps=0,
        )
    )
    torch.set_rng_state(before)
    found.pipe.regressor = NoiseLevelRegressor.from_pretrained(folder / "regressor").to(found.pipe.device)


def _split(options: DiagnoseOptions) -> str | None:
    """The split of a folder of parquet files to train on: train, if others are measured with; else that; None for other data."""
    from nag.shift.images import HELD_OUT

    folder = Path(options.data)
    there = [
        name
        for name in ("train", *HELD_OUT)
        if options.split is None and any(folder.glob(f"{name}*.parquet"))
    ]
    return None if not there or there == ["train"] else there[0]
