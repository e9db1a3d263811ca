r"""Distils guidance by a weak model into the network: its only pass is then guided, at the cost of plain sampling.

The teacher f stays as it is, and the student s, a copy of it, learns what guidance would have made of f:

    loss = | s(u, t, c) - f - W(t) (f - f_weak) |^2,          W(t) = w inside the interval of log-SNR, else 0,

averaged over pixels. There is no noise in the target, unlike in a denoising loss, so few samples are enough. f_weak is the
teacher without its level (`--weak null`), or a smaller or earlier network (`nag.finetune.weak`). Samples with hidden level
keep the teacher's own null prediction, so that the student has a null branch too.

States are noisy images, and with `--trajectories` also what the guided teacher reaches from noise, in a share of the batch:
a student sees states there that noisy images are not.

The student has a strength that is chosen afterwards: theta + lambda (theta_s - theta), which `nag finetune merge` writes as a
plain checkpoint. With a LoRA of rank r only the adapter is trained and kept, and lambda is its scale.

References:
    On Distillation of Guided Diffusion Models, Meng 2023, arXiv 2210.03142 (a guided teacher's prediction as the target).
    Efficient Distillation of Classifier-Free Guidance using Adapters, Jensen 2025, arXiv 2503.07274 (adapters; trajectories).
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507 (the weak model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from nag.finetune.options import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nag.finetune.loop import Draws
    from nag.shift.images import ImageTable

__all__ = ["DistillOptions", "DistillTask", "run"]

BINS = (-2.5, 0.0, 2.5)  # log-SNR between which the explained share is told apart


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """Distil guidance by a weak model into a network, so that its only pass is guided.

    nag finetune distill --pretrained_model_name_or_path MODEL --weak train --scale 2 --data IMAGES
    """

    weak: str = "null"
    """The weak model: null (the network without its level), train (one of half the width, trained first, into the folder weak
    of the output), snapshot (the earliest that `denoiser --snapshots` left in MODEL), or a pipeline's folder or Hub id."""
    weak_train_steps: int = 1500
    """--weak train: steps of that training."""
    weak_learning_rate: float = 0.001
    """--weak train: its peak learning rate."""
    scale: float = 2.0
    """w of the guidance that is distilled."""
    interval: tuple[float, float] = (-math.inf, math.inf)
    """Log-SNR within which it is guided, noisy end first; null wants -2.5 inf."""
    level_dropout: float = 0.1
    """Share of samples whose noise level is hidden; they keep the teacher's null prediction."""
    class_dropout: float = 0.1
    """Share of samples whose class becomes the null class."""
    lora_rank: int = 0
    """Train a LoRA of this rank instead of the whole network; 0: the whole network."""
    trajectories: int = 0
    """Guided trajectories of the teacher whose states are learned too; 0: noisy images only."""
    trajectory_steps: int = 20
    """Sampling steps of these."""
    trajectory_share: float = 0.5
    """Share of the batch that comes from them."""
    held_out_samples: int = 256
    """Last images of the data, on which the explained share of the change is measured."""
    control: Literal["none", "shuffled"] = "none"
    """shuffled: learn the changes of other samples of the batch, a control of the same size."""


class DistillTask:
    """A student, its teacher and a weak model.

    Args:
        student: trained in place; a copy of the teacher.
        teacher: never changed.
        weak: the weak network, or None for the teacher without its level.
        scheduler: says what is predicted, and of which process.
        heldout: images of the final figures.
        options: see `DistillOptions`.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        weak: Any,
        scheduler: Any,
        heldout: ImageTable,
        options: DistillOptions,
    ) -> None:
        from nag.finetune.training_objectives import objective_of_network
        from nag.network.table import architecture_of

        self.model, self.teacher, self.weak = student, teacher, weak
        self.scheduler, self.heldout, self.options = scheduler, heldout, options
        self.objective = objective_of_network(scheduler)
        self.process = self.objective.process
        if self.objective.prediction == "x_0" and weak is None:
            raise ValueError(
                "weak must be another network for one that predicts x_0, got 'null'. With and without its level it predicts the "
                "same data wherever the data is certain."
            )
        self.null_class = architecture_of(teacher).null_class(teacher)
        self.states: tuple[Tensor, Tensor, Tensor] | None = None
        self.figures: dict[str, float] = {}

    @property
    def signature(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed."""
        names = ["weak", "scale", "level_dropout", "class_dropout", "lora_rank", "control"]
        names += ["weak_train_steps", "weak_learning_rate"]
        names += ["trajectories", "trajectory_steps", "trajectory_share"]
        found = {name: getattr(self.options, name) for name in names}
        return found | {"interval": [str(end) for end in self.options.interval]}

    def parameter_groups(self, options: DistillOptions) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": options.learning_rate}
        ]

    def target(self, u: Tensor, t: Tensor, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What the student is to say, and the teacher's own prediction, each `(B, C, H, W)`."""
        import torch

        from nag.network.null import null_level
        from nag.noise.target import expand

        timestep, level = self.objective.timestep(t), self.process.log_snr(t)
        start, end = self.options.interval
        acts = (level >= start) & (level <= end) & ~hidden
        with torch.no_grad():
            with null_level(self.teacher, hidden):
                told = self.teacher(u, timestep, **kwargs).sample.float()
            if self.weak is None:
                with null_level(self.teacher):
                    weak = self.teacher(u, timestep, **kwargs).sample.float()
            else:
                weak = self.weak(u, timestep, **kwargs).sample.float()
        change = told - weak
        if self.options.control == "shuffled":
            change = change.roll(1, dims=0)
        weight = torch.where(acts, self.options.scale, 0.0).to(told)
        return told + expand(weight, told) * change, told

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        import torch

        from nag.network.null import null_level

        for network in (self.teacher, self.weak):
            if network is not None:
                network.to(images.device)
        eps, t = draws.normal(images.shape[1:]), self.objective.level(draws.uniform())
        hidden, dropped = (
            draws.uniform() < share for share in (self.options.level_dropout, self.options.class_dropout)
        )
        reached, place, which = draws.uniform(), draws.uniform(), draws.uniform()
        u = self.process.corrupt(images, t, eps)
        if self.options.trajectories:
            u, t, labels = self._mixed(u, t, labels, reached < self.options.trajectory_share, place, which)
        kwargs: dict[str, Any] = {}
        if self.null_class is not None:
            kwargs["class_labels"] = torch.where(dropped, self.null_class, labels)
        wanted, _ = self.target(u, t, hidden, kwargs)
        with null_level(model, hidden):
            value = model(u, self.objective.timestep(t), **kwargs).sample.float()
        return (value - wanted).square().mean(dim=tuple(range(1, value.ndim)))

    def _mixed(
        self, u: Tensor, t: Tensor, labels: Tensor, reached: Tensor, place: Tensor, which: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The batch with states of guided trajectories where `reached` is set."""
        import torch

        if self.states is None:
            self.states = guided_states(self, u.device)
        states, times, classes = self.states
        row, step = (place * states.shape[1]).long(), (which * len(states)).long()
        chosen = states[step, row].to(u)
        mask = reached.reshape(-1, *(1,) * (u.ndim - 1))
        labels = labels if self.null_class is None else torch.where(reached, classes[row], labels)
        return torch.where(mask, chosen, u), torch.where(reached, times[step].to(t), t), labels

    def explained(self) -> dict[str, float]:
        """1 - |s - target|^2 / |target - f|^2 on held-out images, over all levels and between those of `BINS`."""
        import torch

        images, generator = self.heldout.tensor(), torch.Generator().manual_seed(self.options.seed + 1)
        device = next(self.model.parameters()).device
        sums = dict[str, tuple[float, float]]()
        for first in range(0, len(images), 64):
            x_0 = images[first : first + 64]
            t = self.objective.level(torch.rand(len(x_0), generator=generator))
            u = self.process.corrupt(x_0, t, torch.randn(x_0.shape, generator=generator)).to(device)
            kwargs = {}
            if self.null_class is not None:
                kwargs["class_labels"] = self.heldout.labels[first : first + 64].to(device)
            shown = torch.zeros(len(x_0), dtype=torch.bool, device=device)
            with torch.no_grad():
                wanted, told = self.target(u, t.to(device), shown, kwargs)
                value = self.model(u, self.objective.timestep(t.to(device)), **kwargs).sample.float()
            axes = tuple(range(1, u.ndim))
            rest, whole = (v.square().sum(axes).cpu() for v in (value - wanted, wanted - told))
            bins = torch.bucketize(self.process.log_snr(t), torch.tensor(BINS, dtype=t.dtype))
            for name, rows in [("all", bins >= 0), *((str(k), bins == k) for k in range(len(BINS) + 1))]:
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + float(rest[rows].sum()), before[1] + float(whole[rows].sum()))
        edges = ["-inf", *map(str, BINS), "inf"]
        names = {"all": "explained"} | {
            str(k): f"explained {edges[k]}..{edges[k + 1]}" for k in range(len(BINS) + 1)
        }
        return {names[k]: 1 - rest / whole for k, (rest, whole) in sums.items() if whole > 0}

    def validate(self, step: int, folder: Path) -> None:
        """Nothing: the explained share is measured at the end."""

    def save(self, folder: Path) -> None:
        """Writes the student as a pipeline, or its adapter, with a model card, and uploads it if asked."""
        from nag.files import written_whole
        from nag.finetune.loop import saved_copy
        from nag.finetune.model_card import upload, write_model_card
        from nag.network.merged import save_adapter
        from nag.pipelines import UNet2DPipeline

        options, self.figures = self.options, self.explained()
        with written_whole(folder) as part:
            if options.lora_rank:
                save_adapter(self.model, part, options.pretrained_model_name_or_path or "")
            else:
                network = saved_copy(self.model, options)
                UNet2DPipeline(unet=network, scheduler=self.scheduler).save_pretrained(part)
            write_model_card(
                part,
                "distill",
                options,
                title="Denoiser with distilled guidance",
                text=(
                    f"Guidance of weight {options.scale:g} by the weak model {options.weak!r}, distilled. Its strength is set by "
                    "`nag finetune merge --strength`; half of it is a good begin."
                ),
                figures=self.figures,
            )
        upload(folder, options)


def guided_states(task: DistillTask, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """States of guided DDIM or Euler trajectories: `(steps, M, C, H, W)`, their levels t `(steps,)`, classes `(M,)`."""
    import torch

    from nag.corrections import Recorder, WeakModel
    from nag.noise.read import read_levels
    from nag.pipelines import UNet2DPipeline
    from nag.seams import corrected

    options = task.options
    states: list[Tensor] = []
    ends = tuple(None if math.isinf(end) else end for end in options.interval)
    guidance = WeakModel(
        scale=options.scale,
        network=task.weak,
        blind=task.weak is None,
        interval=ends,  # type: ignore[arg-type]
    )
    pipe = UNet2DPipeline(task.teacher, type(task.scheduler).from_config(task.scheduler.config))
    pipe.set_progress_bar_config(desc="guided trajectories")
    count = options.trajectories
    labels = None if task.null_class is None else torch.arange(count, device=device) % max(task.null_class, 1)
    with corrected(pipe, guidance, Recorder(seen=lambda at, u: states.append(u.detach().half().cpu()))):
        pipe(
            batch_size=count,
            class_labels=labels,
            num_inference_steps=options.trajectory_steps,
            generator=torch.Generator().manual_seed(options.seed + 2),
            output_type="latent",
        )
    levels = read_levels(pipe.scheduler)
    t = levels.training.t_from_log_snr(levels.log_snr[: len(states)])
    classes = torch.zeros(count, dtype=torch.long, device=device) if labels is None else labels
    return torch.stack(states).to(device), t.to(device), classes


def run(options: DistillOptions) -> dict[str, Any]:
    """Trains a student; see `DistillOptions`."""
    import copy

    import torch

    from nag.finetune.loop import check_output_dir, images_of, train
    from nag.finetune.stream import mix
    from nag.finetune.weak import weak_network
    from nag.load import NAGPipeline
    from nag.network.merged import add_adapter
    from nag.network.table import architecture_of

    if options.pretrained_model_name_or_path is None:
        raise ValueError("pretrained_model_name_or_path must name the pipeline to distil, got None.")
    checkpoint = check_output_dir(options)
    pipeline = NAGPipeline.from_pretrained(
        options.pretrained_model_name_or_path,
        regressor=False,
        revision=options.revision,
        variant=options.variant,
    )
    teacher = pipeline.unet.float().eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    torch.manual_seed(mix(options.seed, "init") % 2**63)
    if options.lora_rank:
        add_adapter(student, options.lora_rank)
    labels = architecture_of(teacher).null_class(teacher) is not None
    table = images_of(options, teacher, labels=labels)
    count = options.held_out_samples
    if not 0 < count < len(table):
        raise ValueError(
            f"held_out_samples must be between 1 and {len(table) - 1}, got {count}. They are taken from the data."
        )
    heldout = table.subset(range(len(table) - count, len(table)))
    table = table.subset(range(len(table) - count))
    weak = None if options.weak == "null" else weak_network(options, teacher, pipeline.scheduler, table)
    task = DistillTask(student, teacher, weak, pipeline.scheduler, heldout, options)
    return train(task, table, options, checkpoint) | task.figures


if __name__ == "__main__":
    run(tyro.cli(DistillOptions, use_underscores=True))
