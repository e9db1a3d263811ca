"""Trains a denoiser that can be asked with and without its noise level (noise-condition dropout), or never with it.

    nag finetune denoiser --help
    accelerate launch finetune/denoiser.py --help

Loss per sample: w_t |network(x_t, level, class) - r|^2 averaged over pixels, with r = c x_0 + d eps the target of the
objective (`nag.blind.objectives`, `nag.blind.consistency`). With probability `level_dropout` the level is hidden
(`nag.network.null`), and independently with `class_dropout` the class becomes the null class. One network thus learns
E[r | x_t, t] and E[r | x_t], the latter over the prior of levels it is trained on; with level dropout 1 it is
noise-unconditional and learns the latter only.

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    Classifier-Free Diffusion Guidance, Ho 2022, arXiv 2207.12598, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, Literal

import tyro

from nag.finetune.options import AdapterOptions, TrainingOptions
from nag.noise.checks import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nag.finetune.stream import Draws
    from nag.finetune.subject import Subject
    from nag.network.null_adapter import NullAdapter

__all__ = ["DenoiserOptions", "DenoiserTask", "run"]


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions(AdapterOptions, TrainingOptions):
    """Train or fine-tune a denoiser with noise-level dropout.

    nag finetune denoiser MODEL --data IMAGES --level_dropout 0.1
    """

    model_config: str | None = None
    """From scratch: UNet2DModel config (JSON file, folder, Hub id)."""
    objective: Literal["ddpm", "adm", "flow", "edm", "uedm", "ict", "ecm", "eqm"] | None = None
    """What is trained: ddpm, adm (learned variance), flow, edm, uedm, the consistency models ict and ecm, or
    eqm (Equilibrium Matching). None: as the pretrained pipeline, or by --prediction_type."""
    sigma_data: float = 0.5
    """edm, uedm, ict, ecm: standard deviation of the data."""
    uedm_weight: Literal["edm", "uniform"] = "edm"
    """uedm: loss weight of a level, Karras' or 1. It decides what a blind network averages to."""
    eqm_decay: Literal["constant", "linear", "truncated", "piecewise"] = "truncated"
    """eqm: how the target falls to 0 at the data."""
    eqm_interpolation: float = 0.8
    """eqm: the data's share from which truncated and piecewise fall."""
    eqm_start: float = 1.0
    """eqm: piecewise starts at this height."""
    eqm_multiplier: float = 4.0
    """eqm: factor of the target."""
    energy: Literal["dot", "squared_norm"] | None = None
    """eqm: train the gradient of an explicit energy: <x, f> or |f|^2 / 2. None: f itself."""
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_prediction"] | None = None
    """What the network predicts. None: as the pretrained pipeline, or epsilon."""
    ddpm_num_steps: int = 1000
    """From scratch: timesteps of the process."""
    ddpm_beta_schedule: str = "linear"
    """From scratch: linear, scaled_linear, squaredcos_cap_v2."""
    clip_sample: bool = True
    """From scratch: clip the predicted clean image in the saved scheduler."""
    timestep_spacing: str = "leading"
    """From scratch: spacing in the saved scheduler: leading, trailing, linspace."""
    level_dropout: float = 0.1
    """Share of samples whose noise level is hidden."""
    class_dropout: float = 0.1
    """Share of samples whose class becomes the null class (the last embedding)."""
    null_adapter_rank: int = 0
    """Train a low-rank change of this rank that acts without the level alone: MODEL's own predictions stay as they are, bit
    by bit. It goes to --output_dir MODEL/null_adapter; 0: the network itself is trained."""
    snr_gamma: float | None = None
    """Weigh levels by min(SNR, gamma), as an error of the clean image (Hang 2023, arXiv 2303.09556). None: alike."""
    null_loss_weight: Literal["uniform", "1/sigma"] = "uniform"
    """Loss weight of samples with hidden level; 1/sigma makes the corrected guidance of an eps target exact."""
    validation_steps: int = 0
    """Write a grid of samples every so many steps; 0: only at the end."""
    snapshots: bool = False
    """Keep the averaged weights at a sixteenth and an eighth of the training: weak models for guidance."""
    num_validation_images: int = 16
    """Images in the grid; 0: none."""
    validation_inference_steps: int = 50
    """Sampling steps of the grid."""


class DenoiserTask:
    """A denoiser that is trained in place, what it is trained for, and the scheduler that is saved with it.

    Without an objective in the options, the scheduler's VP (eps, v, x_0) or flow (velocity) process says what is trained.
    """

    def __init__(self, subject: Subject, options: DenoiserOptions) -> None:
        from nag.finetune.training_objectives import loss_of

        self.subject, self.options, self.scheduler = subject, options, subject.scheduler
        self.model: Any = subject.network
        for name in ("level_dropout", "class_dropout"):
            value = getattr(options, name)
            require((name, value, "lie between 0 and 1", 0 <= value <= 1))
        self.loss_rule = loss_of(
            self.scheduler, options, outputs=self._outputs(), latent=subject.pipeline is not None
        )
        both = options.null_adapter_rank and options.lora_rank
        require(("null_adapter_rank", options.null_adapter_rank, "be 0 with a --lora_rank", not both))
        self.adapter: NullAdapter | None = None

    def _outputs(self) -> int:
        """Channels that the network gives per channel of the state."""
        config = self.model.config
        found, states = config.get("out_channels"), config.in_channels
        return 1 if found is None else found // states if found % states == 0 else 0

    def adapted(self) -> DenoiserTask:
        """The task, of which only an adapter is trained if the options say so."""
        from nag.network.merged import add_adapter
        from nag.network.null_adapter import NullAdapter

        NullAdapter.detach(self.model)
        if self.options.lora_rank:
            add_adapter(self.model, self.options.lora_rank)
        if self.options.null_adapter_rank:
            network = self.model.eval().requires_grad_(False)
            self.model = self.adapter = NullAdapter.of(network, self.options.null_adapter_rank)
            self.adapter.attach(network)
        return self

    @property
    def signature(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed."""
        options = self.options
        chosen = ["objective", "energy", "level_dropout", "class_dropout", "prediction_type", "sigma_data"]
        chosen += ["lora_rank", "null_adapter_rank", "snr_gamma"]
        chosen += [name for name in vars(options) if name.startswith(("eqm_", "uedm_"))]
        chosen += (
            ["max_train_steps"] if options.objective in ("ict", "ecm") else []
        )  # pairs close up over them
        return {name: getattr(options, name) for name in chosen}

    def check_labels(self, labels: Tensor) -> None:
        """Refuses labels that the class embedding cannot hold, the null class among them."""
        if self.subject.null is None or self.subject.captions is not None:
            return
        low, high = int(labels.min()), int(labels.max())
        most = self.subject.null - (1 if self.options.class_dropout > 0 else 0)
        must = f"lie between 0 and {most}, besides which class_dropout needs a class embedding of its own"
        require(("labels", (low, high), must, low >= 0 and high <= most))

    def parameter_groups(self, options: DenoiserOptions) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": options.learning_rate}
        ]

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        import torch

        from nag.finetune.training_objectives import Regression
        from nag.network.null import null_level

        eps, u = draws.normal(images.shape[1:]), draws.uniform()
        hidden = draws.uniform() < self.options.level_dropout
        dropped = draws.uniform() < self.options.class_dropout
        subject, alone = self.subject, self.adapter is not None
        conditions = subject.conditions(subject.dropped(labels, dropped))
        network = subject.network.to(images.device) if alone else model

        def ask(x_t: Tensor, timestep: Tensor) -> Tensor:
            with null_level(network, None if alone else hidden):
                if alone:
                    return model(lambda: subject.ask(network, x_t, timestep, conditions))
                return subject.ask(network, x_t, timestep, conditions)

        error = self.loss_rule(ask, images, eps, u, draws.step)
        if self.options.null_loss_weight == "1/sigma":
            assert isinstance(self.loss_rule, Regression)  # `loss_of` refuses the others
            objective = self.loss_rule.objective
            error = torch.where(hidden, error / objective.process.sigma(objective.level(u)), error)
        return error

    def validate(self, step: int, folder: Path) -> None:
        """Writes `samples/step-STEP.png`: rows of samples from the saved scheduler, class by class or caption by caption."""
        from diffusers.utils import make_image_grid

        from nag.finetune.training_objectives import pipeline_of
        from nag.shift.calls import sample_generators, silent

        count = self.options.num_validation_images
        if count < 1 or self.adapter is not None:
            return
        pipeline = pipeline_of(self.subject, self.model, self.options)
        with silent(pipeline):
            images = pipeline(
                **self.subject.sampled(count),
                num_inference_steps=self.options.validation_inference_steps,
                generator=sample_generators(0, 0, count),
            ).images
        columns = max(c for c in range(1, min(count, 10) + 1) if count % c == 0)
        (folder / "samples").mkdir(exist_ok=True)
        make_image_grid(images, count // columns, columns).save(folder / "samples" / f"step-{step}.png")

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps after which a snapshot is kept."""
        steps = self.options.max_train_steps
        return (max(steps // 16, 1), max(steps // 8, 1)) if self.options.snapshots else ()

    def snapshot(self, step: int, folder: Path) -> None:
        """Writes `snapshot-STEP`, a pipeline with the (averaged) weights of that step."""
        from nag.files import written_whole

        with written_whole(folder / f"snapshot-{step}") as part:
            self._pipeline().save_pretrained(part)

    def _pipeline(self) -> Any:
        """The pipeline that is saved, with a copy of the weights in the precision that is asked for."""
        from nag.finetune.loop import saved_copy
        from nag.finetune.training_objectives import pipeline_of
        from nag.network.null import record_dropout

        network = saved_copy(self.model, self.options)
        record_dropout(network, self.options.level_dropout)
        return pipeline_of(self.subject, network, self.options)

    def save(self, folder: Path) -> None:
        """Writes the pipeline, with a model card, and uploads it if asked."""
        from nag.files import written_whole
        from nag.finetune.model_card import upload, write_model_card
        from nag.finetune.training_objectives import title
        from nag.network.merged import save_adapter

        with written_whole(folder) as part:
            if self.adapter is not None:
                saved_adapter(self.adapter, self.options).save_pretrained(part)
            elif self.options.lora_rank:
                save_adapter(self.model, part, self.subject.name, self.options.model or "")
            else:
                self._pipeline().save_pretrained(part)
            shown = folder / "samples" / f"step-{self.options.max_train_steps}.png"
            if shown.exists():
                copyfile(shown, part / "samples.png")
            write_model_card(
                part,
                "denoiser",
                self.options,
                title=title(self.scheduler, self.options),
                text=self._text(),
                relation="adapter" if self.adapter is not None or self.options.lora_rank else "finetune",
            )
        upload(folder, self.options)

    def _text(self) -> str:
        """What the model card says of it."""
        name, options = type(self.subject.network).__name__, self.options
        if self.adapter is not None:
            return (
                f"A null branch for the {name} of the base model: a change of rank {options.null_adapter_rank} that acts where the "
                "network is asked without its noise level, as Noise Awareness Guidance needs, and nowhere else. "
                '`NAGPipeline.from_pretrained(BASE, null_adapter="...")` takes it.'
            )
        lora = f"A LoRA of rank {options.lora_rank} for a" if options.lora_rank else "A"
        asked = (
            "it is never told its noise level (time embedding set to zero)."
            if options.level_dropout == 1
            else "it can be asked without its noise level (time embedding set to zero), as Noise Awareness Guidance needs."
        )
        dropouts = f"level dropout {options.level_dropout} and class dropout {options.class_dropout}"
        return f"{lora} {name} trained with {dropouts}: {asked}"


def saved_adapter(adapter: NullAdapter, options: DenoiserOptions) -> Any:
    """A copy in the precision that is asked for."""
    from nag.finetune.loop import saved_copy

    return saved_copy(adapter, options)


def _from_scratch(options: DenoiserOptions) -> Subject:
    from diffusers import UNet2DModel

    from nag.files import read_json
    from nag.finetune.subject import Subject
    from nag.finetune.training_objectives import new_scheduler

    path = Path(options.model_config or "")
    config = read_json(path) if path.is_file() else UNet2DModel.load_config(str(path))
    return Subject.of_unet(UNet2DModel.from_config(config), new_scheduler(options))


def _pretrained(options: DenoiserOptions) -> Subject:
    from nag.finetune.loop import pretrained
    from nag.finetune.training_objectives import PREDICTIONS, kept_scheduler, read_network

    subject = pretrained(options)
    if options.objective is not None:
        latent = "be left out for a pipeline with latents, which is trained for what its scheduler says"
        require(("objective", options.objective, latent, subject.pipeline is None))
        return replace(subject, scheduler=kept_scheduler(subject.scheduler, options))
    found, _ = read_network(subject.scheduler)
    asked, must = options.prediction_type, f"be that of the pretrained model ({found}) without an --objective"
    require(("prediction_type", asked, must, asked is None or PREDICTIONS[asked] == found))
    return subject


def run(options: DenoiserOptions) -> dict[str, Any]:
    """Trains a denoiser and saves it; the figures of the run."""
    import torch

    from nag.finetune.loop import check_output_dir, examples_of, train
    from nag.finetune.stream import mix

    names = (options.model, options.model_config)
    one = "be given, or --model_config"
    require(("model", names, one, names.count(None) == 1))
    checkpoint = check_output_dir(options)
    torch.manual_seed(mix(options.seed, "init") % 2**63)
    subject = _from_scratch(options) if options.model is None else _pretrained(options)
    subject.network.float()
    DenoiserTask(subject, options)  # refuses before anything is read
    subject, table = examples_of(options, subject)
    task = DenoiserTask(subject, options)
    task.check_labels(table.labels)
    return train(task.adapted(), table, options, checkpoint)


if __name__ == "__main__":
    run(tyro.cli(DenoiserOptions, use_underscores=True))
