"""A checkpoint and what lies beside it: regressor, calibration, tuned guidance. Loaded, moved and saved together.

Weights are safetensors, and a folder is written whole or not at all; that is all that the pipelines of models without a
noise condition need (`SafeCheckpointMixin`).

`model_index.json` names none of what lies beside, so that plain diffusers opens the folder. A regressor has a folder of its own
and is fetched by its own `from_pretrained`, for diffusers' file filter would take its weights and leave its configuration.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DiffusionPipeline
from diffusers.utils.hub_utils import create_repo, load_or_create_model_card, populate_model_card

import nag.schedulers  # noqa: F401 - diffusers loads a component only from a library that has been imported
from nag.calibration import FILE_NAME as CALIBRATION_FILE
from nag.files import written_whole
from nag.hub import (
    REGRESSOR_FOLDER,
    fetch_beside,
    hide_from_download,
    hub_options,
    pickle_only,
)
from nag.regressor import NoiseLevelRegressor
from nag.tuned import FILE_NAME as TUNED_FILE

__all__ = ["CheckpointMixin", "SafeCheckpointMixin"]

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:  # a module that diffusers loads by path may show it one pipeline class only, so this one is none
    _Pipeline = object


class SafeCheckpointMixin(_Pipeline):
    """Loads safetensors only, and saves whole folders or nothing."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hub.
            kwargs: as for `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: if the checkpoint has pickle weights only.
        """
        path = str(pretrained_model_name_or_path)
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError(
                "use_safetensors must be True, got False. Pickle weights can run code when they are loaded."
            )
        try:
            return super().from_pretrained(path, **kwargs)
        except OSError as error:
            pickles = pickle_only(path, **hub_options(kwargs))
            if pickles:
                raise ValueError(
                    f"path must hold safetensors weights, got {', '.join(pickles)} in {path!r}. Pickle weights can run "
                    "code when they are loaded. If you trust them, load them with diffusers and save_pretrained again."
                ) from error
            raise

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Takes over the components of a loaded pipeline, in their precision and on their device.

        Args:
            pipeline: any pipeline with a UNet2DModel.
            kwargs: replacements of components.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", pipeline.dtype)
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes the checkpoint's folder, whole or not at all.

        Args:
            save_directory: the folder.
            safe_serialization: must be True.
            variant: as in diffusers, for the UNet.
            max_shard_size: as in diffusers.
            push_to_hub: upload the folder when it is complete.
            kwargs: for the upload: repo_id, commit_message, private, create_pr, token.

        Raises:
            ValueError: if the folder holds the regressor, calibration or tuned guidance of another pipeline.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization must be True, got False. from_pretrained reads safetensors only."
            )
        target = Path(save_directory)
        for name, present in self._beside().items():
            if present is None and (target / name).exists():
                raise ValueError(
                    f"save_directory must not hold {name!r} of another pipeline, got {target}. "
                    "Remove it there, or choose another folder."
                )
        with written_whole(target) as folder:
            self._write(folder, variant=variant, max_shard_size=max_shard_size)
        if push_to_hub:
            token = kwargs.get("token")
            repo_id = create_repo(
                kwargs.get("repo_id", target.name), exist_ok=True, private=kwargs.get("private"), token=token
            ).repo_id
            card = populate_model_card(load_or_create_model_card(repo_id, token=token, is_pipeline=True))
            card.save(target / "README.md")
            self._upload_folder(
                target,
                repo_id,
                token=token,
                commit_message=kwargs.get("commit_message"),
                create_pr=kwargs.get("create_pr", False),
            )

    def _beside(self) -> dict[str, Any]:
        """What may lie beside a checkpoint, by name; None where this one has none."""
        return dict.fromkeys((REGRESSOR_FOLDER, CALIBRATION_FILE, TUNED_FILE))

    def _write(self, folder: Path, **options: Any) -> None:
        super().save_pretrained(folder, **options)


class CheckpointMixin(SafeCheckpointMixin):
    """What every pipeline of this library adds to `DiffusionPipeline` about files.

    Attributes:
        noise_calibration_path: the calibration found beside the checkpoint, or None. It is never applied unasked.
        noise_guidance_path: the tuned noise guidance found beside the checkpoint, or None; never applied unasked.
    """

    unet: Any
    scheduler: Any
    noise_calibration_path: Path | None = None
    noise_guidance_path: Path | None = None
    _regressor: NoiseLevelRegressor | None = None

    @property
    def regressor(self) -> NoiseLevelRegressor | None:
        """The regressor; a `frozen` head is given this pipeline's UNet when it is set."""
        return self._regressor

    @regressor.setter
    def regressor(self, regressor: NoiseLevelRegressor | None) -> None:
        if regressor is not None:
            if not isinstance(regressor, NoiseLevelRegressor):
                raise TypeError(
                    f"regressor must be a NoiseLevelRegressor or None, got {type(regressor).__name__}. "
                    "NoiseLevelRegressor.from_pretrained loads one."
                )
            if regressor.config.kind == "frozen":
                regressor.attach_backbone(self.unet)
        self._regressor = regressor

    def find_noise_calibration(self) -> Path:
        """The calibration beside the checkpoint, also one that was measured after it was loaded.

        Raises:
            ValueError: if there is none.
        """
        beside = Path(str(self.name_or_path), CALIBRATION_FILE)
        if self.noise_calibration_path is None and not beside.is_file():
            raise ValueError(
                f"noise_calibration must lie beside the checkpoint to be found by 'auto', got no {CALIBRATION_FILE} in "
                f"{self.name_or_path!r}. Measure one with `nag calibrate`, or give its path."
            )
        return self.noise_calibration_path or beside

    def find_noise_guidance(self) -> Path:
        """The tuned noise guidance beside the checkpoint, also one that was found after it was loaded.

        Raises:
            ValueError: if there is none.
        """
        beside = Path(str(self.name_or_path), TUNED_FILE)
        if self.noise_guidance_path is None and not beside.is_file():
            raise ValueError(
                f"noise_guidance must lie beside the checkpoint to be found by 'tuned', got no {TUNED_FILE} in "
                f"{self.name_or_path!r}. Make one with `nag tune`, or give its path."
            )
        return self.noise_guidance_path or beside

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        regressor: NoiseLevelRegressor | str | os.PathLike[str] | bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint that diffusers opens too; arguments as in `NAGPipeline.from_pretrained`.

        Raises:
            ValueError: if the checkpoint has pickle weights only, or a regressor is asked for that is not there.
        """
        path, where = str(pretrained_model_name_or_path), hub_options(kwargs)
        pipeline: Any = super().from_pretrained(path, **kwargs)
        if regressor is None or regressor is True:
            beside = fetch_beside(path, f"{REGRESSOR_FOLDER}/config.json", **where)
            if beside is None and regressor is True:
                raise ValueError(
                    f"regressor must lie in the folder {REGRESSOR_FOLDER!r} of the checkpoint, got none in {path!r}. "
                    "Train one with `nag finetune regressor`."
                )
            regressor = (
                NoiseLevelRegressor.from_pretrained(path, subfolder=REGRESSOR_FOLDER, **where)
                if beside
                else None
            )
        elif isinstance(regressor, (str, os.PathLike)):
            regressor = NoiseLevelRegressor.from_pretrained(regressor, **where)
        pipeline.regressor = regressor or None
        pipeline.noise_calibration_path = fetch_beside(path, CALIBRATION_FILE, **where)
        pipeline.noise_guidance_path = fetch_beside(path, TUNED_FILE, **where)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Takes over the components of a loaded pipeline, in their precision and on their device.

        Args:
            pipeline: any pipeline with a UNet2DModel.
            kwargs: `regressor=` (default: that of the pipeline, if it has one), and replacements of components.
        """
        regressor = kwargs.pop("regressor", getattr(pipeline, "regressor", None))
        new = super().from_pipe(pipeline, **kwargs)
        new.regressor = regressor
        for name in ("noise_calibration_path", "noise_guidance_path"):
            setattr(new, name, getattr(pipeline, name, None))
        return new

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers; the regressor follows to the device and keeps its precision."""
        super().to(*args, **kwargs)
        if self.regressor is not None:
            self.regressor.to(self.device)
        return self

    def _beside(self) -> dict[str, Any]:
        files = {CALIBRATION_FILE: self.noise_calibration_path, TUNED_FILE: self.noise_guidance_path}
        return {REGRESSOR_FOLDER: self.regressor, **files}

    def _write(self, folder: Path, **options: Any) -> None:
        """A folder that plain diffusers opens, with the regressor in a folder of its own."""
        plain = DDIMPipeline if type(self.scheduler) is DDIMScheduler else DDPMPipeline
        plain(unet=self.unet, scheduler=self.scheduler).save_pretrained(folder, **options)
        if self.regressor is not None:
            self.regressor.save_pretrained(folder / REGRESSOR_FOLDER)
            hide_from_download(folder)
        for name, path in self._beside().items():
            if isinstance(path, Path):
                shutil.copyfile(path, folder / name)
