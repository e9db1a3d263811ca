"""`nag tune`: what helps one sampler, and how much of it, found, confirmed and saved beside the model."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nag.cli.options import (
    FeatureOptions,
    SamplerOptions,
    Scheduler,
    about,
    at_least,
    feature_network,
    fresh_seeds,
    plain,
    sampling,
)

if TYPE_CHECKING:
    from nag.corrections import Correction
    from nag.corrections.tuned import Entry, Sampler
    from nag.quality.bench import Bench
    from nag.quality.meter import Meter
    from nag.quality.reference import ReferenceFeatures
    from nag.quality.sampling import Pace
    from nag.quality.tune import Candidate, Search, Space, Trial

__all__ = ["TuneOptions", "row", "run"]

LISTED = 8
HEAD = f"{'':<66}{'cost':>6} {'samples':>8} {'Frechet':>8} {'plain':>8} {'recall':>7} {'plain':>7}"
SLACK = 1.2  # of the time kept for the confirmation


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SamplerOptions, FeatureOptions):
    """Find weight, interval and form of noise guidance for one sampler, or that none helps; saved beside the model.

    nag tune MODEL --data IMAGES --scheduler ddim --steps 20 --minutes 15
    """

    scheduler: Scheduler = None
    steps: int = 20
    """Sampling steps."""
    forms: tuple[str, ...] = ()
    """What is tried, of classifier_free, corrected, gradient, calibrated (alone, and with the best of the others), student, higs,
    epsilon_scaling, dcw_wavelet. Empty: all that model and scheduler allow, without gradient."""
    student: str | None = None
    """What `nag finetune distill` has made, whose strength is sought. None: student/ beside the model, if there is one."""
    reference: str | None = None
    """Images that samples are compared with: a folder or a parquet file. None: --data. Every second one serves the
    search, the others the confirmation."""
    num_images: int = 300
    """Images of --data that schedules are calibrated with."""
    num_samples: int | None = None
    """Samples of a trial that goes the whole way, of which a quarter is drawn first. None: 1000, or 16 for each
    feature of the network."""
    max_trials: int = 40
    """Trials of weight, interval and form."""
    minutes: float = 15.0
    """Time for everything; the search ends in time for the confirmation, and is refused where it could try too little."""
    max_recall_loss: float = 0.05
    """Share of the recall of plain sampling at equal cost that may be lost."""
    confirm_seeds: tuple[int, ...] = (101, 102)
    """Seeds of the confirmation; --seed must not be one of them."""
    confirm_samples: int | None = None
    """Samples of the confirmation per seed. None: 1000, or what 16 for each feature of the network take."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast precision of the samples. Schedules are calibrated in float32."""
    batch_size: int = 250
    """Samples per batch."""
    output_dir: Path | None = None
    """Folder of the result, noise_guidance.json. None: the model's."""
    overwrite: bool = False
    """Replace the entry of the same sampler in that file."""


def run(options: TuneOptions) -> Entry:
    """Searches, confirms, prints and saves."""
    from tqdm.auto import tqdm

    from nag.corrections.tuned import FILE_NAME, Sampler, refuse_known, save_entry
    from nag.files import identity_of
    from nag.network.regressor import whole_fingerprint
    from nag.quality.bench import (
        configured_schedulers,
        open_bench,
        read_assignments,
        scheduler_line,
    )
    from nag.quality.meter import Meter
    from nag.quality.tune import Search, open_study
    from nag.quality.tune_report import write_tuned
    from nag.seams.attach import sampler_of
    from nag.shift.calls import main_network
    from nag.shift.images import fingerprint_of_images

    deadline = time.monotonic() + 60 * options.minutes
    _check(options)
    output = (options.output_dir or Path(options.model)) / FILE_NAME
    bench = open_bench(
        options.model,
        options,
        **sampling(options),
        batch_size=options.batch_size,
        mixed_precision=options.mixed_precision,
    )
    pipe, settings = bench.pipeline, read_assignments(options.scheduler_config)
    (pipe.scheduler,) = configured_schedulers([options.scheduler], pipe.scheduler, settings).values()
    bench.check_sampler([pipe.scheduler])
    sampler = Sampler.of(pipe.scheduler, options.steps, **sampler_of(pipe, bench.arguments))
    refuse_known(output, sampler, overwrite=options.overwrite)
    print(scheduler_line(pipe.scheduler))
    space = _space(bench, options)
    if options.max_trials < len(space.starts()):
        raise ValueError(
            f"max_trials must be at least {len(space.starts())}, with which every form is tried, got "
            f"{options.max_trials}. Raise it, or name fewer --forms."
        )
    folder = None if bench.cache_dir is None else bench.cache_dir / "tune"
    network = feature_network(options, pipe.device)
    bench, fresh = _images(replace(bench, network=network), options, folder)
    sizes, confirm_samples = _sizes(options, fresh.num_features)
    identity = {
        "sampler": asdict(sampler),
        "space": asdict(space),
        "sizes": sizes,
        "seed": options.seed,
        "max_recall_loss": options.max_recall_loss,
        "mixed_precision": options.mixed_precision,
        "unet": whole_fingerprint(main_network(pipe)),
        "regressor": None if pipe.regressor is None else whole_fingerprint(pipe.regressor),
        "images": fingerprint_of_images(bench.images),
        "references": [bench.reference.fingerprint, fresh.fingerprint],
    }
    name = identity_of(identity)[:16]
    meter = Meter(
        bench,
        num_inference_steps=options.steps,
        sizes=sizes,
        seed=options.seed,
        folder=None if folder is None else folder / name,
    )
    confirmed = len(options.confirm_seeds) * confirm_samples
    search = Search(
        meter=meter,
        space=space,
        study=open_study(None if folder is None else folder / "journal.log", name),
        rungs=len(sizes),
        max_trials=options.max_trials,
        max_recall_loss=options.max_recall_loss,
        seed=options.seed,
        time_left=lambda: deadline - time.monotonic() - SLACK * meter.confirm_seconds(confirmed),
        report=lambda trial: tqdm.write(row(trial)),
    )
    pace = bench.pace()
    least, whole = search.seconds(pace, SLACK * confirmed)
    left = deadline - time.monotonic()
    print(
        f"{options.max_trials} trials and the confirmation need {about(whole)}; {about(least)} until every form is tried."
    )
    if least > left:
        raise ValueError(
            f"minutes must be enough to try every form and to confirm the best, which needs {about(least)}, got "
            f"{options.minutes:g}. Raise it, lower --num_samples or --confirm_samples, or name fewer --forms."
        )
    if whole > left:
        print(f"In {options.minutes:g} minutes there will be fewer trials.")
    print(HEAD)
    trials = search.run()
    if not trials:
        raise _too_short(search, pace, SLACK * confirmed, options)
    print(f"\nBest of {len(trials)} trials, beside plain sampling at equal cost on the same noise:")
    print("\n".join([HEAD, *map(row, trials[:LISTED])]))
    entry = _confirmed(meter, trials, sampler, options, confirm_samples, fresh)
    if not entry.helps and search.untried():
        raise _too_short(search, pace, SLACK * confirmed, options)
    save_entry(output, entry, overwrite=options.overwrite)
    page = write_tuned(
        entry, output.parent, samples=_samples(meter, trials[0].candidate, entry), settings=plain(options)
    )
    print(f"\nVerdict for {sampler}: {entry.reason}\nWritten: {output}\nReport: {page}")
    return entry


def _too_short(search: Search, pace: Pace, confirmed: float, options: TuneOptions) -> RuntimeError:
    """There is no verdict yet: "leave it off" is said only when every form was tried."""
    least, _ = search.seconds(pace, confirmed)
    return RuntimeError(
        f"minutes must be enough to try {', '.join(search.untried())}, got {options.minutes:g}: not enough time. Needs "
        f"{about(least)} more; start again: what was measured is kept."
    )


def _confirmed(
    meter: Meter,
    trials: list[Trial],
    sampler: Sampler,
    options: TuneOptions,
    confirm_samples: int,
    fresh: ReferenceFeatures,
) -> Entry:
    """The verdict on the best trial, from fresh seeds and other real images."""
    from nag.corrections import Calibrated
    from nag.corrections.tuned import Entry
    from nag.quality.tune import decide

    def figures(trial: Trial) -> dict[str, Any]:
        values = {"candidate": str(trial.candidate), "cost": trial.cost, "plain_steps": trial.plain_steps}
        if trial.readings:
            values |= {"reading": asdict(trial.readings[-1]), "plain": asdict(trial.plain[-1])}
        return values

    best, allowed, chosen = trials[0], options.max_recall_loss, tuple[Any, ...]()
    evidence: dict[str, Any] = {
        "trials": len(trials),
        "seed": options.seed,
        "samples": meter.sizes,
        "max_recall_loss": allowed,
        "features": fresh.fingerprint["network"],
        "best": [figures(trial) for trial in trials[:LISTED]],
    }
    if best.recall_loss > allowed or best.difference >= 0:
        helps = False
        reason = f"leave it off: no trial was better than plain sampling at equal cost with {1 - allowed:.0%} of its recall."
    else:
        print(f"\nConfirming on fresh seeds: {best.candidate}")
        found = meter.confirm(best.candidate, options.confirm_seeds, confirm_samples, fresh)
        helps, reason = decide(found, allowed)
        evidence["choice"] = figures(best)
        evidence["confirmed"] = asdict(found) | {
            "seeds": options.confirm_seeds,
            "mixed_precision": options.mixed_precision,
        }
        if helps:
            table = [Calibrated(meter.table(best.candidate))] if best.candidate.calibrated else []
            chosen = (*(_beside(one, options) for one in best.candidate.corrections if one.on), *table)
    return Entry(sampler=sampler, corrections=chosen, helps=helps, reason=reason, evidence=evidence)


def _samples(meter: Meter, choice: Candidate, entry: Entry) -> dict[str, Any]:
    """Images of plain sampling at equal cost and of the choice, from the same noise, for the page."""
    from nag.quality.tune import Candidate

    found = entry.evidence.get("confirmed")
    if found is None:
        return {}
    others = {"plain": Candidate(num_inference_steps=found["plain_steps"]), "choice": choice}
    seed = found["seeds"][0]
    return {
        name: meter.bench.sample(meter.arguments(one), seed, 8, keep_images=8).images
        for name, one in others.items()
    }


def _beside(one: Correction, options: TuneOptions) -> Correction:
    """A correction whose network is named as it lies beside the model, so that both can be moved together."""
    from nag.corrections import Merged

    model = Path(options.model).resolve()
    if isinstance(one, Merged) and Path(str(one.network)).is_relative_to(model):
        return replace(one, network=str(Path(str(one.network)).relative_to(model)))
    return one


def row(trial: Trial) -> str:
    """A trial in one line: candidate, cost, samples, and its quality beside that of plain sampling."""
    if not trial.readings:
        return f"{trial.candidate!s:<66}{trial.cost:>6.1f}  diverged"
    own, plain = trial.readings[-1], trial.plain[-1]
    return (
        f"{trial.candidate!s:<66}{trial.cost:>6.1f} {own.num_samples:>8} {own.frechet:>8.3f} {plain.frechet:>8.3f} "
        f"{own.recall:>7.3f} {plain.recall:>7.3f}"
    )


def _check(options: TuneOptions) -> None:
    at_least(options, steps=1, max_trials=1, num_images=1, batch_size=1)
    if not 0 <= options.max_recall_loss <= 1:
        raise ValueError(
            f"max_recall_loss must lie in [0, 1], got {options.max_recall_loss}. It is a share: 0.05 is 5 %."
        )
    fresh_seeds("confirm_seeds", options.confirm_seeds, (options.seed,))
    if options.output_dir is None and not Path(options.model).is_dir():
        raise ValueError(
            f"output_dir must be given for a model from the Hub, got {options.model!r}. Name a folder."
        )


def _space(bench: Bench, options: TuneOptions) -> Space:
    """What can be searched on this model and scheduler; what was asked for must be possible."""
    from nag.corrections import NoiseGuidance
    from nag.corrections.base import PURE_NOISE
    from nag.corrections.text import parse_method
    from nag.noise.read import read_levels
    from nag.quality.tune import OTHERS, Space

    scheduler = bench.with_timesteps(bench.pipeline.scheduler, options.steps)
    levels = read_levels(scheduler)

    beside = Path(options.model, "student")
    student = options.student or (str(beside) if beside.is_dir() else "")

    def why_not(form: str) -> str | None:
        if form == "calibrated" and bench.regressor is None:
            return (
                "regressor must be given for the form 'calibrated', got None. Train one with "
                "`nag finetune regressor` and pass --regressor."
            )
        if form == "student" and not student:
            return "student must be given for the form 'student', got None. Make one with `nag finetune distill`."
        if form == "calibrated":
            arguments: dict[str, Any] = {"noise_calibration": [None] * len(levels)}
        elif form in OTHERS:
            text, _, high, _ = OTHERS[form]
            arguments = parse_method(text.format(student=student, value=high)).arguments()
        else:
            arguments = {"corrections": [NoiseGuidance(scale=1.0, mode=form, interval=(None, None))]}
        return bench.why_not(scheduler, arguments, steps=options.steps)

    every = ("classifier_free", "corrected", "calibrated", *OTHERS)
    forms = list[str]()
    for form in options.forms or every:
        reason = why_not(form)
        if reason is None:
            forms.append(form)
        elif options.forms:
            raise ValueError(reason)
    if not forms:
        raise ValueError(
            "forms must leave something to search for this model, got none that it can do. A network that predicts "
            "x_0 needs a regressor: train one with `nag finetune regressor` and pass --regressor."
        )
    usable = {round(level, 6) for level in levels.log_snr.tolist() if level >= PURE_NOISE}
    return Space(
        num_inference_steps=options.steps,
        log_snr=tuple(sorted(usable)),
        modes=tuple(form for form in forms if form != "calibrated" and form not in OTHERS),
        calibrates="calibrated" in forms,
        others=tuple(form for form in forms if form in OTHERS),
        student=str(Path(student).resolve()) if Path(student).is_dir() else student,
    )


def _images(bench: Bench, options: TuneOptions, folder: Path | None) -> tuple[Bench, ReferenceFeatures]:
    """The bench with images to calibrate with and the search's real images, and those of the confirmation."""
    from nag.quality.bench import held_out_images
    from nag.quality.reference import reference_features

    pipe = bench.pipeline
    with_labels = pipe.regressor is not None and pipe.regressor.config.uses_class
    if options.reference is None:
        table = held_out_images(pipe, options, with_labels=with_labels)
        bench = bench.holding(table, slice(0, 2 * options.num_images, 2))  # the rest confirms
    else:
        bench = bench.holding(held_out_images(pipe, options, options.num_images, with_labels=with_labels))
        table = held_out_images(pipe, replace(options, data=options.reference), with_labels=False)
    real = table.tensor()
    search, fresh = (
        reference_features(half, bench.network, cache_dir=folder, device=pipe.device, progress=True)
        for half in (real[::2], real[1::2])
    )
    features = fresh.num_features
    if fresh.num_images <= features:
        raise ValueError(
            f"reference must hold at least {2 * (features + 1)} images for a network of {features} features, half of them "
            f"for the confirmation, got {len(real)}. Use more images, or a network with fewer features."
        )
    return replace(bench, reference=search), fresh


def _sizes(options: TuneOptions, features: int) -> tuple[tuple[int, ...], int]:
    """Samples of each rung, and of each seed of the confirmation."""
    from nag.quality.measures import PER_FEATURE, too_few

    needed, seeds = PER_FEATURE * features, len(options.confirm_seeds)
    most = max(1000, needed) if options.num_samples is None else options.num_samples
    too_few(most // 4, features, "a quarter of num_samples")
    confirmed = max(1000, -(-needed // seeds)) if options.confirm_samples is None else options.confirm_samples
    if few := too_few(seeds * confirmed, features, f"confirm_samples for {seeds} seeds"):
        raise ValueError(f"{few} Draw more, or use a network with fewer features: `nag features` makes one.")
    return (most // 4, most // 2, most), confirmed
