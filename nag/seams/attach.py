"""The same pipeline object, whose call takes the noise arguments: a subclass of its own class and of the same name.

Without these arguments the plain call runs, unheard. `save_pretrained` writes what the plain class writes, with the regressor and
the files that lie beside the checkpoint next to it.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nag.corrections.base import Correction, Interval
from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.corrections.calibration import Calibrated, NoiseCalibration
from nag.corrections.direction_head import DirectionGuidance, ExitGuidance
from nag.corrections.noise_guidance import NoiseGuidance
from nag.corrections.tuned import FILE_NAME as TUNED_FILE
from nag.corrections.tuned import load_tuned
from nag.files import REGRESSOR_FOLDER, hide_from_download, written_whole
from nag.network.direction import DIRECTION_FOLDER, DirectionHead
from nag.network.null_adapter import NULL_ADAPTER_FOLDER
from nag.network.regressor import NoiseLevelRegressor
from nag.network.table import unwrap
from nag.seams.run import beside_checkpoint, corrected, denoisers

__all__ = ["Attached", "attach", "detach", "sampler_of", "split_arguments"]

_log = logging.getLogger("nag")


class Attached:
    """What `attach` adds to a pipeline.

    Attributes:
        noise_calibration_path: the calibration found beside the checkpoint, or None; never applied unasked.
        noise_guidance_path: what `nag tune` wrote beside it, or None; never applied unasked.
        direction_path: the configuration of a direction head beside it, or None; never applied unasked.
    """

    plain_class: type
    noise_calibration_path: Path | None = None
    noise_guidance_path: Path | None = None
    direction_path: Path | None = None
    _regressor: NoiseLevelRegressor | None = None

    @property
    def regressor(self) -> NoiseLevelRegressor | None:
        """The regressor; a `frozen` head is given this pipeline's denoiser when it is set."""
        return self._regressor

    @regressor.setter
    def regressor(self, regressor: NoiseLevelRegressor | None) -> None:
        if regressor is not None:
            if not isinstance(regressor, NoiseLevelRegressor):
                raise TypeError(
                    f"regressor must be a NoiseLevelRegressor or None, got {type(regressor).__name__}. "
                    "NoiseLevelRegressor.from_pretrained loads one."
                )
            _give_backbone(regressor, self)
        self.__dict__["_regressor"] = regressor

    def __call__(
        self,
        *args: Any,
        noise_guidance_scale: float = 0.0,
        noise_guidance_mode: str = "classifier_free",
        noise_guidance_interval: Interval = (-2.5, None),
        noise_guidance: NoiseGuidance | str | os.PathLike[str] | None = None,
        noise_calibration: str | os.PathLike[str] | NoiseCalibration | Sequence[float | None] | None = None,
        corrections: Correction | Sequence[Correction] = (),
        **kwargs: Any,
    ) -> Any:
        """The pipeline's own call, corrected.

        Noise arguments:
            noise_guidance_scale: Noise Awareness Guidance w; 0 is off. A step inside the interval costs one prediction
                more, or a backward pass in the mode "gradient".
            noise_guidance_mode: "classifier_free", "corrected" or "gradient"; see `nag.corrections.NoiseGuidance`.
            noise_guidance_interval: (start, end) in log-SNR, noisy end first, None for an open side.
            noise_guidance: all settings of noise guidance at once, instead of the three arguments for it; or "tuned" for
                what `nag tune` wrote beside the checkpoint, or the path of such a file; or "fast" for the direction or exit head
                beside it, within its own interval, at its own weight or at noise_guidance_scale, without a prediction more.
            noise_calibration: "auto" for the calibration beside the checkpoint; a path; or a `NoiseCalibration`. It must
                have been measured for this scheduler with these settings, steps and corrections.
            corrections: of `nag.corrections`, one or several, which act in their order, after noise guidance.
        """
        call: Any = super().__call__  # type: ignore[misc]
        given = dict(inspect.signature(call).bind_partial(*args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        _, chosen = split_arguments(
            self,
            given
            | {
                "noise_guidance_scale": noise_guidance_scale,
                "noise_guidance_mode": noise_guidance_mode,
                "noise_guidance_interval": noise_guidance_interval,
                "noise_guidance": noise_guidance,
                "noise_calibration": noise_calibration,
                "corrections": corrections,
            },
        )
        if all(isinstance(one, Correction) and not one.on for one in chosen):
            return call(*args, **kwargs)
        self._ready()
        with corrected(self, *chosen, generator=given.get("generator"), sampler=sampler_of(self, given)):
            return call(*args, **kwargs)

    def _ready(self) -> None:
        """A regressor beside the states: on their device, and a head on the denoiser that the pipeline has now."""
        if self.regressor is not None:
            self.regressor.to(self._execution_device)  # type: ignore[attr-defined]
            _give_backbone(self.regressor, self)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers; the regressor follows to the device and keeps its precision."""
        super().to(*args, **kwargs)  # type: ignore[misc]
        if self.regressor is not None:
            self.regressor.to(self.device)  # type: ignore[attr-defined]
        return self

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """What the plain class writes, and beside it regressor, calibration and tuned guidance; whole or not at all.

        Raises:
            ValueError: if the folder holds those of another pipeline, or pickle weights are asked for.
        """
        if kwargs.get("safe_serialization", True) is False or (args and args[0] is False):
            raise ValueError(
                "safe_serialization must be True, got False. from_pretrained reads safetensors only."
            )
        target = Path(save_directory)
        files = {CALIBRATION_FILE: self.noise_calibration_path, TUNED_FILE: self.noise_guidance_path}
        adapter = next(
            (vars(one)["null_adapter"] for one in _unwrapped(self) if "null_adapter" in vars(one)), None
        )
        folders = {
            REGRESSOR_FOLDER: self.regressor,
            DIRECTION_FOLDER: self.direction_path,
            NULL_ADAPTER_FOLDER: adapter,
        }
        for name, present in (folders | files).items():
            if present is None and (target / name).exists():
                raise ValueError(
                    f"save_directory must not hold {name!r} of another pipeline, got {target}. "
                    "Remove it there, or choose another folder."
                )
        with written_whole(target) as folder:
            super().save_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
            if self.regressor is not None:
                self.regressor.save_pretrained(folder / REGRESSOR_FOLDER)
            if adapter is not None:
                adapter.save_pretrained(folder / NULL_ADAPTER_FOLDER)
            if self.direction_path is not None:
                DirectionHead.load(self.direction_path.parent).save_pretrained(folder / DIRECTION_FOLDER)
            hide_from_download(folder)
            for name, path in files.items():
                if path is not None:
                    shutil.copyfile(path, folder / name)
        if push_to_hub:
            _push(self, target, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.plain_class, dict(self.__dict__))


def attach(pipe: Any, *, regressor: NoiseLevelRegressor | None = None) -> Any:
    """Lets the call of a pipeline take the noise arguments; the same object is returned.

    Args:
        pipe: any pipeline of diffusers.
        regressor: for the modes and corrections that need one.

    Example:
        ```python
        pipe = nag.attach(StableDiffusionPipeline.from_single_file("model.safetensors"))
        pipe("a cat", noise_guidance_scale=0.5)
        ```
    """
    if not isinstance(pipe, Attached):
        pipe.__class__ = _attached_class(type(pipe))
    if regressor is not None:
        pipe.regressor = regressor
    return pipe


def detach(pipe: Any) -> Any:
    """Undoes `attach`; the same object is returned."""
    if isinstance(pipe, Attached):
        for name in (
            "_regressor",
            "_fast",
            "noise_calibration_path",
            "noise_guidance_path",
            "direction_path",
        ):
            pipe.__dict__.pop(name, None)
        pipe.__class__ = pipe.plain_class
    return pipe


_CLASSES: dict[type, type] = {}


def _attached_class(cls: type) -> type:
    """A subclass of a pipeline class with its name, its place, and a signature with the noise arguments after its own."""
    if cls not in _CLASSES:
        own = inspect.signature(cls.__call__)
        ours = [
            p for p in inspect.signature(Attached.__call__).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        parameters = list(own.parameters.values())
        place = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            return Attached.__call__(self, *args, **kwargs)

        namespace = {
            "plain_class": cls,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "__call__": __call__,
        }
        texts = (inspect.cleandoc(text or "") for text in (cls.__call__.__doc__, Attached.__call__.__doc__))
        __call__.__doc__ = "\n\n".join(texts).strip()
        __call__.__signature__ = own.replace(parameters=[*parameters[:place], *ours, *parameters[place:]])  # type: ignore[attr-defined]
        _CLASSES[cls] = type(cls.__name__, (Attached, cls), namespace)
    return _CLASSES[cls]


def _rebuilt(cls: Any, state: dict[str, Any]) -> Any:
    pipe = cls.__new__(cls)
    pipe.__dict__.update(state)
    return attach(pipe)


def sampler_of(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration depends on besides the scheduler: `guidance_scale` and `eta` of a call, or the pipeline's defaults."""
    parameters = inspect.signature(getattr(type(pipe), "plain_class", type(pipe)).__call__).parameters
    found = {}
    for name, otherwise in (("guidance_scale", 1.0), ("eta", 0.0)):
        default = parameters[name].default if name in parameters else otherwise
        value = arguments.get(name)
        value = default if value is None else value
        found[name] = float(value) if isinstance(value, int | float) else otherwise
    return found


def _unwrapped(pipe: Any) -> list[Any]:
    """The pipeline's denoisers, inside their wrappers."""
    return [unwrap(network) for network in denoisers(pipe).values()]


def _give_backbone(regressor: NoiseLevelRegressor, pipe: Any) -> None:
    """A `frozen` head gets the pipeline's denoiser; another one is refused."""
    if regressor.config.kind == "frozen":
        networks = denoisers(pipe)
        if not networks:
            raise ValueError(f"pipe must have a denoiser for a frozen regressor, got {type(pipe).__name__}.")
        regressor.attach_backbone(next(iter(networks.values())))
        return
    for network in _unwrapped(pipe)[:1]:
        known, states = regressor.config.in_channels, network.config.get("in_channels") or 0
        if known and states and known != states:
            raise ValueError(
                f"regressor must read the states of {type(pipe).__name__}, of {states} channels, got one for {known}. Train one "
                "with `nag finetune regressor`: latents are no pixels."
            )


def split_arguments(pipe: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Arguments of a call without the noise arguments, and the one list of corrections that these stand for.

    Args:
        pipe: beside whose checkpoint a tuned guidance may lie.
        arguments: of an attached pipeline.

    Raises:
        ValueError: if two arguments say different things, or nothing was tuned for this sampler.
    """
    ours = {
        name: p.default
        for name, p in inspect.signature(Attached.__call__).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    given = ours | {name: value for name, value in arguments.items() if name in ours}
    rest = {name: value for name, value in arguments.items() if name not in ours}
    corrections, noise_guidance = given["corrections"], given["noise_guidance"]
    parts = [corrections] if isinstance(corrections, Correction) else list(corrections)
    calibration = given["noise_calibration"]
    calibrated = [] if calibration is None else [Calibrated(calibration)]
    unset = NoiseGuidance(
        scale=given["noise_guidance_scale"],
        mode=given["noise_guidance_mode"],
        interval=given["noise_guidance_interval"],
    )
    if noise_guidance is None:
        return rest, [unset, *calibrated, *parts]
    if noise_guidance == "fast":
        return rest, [_fast(pipe, unset.scale), *calibrated, *parts]
    if unset.scale != 0:
        raise ValueError(
            f"noise_guidance_scale must be 0 when noise_guidance is given, got {unset.scale}. "
            "Set the scale in noise_guidance."
        )
    if isinstance(noise_guidance, NoiseGuidance):
        return rest, [noise_guidance, *calibrated, *parts]
    if calibrated or parts:
        raise ValueError(
            f"noise_calibration and corrections must be left out with noise_guidance={str(noise_guidance)!r}, got "
            f"{calibration!r} and {parts}. What was tuned together is used together."
        )
    path = noise_guidance
    if path == "tuned":
        path = beside_checkpoint(pipe, "noise_guidance", "tuned", TUNED_FILE, "Make one with `nag tune`")
    steps = rest.get("num_inference_steps")
    if steps is None:
        plain = getattr(type(pipe), "plain_class", type(pipe))
        steps = inspect.signature(plain.__call__).parameters["num_inference_steps"].default
    return rest, list(load_tuned(path, pipe.scheduler, int(steps), **sampler_of(pipe, rest)))


def _fast(pipe: Any, scale: float) -> DirectionGuidance:
    """Guidance by the direction or exit head beside a pipeline's checkpoint, which is read once and then said to be there."""
    fix = f"Train one with `nag finetune direction --output_dir MODEL/{DIRECTION_FOLDER}`"
    path = beside_checkpoint(pipe, "direction", "fast", f"{DIRECTION_FOLDER}/config.json", fix)
    known, head = pipe.__dict__.get("_fast", (None, None))
    if known != path:
        head = DirectionHead.load(path.parent)
        pipe.__dict__["_fast"] = path, head
        _log.info(
            "noise_guidance 'fast' adds %g times the direction head of %s (weak model %s, log-SNR %s to %s).",
            scale or head.config.scale, path.parent, head.config.weak, *head.config.interval,
        )  # fmt: skip
    guidance = ExitGuidance if head.layer == ExitGuidance.listens else DirectionGuidance
    return guidance(scale=scale or head.config.scale, head=head)


def _push(pipe: Any, folder: Path, **kwargs: Any) -> None:
    """Uploads a saved folder."""
    from diffusers.utils.hub_utils import create_repo, load_or_create_model_card, populate_model_card

    token = kwargs.get("token")
    repo_id = create_repo(
        kwargs.get("repo_id", folder.name), exist_ok=True, private=kwargs.get("private"), token=token
    ).repo_id
    card = populate_model_card(load_or_create_model_card(repo_id, token=token, is_pipeline=True))
    card.save(folder / "README.md")
    pipe._upload_folder(
        folder,
        repo_id,
        token=token,
        commit_message=kwargs.get("commit_message"),
        create_pr=kwargs.get("create_pr", False),
    )
