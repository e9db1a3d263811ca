"""What all cells of a comparison share: model, samplers, images, feature network, judge; loaded and checked once.

What is used for what:

    every second image of --data      candidates are chosen on it, schedules are calibrated with it
    the other images of --data        shifts are measured with them; they are the reference where none is given
    --seed and the four that follow   candidates (+0), calibration (+1, +2), shift (+3, +4)
    --seeds                           what is reported
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nag.corrections.text import Method
from nag.files import read_json
from nag.network.regressor import NoiseLevelRegressor, fingerprint
from nag.noise.named import make_scheduler
from nag.noise.read import read_settings
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
    states_of,
    why_not,
)
from nag.quality.measures import check_enough
from nag.quality.reference import ReferenceFeatures, fingerprint_of_images, reference_features
from nag.quality.sampling import Sampled, sample_features
from nag.shift import ForwardReference
from nag.shift.calls import main_network
from nag.shift.forward import told_by

__all__ = ["SETTINGS_FILE", "Images", "Stage", "load_stage"]

SETTINGS_FILE = "settings.json"
SHOWN = 16  # samples of a cell that the report shows
SETTINGS = (  # options that the numbers of a cell depend on
    "guidance_scale",
    "eta",
    "num_samples",
    "seeds",
    "seed",
    "tune_samples",
    "num_images",
    "calibration_samples",
    "shift_samples",
    "resamples",
    "mixed_precision",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Held-out images `(M, C, H, W)` in [-1, 1], as states of the pipeline `(M, *shape)`, their classes `(M,)` where a regressor
    needs them, and their captions.
    """

    images: Tensor
    states: Tensor
    labels: Tensor | None
    prompts: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """All that the cells of a comparison share.

    Args:
        options: of the command.
        pipe: the pipeline, on its device; its scheduler is replaced for each cell.
        schedulers: the samplers by their short names.
        network: the feature network.
        reference: what samples are compared with.
        tuning_reference: what candidates are compared with.
        choosing: images that choose: for calibrations.
        judging: images that judge: for shifts.
        judge: regressor that measures shifts, or None.
        conditions: what the samples are to show.
        built: the arguments of every candidate, by its label.
        forward: the estimates of held-out images at the levels of a sampler, kept from cell to cell.
    """

    options: Any
    pipe: Any
    schedulers: Mapping[str | None, Any]
    network: Any
    reference: ReferenceFeatures
    tuning_reference: ReferenceFeatures
    choosing: Images
    judging: Images
    judge: Any | None
    conditions: Conditions
    built: dict[str, dict[str, Any]]
    forward: dict[str, ForwardReference] = field(default_factory=dict)

    def arguments(self, method: Method) -> dict[str, Any]:
        """A method's arguments for the pipeline, with those of the command; a calibration is still to be added."""
        return given(eta=self.options.eta) | self.built[method.label]

    def told(self, regressor: Any, images: Images) -> Any:
        """The estimator under the captions of some images, for pipelines that take prompts."""
        if images.prompts is None:
            return None
        return told_by(self.pipe, regressor, {"prompt": list(images.prompts)}, len(images.prompts))

    def use(self, scheduler: str | None) -> None:
        """Puts a fresh scheduler into the pipeline."""
        self.pipe.scheduler = make_scheduler(None, self.schedulers[scheduler])

    def sample(self, arguments: dict[str, Any], seed: int, count: int) -> Sampled:
        """Samples of one seed."""
        return sample_features(
            self.pipe,
            self.network,
            num_samples=count,
            seed=seed,
            arguments=arguments,
            batch_size=self.options.batch_size,
            each=self.conditions.of(count),
            keep_images=SHOWN,
            mixed_precision=self.options.mixed_precision,
        )


def load_stage(options: Any, methods: Sequence[Method], device: Any) -> tuple[Stage, dict[str, Any]]:
    """Loads everything, checks that it fits, and says what the results depend on.

    Nothing is written before everything is checked.

    Args:
        options: of the command.
        methods: all of the comparison.
        device: where the networks run; None for the default.

    Raises:
        ValueError: if something does not fit or is missing, there are too few samples or images, or the output folder holds
            results of other settings.
    """
    pipe = load_pipeline(options.model, options.regressor, device)
    schedulers = configured_schedulers(
        options.schedulers, pipe.scheduler, read_assignments(options.scheduler_config)
    )
    network = feature_network(
        options.model,
        options.features,
        size=options.feature_size,
        channels=options.feature_channels,
        device=pipe.device,
    )
    judge = _judge(options, pipe)
    with_labels = any(one is not None and one.config.uses_class for one in (pipe.regressor, judge))
    images, labels = held_out_images(pipe, options.data, with_labels=with_labels, exact=True)
    conditions = conditions_of(pipe, image_table(pipe, options.data, with_labels=False), options.prompts)
    check_sampler(
        pipe, schedulers.values(), conditions, guidance_scale=options.guidance_scale, eta=options.eta
    )
    built = _built(pipe, schedulers, methods, conditions, options)
    if len(images) < 16:
        raise ValueError(f"data must hold at least 16 images, got {len(images)}. Use some hundreds.")
    states = states_of(pipe, images, conditions)
    prompts = conditions.of(len(images))["prompt"] if conditions.prompts is not None else None
    choosing, judging = (
        Images(
            images=images[k::2],
            states=states[k::2],
            labels=None if labels is None else labels[k::2],
            prompts=None if prompts is None else tuple(prompts[k::2]),
        )
        for k in (0, 1)
    )
    real = judging.images
    if options.reference is not None:
        real, _ = held_out_images(pipe, options.reference, with_labels=False, exact=True)
    size = network(real[:1].to(pipe.device)).shape[1]
    check_enough(options.num_samples, size)
    tunes = any(len(method.candidates()) > 1 for method in methods)
    if tunes and options.tune_samples <= size:
        raise ValueError(
            f"tune_samples must be more than the {size} features of the network for a Frechet distance, got "
            f"{options.tune_samples}. Draw at least {size + 1}, or give single values instead of candidates."
        )
    for name, found, use in (
        ("reference", real, "to be compared with"),
        ("data", choosing.images, "in each half, one to choose on and one to judge on"),
    ):
        if len(found) <= size and (name == "reference" or tunes):
            raise ValueError(
                f"{name} must hold more than the network's {size} features, at least {size + 1} images {use}, got "
                f"{len(found)}. Use more images, or a network with fewer features."
            )
    shared: dict[str, Any] = {
        "cache_dir": options.output_dir / "reference",
        "batch_size": options.batch_size,
        "device": pipe.device,
    }
    settings: dict[str, Any] = {
        "model": fingerprint(main_network(pipe)),
        "scheduler": read_settings(pipe.scheduler),
        "scheduler_config": read_assignments(options.scheduler_config),
        "features": str(getattr(network, "fingerprint", type(network).__name__)),
        "data": fingerprint_of_images(images),
        "reference": fingerprint_of_images(real),
        "regressor": None if pipe.regressor is None else fingerprint(pipe.regressor),
        "judge": None if judge is None else fingerprint(judge),
    }
    if settings["reference"] == settings["data"]:
        raise ValueError(
            f"reference must not be the images of data, got {options.reference} for both: what is chosen on may not judge. "
            "Leave --reference out, and half of --data judges."
        )
    settings |= {name: getattr(options, name) for name in SETTINGS}
    settings["resampled_within_classes"] = conditions.classes is not None  # errors of older folders are not
    _refuse_other(options.output_dir, settings)
    stage = Stage(
        options=options,
        pipe=pipe,
        schedulers=schedulers,
        network=network,
        reference=reference_features(real, network, data_fingerprint=settings["reference"], **shared),
        tuning_reference=reference_features(choosing.images, network, **shared),
        choosing=choosing,
        judging=judging,
        judge=judge,
        conditions=conditions,
        built=built,
    )
    return stage, settings


def _judge(options: Any, pipe: Any) -> Any | None:
    """The regressor that measures shifts."""
    if not options.shift:
        return None
    if options.judge is None:
        return pipe.regressor
    judge = NoiseLevelRegressor.from_pretrained(options.judge).to(pipe.device).float().eval()
    if judge.config.kind == "frozen":
        judge.attach_backbone(main_network(pipe))
    return judge


def _built(
    pipe: Any,
    schedulers: Mapping[str | None, Any],
    methods: Sequence[Method],
    conditions: Conditions,
    options: Any,
) -> dict[str, dict[str, Any]]:
    """The arguments of all candidates, by their labels.

    Raises:
        ValueError: if no scheduler can run one of them; one that some cannot run is marked in its cells.
    """
    found = {}
    for candidate in (one for method in methods for one in method.candidates()):
        arguments = given(guidance_scale=options.guidance_scale) | candidate.arguments(pipe.device)
        found[candidate.label] = arguments
        reasons = [_reason(pipe, made, candidate, conditions, arguments) for made in schedulers.values()]
        if all(reasons):
            raise ValueError(f"{candidate.label!r}: {reasons[0]}")
    return found


def _reason(
    pipe: Any, scheduler: Any, candidate: Method, conditions: Conditions, arguments: dict[str, Any]
) -> str | None:
    """Why a method cannot run with a scheduler, or None."""
    if candidate.calibrated and pipe.regressor is None:
        return (
            "regressor must be given to calibrate, got none beside the model. Train one with "
            "`nag finetune regressor` and pass --regressor."
        )
    if not candidate.calibrated:
        return why_not(pipe, scheduler, conditions, arguments)
    made = make_scheduler(None, scheduler)
    made.set_timesteps(10)
    nominal = arguments | {"noise_calibration": [None] * len(made.timesteps)}
    return why_not(pipe, scheduler, conditions, nominal)


def _refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    """Raises unless the folder is free or holds results of these settings."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {str(folder)!r}. Name a folder.")
    path = folder / SETTINGS_FILE
    if not path.exists():
        others = (
            [entry.name for entry in folder.iterdir() if entry.name != "reference" and entry.name[0] != "."]
            if folder.exists()
            else []
        )
        if others:
            raise ValueError(
                f"output_dir must be new, empty, or hold a comparison, got {str(folder)!r} with {others[0]!r}. "
                "Name another folder."
            )
        return
    there, here = read_json(path), json.loads(json.dumps(settings))
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"output_dir must hold results of the same settings, got {name} = {there.get(name)} in {str(folder)!r} "
                f"where {name} is {here.get(name)} now. Results are not mixed: name another folder."
            )
