"""`nag tune`: weight, interval and form of noise guidance for one sampler, found, confirmed and saved beside the model."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nag.cli.tune_options import FORMS, TuneOptions
from nag.corrections import Calibrated, NoiseGuidance
from nag.corrections.interval import PURE_NOISE
from nag.corrections.tuned import FILE_NAME, Entry, Sampler, refuse_known, save_entry
from nag.network.regressor import fingerprint
from nag.noise.named import make_scheduler
from nag.noise.read import read_levels
from nag.quality.bench import (
    Conditions,
    check_sampler,
    conditions_of,
    configured_schedulers,
    feature_network,
    given,
    held_out_images,
    image_table,
    load_pipeline,
    read_assignments,
    scheduler_line,
    states_of,
    why_not,
)
from nag.quality.measures import check_enough
from nag.quality.reference import ReferenceFeatures, fingerprint_of_images, reference_features
from nag.quality.tuning import Search, Space, decide
from nag.quality.tuning_bench import PipelineBench
from nag.quality.tuning_journal import Candidate, Journal, Trial
from nag.seams.attach import sampler_of
from nag.shift.calls import main_network
from nag.shift.forward import told_by

__all__ = ["run", "trial_table"]

LISTED = 8
HEAD = f"{'':<66}{'cost':>6} {'samples':>8} {'Frechet':>8} {'plain':>8} {'recall':>7} {'plain':>7}"
SLACK = 1.2  # of the time kept for the confirmation


def run(options: TuneOptions) -> Entry:
    """Searches, confirms, prints and saves.

    Raises:
        ValueError: if an option is wrong, or the time is too short for the confirmation.
        FileExistsError: if the output holds an entry for this sampler that may not be replaced.
        RuntimeError: if the time was too short for any trial.
    """
    begin = time.monotonic()
    _check(options)
    output = _output(options)
    pipe = load_pipeline(options.model, options.regressor, options.device)
    settings = read_assignments(options.scheduler_config)
    (pipe.scheduler,) = configured_schedulers([options.scheduler], pipe.scheduler, settings).values()
    conditions = conditions_of(pipe, image_table(pipe, options.data, with_labels=False), options.prompts)
    check_sampler(pipe, [pipe.scheduler], conditions, guidance_scale=options.guidance_scale, eta=options.eta)
    asked = given(guidance_scale=options.guidance_scale, eta=options.eta)
    sampler = Sampler.of(pipe.scheduler, options.steps, **sampler_of(pipe, asked))
    refuse_known(output, sampler, overwrite=options.overwrite)
    print(scheduler_line(pipe.scheduler))
    space = _space(pipe, conditions, options)
    network = feature_network(
        options.model,
        options.features,
        size=options.feature_size,
        channels=options.feature_channels,
        device=pipe.device,
    )
    images, image_labels, references = _images(pipe, network, options)
    states = states_of(pipe, images, conditions)
    prompts = conditions.of(len(images)) if conditions.prompts is not None else None
    sizes = _sizes(options, references[0].num_features)
    identity = {
        "sampler": asdict(sampler),
        "space": asdict(space),
        "sizes": sizes,
        "seed": options.seed,
        "max_recall_loss": options.max_recall_loss,
        "mixed_precision": options.mixed_precision,
        "unet": fingerprint(main_network(pipe)),
        "regressor": None if pipe.regressor is None else fingerprint(pipe.regressor),
        "images": fingerprint_of_images(images),
        "references": [reference.fingerprint for reference in references],
    }
    words = json.dumps(identity, sort_keys=True).encode()
    folder = options.output_dir / hashlib.sha256(words).hexdigest()[:16]
    bench = PipelineBench(
        pipe,
        network,
        references[0],
        num_inference_steps=options.steps,
        sizes=sizes,
        seed=options.seed,
        conditions=conditions,
        images=states,
        image_labels=image_labels,
        told=None if prompts is None else told_by(pipe, pipe.regressor, prompts, len(images)),
        guidance_scale=options.guidance_scale,
        eta=options.eta,
        batch_size=options.batch_size,
        mixed_precision=options.mixed_precision,
        cache_dir=folder,
        progress=True,
    )
    bench.read(Candidate(num_inference_steps=options.steps), 0)

    def kept() -> float:
        return SLACK * bench.confirm_seconds(len(options.confirm_seeds), options.confirm_samples)

    if kept() > 60 * options.time_limit - (time.monotonic() - begin):
        raise ValueError(
            f"time_limit must leave time for the confirmation, which takes up to {kept() / 60:.1f} minutes, got "
            f"{options.time_limit:g}. Raise it, or lower --confirm_samples."
        )
    print(HEAD)
    trials = Search(
        bench=bench,
        space=space,
        journal=Journal(folder / "journal.json"),
        rungs=len(sizes),
        max_trials=options.max_trials,
        max_recall_loss=options.max_recall_loss,
        seed=options.seed,
        time_left=lambda: 60 * options.time_limit - (time.monotonic() - begin) - kept(),
        report=lambda trial: tqdm.write(_row(trial)),
    ).run()
    if not trials:
        raise RuntimeError(
            f"time_limit must leave time for a trial, got {options.time_limit:g}. Start again with a longer one: what was "
            "measured is kept."
        )
    print(f"\nBest of {len(trials)} trials, beside plain sampling at equal cost on the same noise:")
    print(trial_table(trials[:LISTED]))
    entry = _confirmed(bench, trials, sampler, options, references[1])
    save_entry(output, entry, overwrite=options.overwrite)
    print(f"\nVerdict for {sampler}: {entry.reason}\nWritten: {output}")
    return entry


def _confirmed(
    bench: PipelineBench,
    trials: list[Trial],
    sampler: Sampler,
    options: TuneOptions,
    reference: ReferenceFeatures,
) -> Entry:
    """The verdict on the best trial, from fresh seeds and other real images."""
    evidence: dict[str, Any] = {
        "trials": len(trials),
        "seed": options.seed,
        "samples": bench.sizes,
        "max_recall_loss": options.max_recall_loss,
        "features": bench.reference.fingerprint["network"],
        "best": [_plain(trial) for trial in trials[:LISTED]],
    }
    best = trials[0]
    if best.recall_loss > options.max_recall_loss or best.difference >= 0:
        reason = (
            "leave it off: no trial was better than plain sampling at equal cost with "
            f"{1 - options.max_recall_loss:.0%} of its recall."
        )
        return Entry(sampler=sampler, corrections=(), helps=False, reason=reason, evidence=evidence)
    choice = best.candidate
    print(f"\nConfirming on fresh seeds: {choice}")
    found = bench.confirm(choice, options.confirm_seeds, options.confirm_samples, reference)
    helps, reason = decide(found, options.max_recall_loss)
    evidence["choice"] = _plain(best)
    evidence["confirmed"] = asdict(found) | {
        "seeds": options.confirm_seeds,
        "mixed_precision": options.mixed_precision,
    }
    table = [Calibrated(bench.table(choice))] if choice.calibrated else []
    chosen = (choice.guidance, *table) if helps else ()
    return Entry(sampler=sampler, corrections=chosen, helps=helps, reason=reason, evidence=evidence)


def trial_table(trials: list[Trial]) -> str:
    """One line per trial: candidate, cost, samples, and its quality beside that of plain sampling."""
    return "\n".join([HEAD, *(_row(trial) for trial in trials)])


def _row(trial: Trial) -> str:
    if not trial.readings:
        return f"{trial.candidate!s:<66}{trial.cost:>6.1f}  diverged"
    own, plain = trial.readings[-1], trial.plain[-1]
    return (
        f"{trial.candidate!s:<66}{trial.cost:>6.1f} {own.num_samples:>8} {own.frechet:>8.3f} {plain.frechet:>8.3f} "
        f"{own.recall:>7.3f} {plain.recall:>7.3f}"
    )


def _plain(trial: Trial) -> dict[str, Any]:
    """A trial as the result file keeps it."""
    values = {"candidate": str(trial.candidate), "cost": trial.cost, "plain_steps": trial.plain_steps}
    if trial.readings:
        values |= {"reading": asdict(trial.readings[-1]), "plain": asdict(trial.plain[-1])}
    return values


def _check(options: TuneOptions) -> None:
    for name in ("steps", "max_trials", "num_images", "confirm_samples", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}.")
    if not 0 <= options.max_recall_loss <= 1:
        raise ValueError(
            f"max_recall_loss must lie in [0, 1], got {options.max_recall_loss}. It is a share: 0.05 is 5 %."
        )
    if not (math.isfinite(options.time_limit) and options.time_limit > 0):
        raise ValueError(f"time_limit must be positive minutes, got {options.time_limit}.")
    if not options.confirm_seeds or options.seed in options.confirm_seeds:
        raise ValueError(
            f"confirm_seeds must be seeds that took no part in the search, got {options.confirm_seeds} with seed "
            f"{options.seed}. Take others."
        )
    if len(set(options.confirm_seeds)) < len(options.confirm_seeds):
        raise ValueError(
            f"confirm_seeds must differ from each other, got {options.confirm_seeds}. A seed twice adds no sample."
        )
    if min(options.seed, *options.confirm_seeds) < 0:
        raise ValueError(
            f"seeds must be at least 0, got {min(options.seed, *options.confirm_seeds)}. Take others."
        )
    unknown = [form for form in options.forms if form not in FORMS]
    if unknown:
        raise ValueError(f"forms must be of {', '.join(FORMS)}, got {', '.join(unknown)}.")


def _output(options: TuneOptions) -> Path:
    if options.output is not None:
        return options.output
    if not Path(options.model).is_dir():
        raise ValueError(
            f"output must be given for a model from the Hub, got {options.model!r}. Name a file."
        )
    return Path(options.model) / FILE_NAME


def _space(pipe: Any, conditions: Conditions, options: TuneOptions) -> Space:
    """What can be searched on this model and scheduler; what was asked for must be possible."""
    scheduler = make_scheduler(None, pipe.scheduler)
    scheduler.set_timesteps(options.steps)
    levels = read_levels(scheduler)

    def allowed(form: str) -> bool:
        if form == "calibrated":
            arguments: dict[str, Any] = {"noise_calibration": [None] * len(levels)}
        else:
            arguments = {"corrections": [NoiseGuidance(scale=1.0, mode=form, interval=(None, None))]}
        reason = why_not(pipe, scheduler, conditions, arguments, steps=options.steps)
        if form == "calibrated" and pipe.regressor is None:
            reason = (
                "regressor must be given for the form 'calibrated', got None. Train one with "
                "`nag finetune regressor` and pass --regressor."
            )
        if reason is not None and options.forms:
            raise ValueError(reason)
        return reason is None

    asked = options.forms or tuple(form for form in FORMS if form != "gradient")
    forms = [form for form in asked if allowed(form)]
    usable = {round(level, 6) for level in levels.log_snr.tolist() if level >= PURE_NOISE}
    return Space(
        num_inference_steps=options.steps,
        log_snr=tuple(sorted(usable)),
        modes=tuple(form for form in forms if form != "calibrated"),
        calibrates="calibrated" in forms,
    )


def _images(pipe: Any, network: Any, options: TuneOptions) -> tuple[Any, Any, list[ReferenceFeatures]]:
    """Images and labels to calibrate with, and the real images' features for the search and for the confirmation."""
    with_labels = pipe.regressor is not None and pipe.regressor.config.uses_class
    if options.reference is None:
        real, real_labels = held_out_images(pipe, options.data, with_labels=with_labels, exact=True)
        images, labels = real[::2], None if real_labels is None else real_labels[::2]  # the rest confirms
    else:
        images, labels = held_out_images(pipe, options.data, options.num_images, with_labels=with_labels)
        real, _ = held_out_images(pipe, options.reference, with_labels=False, exact=True)
    images, labels = images[: options.num_images], None if labels is None else labels[: options.num_images]
    references = [
        reference_features(half, network, cache_dir=options.output_dir, device=pipe.device, progress=True)
        for half in (real[::2], real[1::2])
    ]
    fewest, features = references[1].num_images, references[0].num_features
    if fewest <= features:
        raise ValueError(
            f"reference must hold at least {2 * (features + 1)} images for a network of {features} features, half of them "
            f"for the confirmation, got {len(real)}. Use more images, or a network with fewer features."
        )
    return images, labels, references


def _sizes(options: TuneOptions, features: int) -> tuple[int, ...]:
    """Samples of each rung; at few samples per feature a Frechet distance says little."""
    needed = 4 * (features + 1)
    most = max(1000, 16 * features) if options.num_samples is None else options.num_samples
    if most < needed:
        raise ValueError(
            f"num_samples must be at least {needed} for a network of {features} features, for a quarter is drawn first, "
            f"got {most}. Draw more, or use a network with fewer features."
        )
    check_enough(options.confirm_samples * len(options.confirm_seeds), features)
    return most // 4, most // 2, most
