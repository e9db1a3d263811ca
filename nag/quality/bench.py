"""A pipeline, an estimator and held-out images: what the measurements are made on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nag.corrections.calibration import NoiseCalibration
from nag.files import cache_folder, parse_json
from nag.load import NAGPipeline
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.named import make_scheduler
from nag.noise.read import read_settings
from nag.quality.sampling import Pace, Sampled, count_cost, sample_features
from nag.seams.attach import sampler_of, split_arguments
from nag.seams.run import autoencoder_of, first_question
from nag.shift.calibrate import calibrate
from nag.shift.calls import (
    Conditions,
    batch_of,
    begun,
    classes_of,
    encoded,
    image_size,
    main_network,
    silent,
    sizes,
    takes,
)
from nag.shift.data import DataOptions
from nag.shift.forward import ForwardReference, Told, forward_reference
from nag.shift.images import CAPTIONS, ImageTable

__all__ = [
    "Bench",
    "configured_schedulers",
    "held_out_images",
    "load_bench",
    "load_pipeline",
    "needed",
    "open_bench",
    "open_regressor",
    "read_assignments",
    "scheduler_line",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A pipeline, held-out images as its states, and what measures them.

    Args:
        pipeline: on its device.
        regressor: the estimator of levels, its network attached; None where none is needed.
        conditions: of the samples.
        images: `(M, *shape)`, as states of the pipeline: in [-1, 1], or encoded by its VAE.
        note: how many images there are in the data, and what was done to them, in words.
        image_labels: `(M,)`, or None for an estimator that knows no classes.
        captions: of the images, or None for a pipeline that takes none.
        network: the feature network.
        reference: the `ReferenceFeatures` that samples are compared with, by that network.
        arguments: of every call of the pipeline: class guidance and eta, where they are set.
        batch_size: samples per call.
        mixed_precision: "no", "bf16" or "fp16": autocast of the samples; estimates are in float32.
        cache_dir: folder of what is measured once for all commands; None measures anew.
        progress: show progress bars.
    """

    pipeline: Any
    regressor: Any
    conditions: Conditions
    images: Any = None
    note: str = ""
    image_labels: Tensor | None = None
    captions: tuple[str, ...] | None = None
    network: Any = None
    reference: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 250
    mixed_precision: str = "no"
    cache_dir: Path | None = None
    progress: bool = True

    def holding(self, table: ImageTable, rows: slice = slice(None)) -> Bench:
        """With some of the images of a table, all of which have the prompts of the conditions in turn."""
        pipe, prompts = self.pipeline, self.conditions.of(len(table)).get("prompt")
        states, labels = table.tensor(range(len(table))[rows]), table.classes
        if autoencoder_of(pipe) is not None:
            call = batch_of(pipe, self.conditions.of(1) | self.sized, 0, 1, num_samples=1, seed=0)
            with silent(pipe):
                at = first_question(pipe, lambda: pipe(**call | {"num_inference_steps": 4}))
            states = encoded(pipe, states, at.u)
        return replace(
            self,
            images=states,
            note=table.note,
            image_labels=None if labels is None else labels[rows],
            captions=None if prompts is None else tuple(prompts[rows]),
        )

    @property
    def sized(self) -> dict[str, Any]:
        """Those of the arguments that say the size of an image."""
        return {k: v for k, v in self.arguments.items() if k not in ("guidance_scale", "eta")}

    def labels(self) -> Tensor | None:
        """The images' classes, if the estimator uses them."""
        return self.image_labels if self.regressor is not None and self.regressor.config.uses_class else None

    def told(self) -> Told | None:
        """The estimator under the images' captions, for pipelines that take prompts."""
        if self.captions is None:
            return None
        asked = {"prompt": list(self.captions)} | self.sized
        return Told(self.pipeline, self.regressor, asked, len(self.captions))

    def sample(self, arguments: Mapping[str, Any], seed: int, count: int, *, keep_images: int = 0) -> Sampled:
        """Samples of one seed, as the feature network sees them."""
        return sample_features(
            self.pipeline,
            self.network,
            num_samples=count,
            seed=seed,
            arguments=arguments,
            batch_size=self.batch_size,
            each=self.conditions.of(count),
            keep_images=keep_images,
            mixed_precision=self.mixed_precision,
            progress=self.progress,
        )

    def pace(self) -> Pace:
        """How long samples take with the pipeline's scheduler: three batches of few steps are drawn, the first to warm up."""
        (_, _), (first, begin), (second, end) = (self._timed(steps) for steps in (4, 4, 8))
        evaluation = max(
            (end - begin) / max(second - first, 1), 0.5 * end / second
        )  # a busy machine may say 0
        return Pace(sample=max(0.0, end - second * evaluation), evaluation=evaluation)

    def _timed(self, steps: int) -> tuple[float, float]:
        """Evaluations, and seconds per sample, of one batch."""
        arguments = {**self.arguments, "num_inference_steps": steps}
        cost = count_cost(self.pipeline, arguments, each=self.conditions.of(1)).evaluations
        begin = time.monotonic()
        replace(self, progress=False).sample(arguments, 0, self.batch_size)
        return cost, (time.monotonic() - begin) / self.batch_size

    def calibrate(self, *, num_samples: int, **arguments: Any) -> NoiseCalibration:
        """The levels of the pipeline's sampler; arguments as of `nag.shift.calibrate`."""
        return calibrate(
            self.pipeline,
            self.regressor,
            self.images,
            num_samples=num_samples,
            image_labels=self.labels(),
            told=self.told(),
            cache_dir=self.cache_dir,
            **{"progress": self.progress} | self.conditions.of(num_samples) | arguments,
        )

    def forward_reference(self, levels: Any, *, seed: int, progress: bool = True) -> ForwardReference:
        """Estimates of the images at some levels."""
        return forward_reference(
            self.images,
            self.regressor,
            levels,
            seed=seed,
            batch_size=self.batch_size,
            class_labels=self.labels(),
            told=self.told(),
            cache_dir=self.cache_dir,
            progress=progress,
        )

    def why_not(self, scheduler: Any, arguments: Mapping[str, Any], *, steps: int = 10) -> str | None:
        """Why the pipeline cannot run with a scheduler and these arguments, noise arguments too; None if it can.

        The call is begun and ends at its first question: nothing is sampled.
        """
        pipe = self.pipeline
        try:
            rest, acting = split_arguments(pipe, {**arguments, "num_inference_steps": steps})
            begun(pipe, scheduler, rest | self.conditions.of(1), *acting, sampler=sampler_of(pipe, rest))
        except ValueError as error:
            return str(error)
        return None

    def with_timesteps(self, scheduler: Any, steps: int) -> Any:
        """A copy of a scheduler with its timesteps for so many steps, as the pipeline's own call sets them."""
        arguments = self.sized | self.conditions.of(1) | {"num_inference_steps": steps}
        return begun(self.pipeline, scheduler, arguments).scheduler

    def left_out(
        self, rows: Mapping[tuple[str, str], tuple[Any, int, Mapping[str, Any]]]
    ) -> dict[tuple[str, str], str]:
        """Why some rows cannot run, which is printed; a method that can nowhere is refused.

        Args:
            rows: scheduler, steps and arguments by the names of sampler and method.
        """
        reasons = {
            name: self.why_not(scheduler, arguments, steps=steps)
            for name, (scheduler, steps, arguments) in rows.items()
        }
        for method in dict.fromkeys(method for _, method in rows):
            own = [reason for (_, other), reason in reasons.items() if other == method]
            if None not in own:
                raise ValueError(f"{method!r}: {own[0]}")
        found = {name: reason for name, reason in reasons.items() if reason is not None}
        for name, reason in found.items():
            print(f"{' '.join(name)} is left out: {reason}")
        return found

    def check_sampler(self, schedulers: Iterable[Any]) -> None:
        """Refuses, before any work, class guidance that the model cannot do, and what none of the schedulers takes."""
        reasons = [self.why_not(scheduler, self.arguments) for scheduler in schedulers]
        if all(reasons):
            raise ValueError(reasons[0])


def load_pipeline(model: str, regressor: str | None, device: str | torch.device | None) -> Any:
    """A pipeline in float32 for evaluation on its device, with the regressor beside it or the one named, or without."""
    pipeline = NAGPipeline.from_pretrained(model, regressor=regressor)
    if not hasattr(pipeline, "regressor"):
        raise ValueError(
            f"model must be told its noise level, got {model!r}, a {type(pipeline).__name__}. Noise guidance, its calibration "
            "and their comparisons have nothing to act on there."
        )
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for network in (*parts, pipeline.regressor):
        if network is not None:
            network.float().eval()
    return pipeline


def held_out_images(
    pipeline: Any, data: DataOptions, num_images: int | None = None, *, with_labels: bool
) -> ImageTable:
    """The held-out images at the model's size, read as training reads them, with their classes where these are asked for.

    Args:
        pipeline: says channels and size.
        data: which images.
        num_images: how many, at most.
        with_labels: whether classes are needed.
    """
    channels, size = image_size(pipeline)
    table = data.images(
        channels=channels,
        resolution=data.resolution or size,
        labels=with_labels,
        max_samples=num_images,
        held_out=True,
    )
    if table.resized:
        print(f"{data.data}: {table.note}")
    if with_labels:
        _check_classes(table, classes_of(pipeline))
    return table


def _check_classes(table: ImageTable, known: int | None) -> None:
    """Refuses labels that cannot be the model's; says which number a name has."""
    highest, names = int(table.labels.max()), table.class_names
    if known is not None and highest >= known:
        raise ValueError(
            f"label_column must hold the model's {known} classes, got {highest + 1}. Name another with --label_column."
        )
    if names is None or table.rows.features[table.label_column].dtype != "string":
        return
    if known is not None and len(names) != known:
        raise ValueError(
            f"label_column must hold all {known} classes of the model where it holds names, got {len(names)}: numbered in "
            "alphabetical order they may be others. Use images of all classes, or a column of numbers."
        )
    print("Classes by name: " + ", ".join(f"{k} = {name}" for k, name in enumerate(names[:10])))


def conditions_of(
    pipeline: Any, data: DataOptions, num_images: int | None, prompts: Path | None
) -> Conditions:
    """What a pipeline's samples are to show: prompts of a file, captions of the data, classes, or nothing."""
    required = takes(pipeline, "prompt")
    if not required:
        if prompts is not None:
            raise ValueError(
                f"prompts must be left out for a {type(pipeline).__name__}, got {prompts}. It takes none."
            )
        return Conditions(classes=classes_of(pipeline))
    if prompts is not None:
        lines = [line.strip() for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line]
    else:
        found = held_out_images(pipeline, data, num_images, with_labels=False).captions or []
    if not found:
        raise ValueError(
            f"prompts must be given for a {type(pipeline).__name__}, got none, and no column {', '.join(CAPTIONS)} in the data. "
            "Pass --prompts FILE, one prompt in each line, or name the column with --caption_column."
        )
    return Conditions(prompts=tuple(found))


def open_bench(
    model: str,
    data: DataOptions,
    *,
    regressor: str | None = None,
    device: Any = None,
    prompts: Path | None = None,
    guidance_scale: float | None = None,
    eta: float = 0.0,
    num_images: int | None = None,
    cache_dir: Path | None = None,
    **others: Any,
) -> Bench:
    """A bench that holds no images yet; the data are read for their captions, where the pipeline takes prompts."""
    pipeline = load_pipeline(model, regressor, device)
    asked = {"guidance_scale": guidance_scale, "eta": eta or None}
    return Bench(
        pipeline=pipeline,
        regressor=pipeline.regressor,
        conditions=conditions_of(pipeline, data, num_images, prompts),
        arguments={k: v for k, v in asked.items() if v is not None} | sizes(pipeline, data.resolution),
        cache_dir=cache_folder(cache_dir),
        **others,
    )


def needed(regressor: Any, model: str) -> Any:
    """A regressor that must be there."""
    if regressor is None:
        raise ValueError(
            f"regressor must be given, got none beside {model!r}. Train one with `nag finetune regressor` and pass --regressor."
        )
    return regressor


def open_regressor(pipeline: Any, regressor: str) -> Any:
    """Another regressor for a pipeline's states, in float32 on its device."""
    found = NoiseLevelRegressor.from_pretrained(regressor).to(pipeline.device).float().eval()
    if found.config.kind == "frozen":
        found.attach_backbone(main_network(pipeline))
    return found


def load_bench(model: str, data: DataOptions, num_images: int, **others: Any) -> Bench:
    """A bench with images and a regressor, which must lie beside the model or be named; others as of `open_bench`."""
    bench = open_bench(model, data, num_images=num_images, **others)
    labels = needed(bench.regressor, model).config.uses_class
    return bench.holding(held_out_images(bench.pipeline, data, num_images, with_labels=labels))


def read_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Settings given as NAME=VALUE; values are JSON (numbers, true, false, null) or else words."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"scheduler_config must be NAME=VALUE, got {text!r}. Write for example timestep_spacing=trailing."
            )
        try:
            found[name] = parse_json({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            found[name] = value
    return found


def configured_schedulers(
    names: Iterable[str | None], base: Any, settings: Mapping[str, Any]
) -> dict[str | None, Any]:
    """Schedulers by name with the configuration of another one, and with those of the settings that each of them has."""
    made = {name: make_scheduler(name, base) for name in names}
    keys = {name: read_settings(scheduler).keys() for name, scheduler in made.items()}
    known = set().union(*keys.values())
    for key in settings:
        if key not in known:
            raise ValueError(
                f"scheduler_config must name settings of the schedulers, got {key!r}. They have {', '.join(sorted(known))}."
            )
    return {
        name: type(scheduler).from_config(
            scheduler.config, **{key: value for key, value in settings.items() if key in keys[name]}
        )
        for name, scheduler in made.items()
    }


def scheduler_line(scheduler: Any) -> str:
    """The settings of a scheduler that change the shift."""
    names = (
        "timestep_spacing",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "steps_offset",
        "variance_type",
    )
    settings = read_settings(scheduler)
    return f"{type(scheduler).__name__}: " + ", ".join(f"{k}={settings[k]}" for k in names if k in settings)
