r"""What the trainings share that learn guidance by a weak model: options, the two predictions, the states, figures by level.

The weak prediction f_weak of a network f is its own, without the level, the class or a part of it, or that of another network
(`nag.finetune.weak`). States are noisy images, and with `--trajectories` also what the guided network reaches from noise, in a
share of the batch: what learns sees states there that noisy images are not.

References:
    Efficient Distillation of Classifier-Free Guidance using Adapters, Jensen 2025, arXiv 2503.07274 (trajectories).
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507 (the weak model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nag.finetune.options import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nag.finetune.stream import Draws
    from nag.finetune.subject import Subject
    from nag.shift.images import ImageTable

__all__ = ["BINS", "GuidanceOptions", "GuidanceTask", "by_level", "guided_states", "train_guided"]

OWN = ("null", "class", "exit", "block_drop", "perturbed_attention")  # weak models that the network is itself
BINS = (-2.5, 0.0, 2.5)  # log-SNR between which figures are told apart


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(TrainingOptions):
    """The guidance that is learned."""

    weak: str = "null"
    """The weak model: null (the network without its level), class (without its class), block_drop (without its middle block),
    perturbed_attention (without its middle attention map), train (one of half the width, trained first, into the folder weak of
    the output), snapshot (the earliest that `denoiser --snapshots` left in MODEL), a pipeline's folder or Hub id, or for
    `direction` exit (what the head itself predicts after the middle of the network's own pass)."""
    weak_train_steps: int = 1500
    """--weak train: steps of that training."""
    weak_learning_rate: float = 0.001
    """--weak train: its peak learning rate."""
    scale: float = 2.0
    """w of the guidance: what a student learns; for a direction head that of its trajectories, and what sampling takes (an exit
    head wants a small one: 0.25)."""
    interval: tuple[float, float] = (-math.inf, math.inf)
    """Log-SNR within which it is guided, noisy end first; null wants -2.5 inf."""
    class_dropout: float = 0.1
    """Share of samples whose class becomes the null class."""
    trajectories: int = 0
    """Guided trajectories of the network whose states are learned too; 0: noisy images only."""
    trajectory_steps: int = 20
    """Sampling steps of these."""
    trajectory_share: float = 0.5
    """Share of the batch that comes from them."""
    held_out_samples: int = 256
    """Last images of the data, on which the explained share is measured."""


class GuidanceTask:
    """A network that learns from a teacher and a weak model.

    Args:
        model: trained in place.
        subject: the teacher, never changed, and how it is asked.
        weak: the weak network, or None for the teacher without what the options say.
        heldout: images, or their latents, of the final figures.
        options: see `GuidanceOptions`.
    """

    names: ClassVar[tuple[str, ...]] = (
        *(
            "weak",
            "weak_train_steps",
            "weak_learning_rate",
            "scale",
            "class_dropout",
            "trajectories",
            "trajectory_steps",
            "trajectory_share",
        ),
    )
    """Options that a checkpoint must agree on."""
    inside: ClassVar[bool] = False
    """Whether only levels within the interval are learned."""

    def __init__(
        self,
        model: Any,
        subject: Subject,
        weak: Any,
        heldout: ImageTable,
        options: Any,
    ) -> None:
        from nag.corrections import WeakModel
        from nag.finetune.training_objectives import objective_of_network
        from nag.network.degraded import degraded_modules

        self.model, self.subject, self.weak = model, subject, weak
        self.teacher, self.heldout, self.options = subject.network, heldout, options
        self.objective = objective_of_network(subject.scheduler)
        self.process = self.objective.process
        self.classless = weak is None and options.weak == "class"
        self.exit = weak is None and options.weak == "exit"
        self.degraded = WeakModel.texts.get(options.weak, {}).get("degraded") if weak is None else None
        self.blind = weak is None and not (self.classless or self.exit or self.degraded)
        if self.exit and options.trajectories:
            raise ValueError(
                f"trajectories must be 0 for an exit head, which would have to guide them untrained, got {options.trajectories}."
            )
        if self.degraded:
            degraded_modules(self.teacher, self.degraded)
        if self.objective.prediction == "x_0" and self.blind:
            raise ValueError(
                "weak must be another network for one that predicts x_0, got 'null'. With and without its level it predicts the "
                "same data wherever the data is certain."
            )
        if self.classless and subject.null is None:
            raise ValueError(
                "weak must be null or a network for one without classes or captions, got 'class'."
            )
        self.states: tuple[Tensor, Tensor, Tensor] | None = None
        self.figures: dict[str, float] = {}

    @property
    def signature(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed."""
        found = {name: getattr(self.options, name) for name in self.names}
        return found | {"interval": [str(end) for end in self.options.interval]}

    def parameter_groups(self, options: Any) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": options.learning_rate}
        ]

    def validate(self, step: int, folder: Path) -> None:
        """Nothing: the explained share is measured at the end."""

    def acts(self, t: Tensor) -> Tensor:
        """Which levels lie within the interval."""
        start, end = self.options.interval
        level = self.process.log_snr(t)
        return (level >= start) & (level <= end)

    def level(self, share: Tensor) -> Tensor:
        """A level t that is learned, by the inverse distribution function of the training's levels."""
        import torch

        if self.inside:
            shares = (torch.arange(1000) + 0.5) / 1000
            shares = shares[self.acts(self.objective.level(shares))]
            if len(shares) == 0:
                raise ValueError(
                    f"interval must hold levels that the network knows, got {self.options.interval}."
                )
            low, high = float(shares[0]) - 5e-4, float(shares[-1]) + 5e-4
            share = low + (high - low) * share
        return self.objective.level(share)

    def told_and_weak(
        self, u: Tensor, t: Tensor, labels: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's prediction, without its level where `hidden` is set, and the weak one or 0, each `(B, *shape)`."""
        from contextlib import ExitStack, nullcontext

        import torch

        from nag.network.degraded import degraded
        from nag.network.null import null_level

        timestep, subject = self.objective.timestep(t), self.subject
        with torch.no_grad():
            conditions = subject.conditions(labels)
            with nullcontext() if hidden is None else null_level(self.teacher, hidden):
                told = subject.ask(self.teacher, u, timestep, conditions).float()
            if self.exit:
                return told, torch.zeros_like(told)
            if self.classless:
                assert subject.null is not None
                conditions = subject.conditions(torch.full_like(labels, subject.null))
            asked = self.teacher if self.weak is None else self.weak
            with ExitStack() as weakened:
                if self.blind:
                    weakened.enter_context(null_level(asked))
                if self.degraded:
                    weakened.enter_context(degraded(asked, self.degraded))
                return told, subject.ask(asked, u, timestep, conditions).float()

    def batch(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States `(B, *shape)`, levels t, conditions `(B,)`; and `(B,)` uniform numbers for hidden levels."""
        for network in (self.teacher, self.weak):
            if network is not None:
                network.to(images.device)
        eps, t = draws.normal(images.shape[1:]), self.level(draws.uniform())
        hide, dropped = draws.uniform(), draws.uniform() < self.options.class_dropout
        reached, place, which = draws.uniform(), draws.uniform(), draws.uniform()
        u = self.process.corrupt(images, t, eps)
        if self.options.trajectories:
            u, t, labels = self._mixed(u, t, labels, reached < self.options.trajectory_share, place, which)
        return u, t, self.subject.dropped(labels, dropped), hide

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
        labels = labels if self.subject.null is None else torch.where(reached, classes[row], labels)
        return torch.where(mask, chosen, u), torch.where(reached, times[step].to(t), t), labels

    def measured(
        self, numbers: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Log-SNRs `(N,)` of held-out states, and some numbers of each, `(N, K)`."""
        import torch

        images, generator = self.heldout.tensor(), torch.Generator().manual_seed(self.options.seed + 1)
        device = next(self.model.parameters()).device
        levels, found = [], []
        for first in range(0, len(images), 64):
            x_0 = images[first : first + 64]
            t = self.level(torch.rand(len(x_0), generator=generator))
            u = self.process.corrupt(x_0, t, torch.randn(x_0.shape, generator=generator)).to(device)
            labels = self.heldout.labels[first : first + 64].to(device)
            with torch.no_grad():
                found.append(torch.stack([*numbers(u, t.to(device), labels)], dim=1).cpu())
            levels.append(self.process.log_snr(t))
        return torch.cat(levels), torch.cat(found)


def by_level(
    name: str, levels: Tensor, numbers: Tensor, figure: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """A figure of the sums `(K,)` of numbers `(N, K)`: over all levels and between those of `BINS`; only finite ones."""
    import torch

    bins, edges = torch.bucketize(levels, torch.tensor(BINS, dtype=levels.dtype)), ["-inf", *BINS, "inf"]
    found = {name: float(figure(numbers.sum(dim=0)))}
    for k in range(len(BINS) + 1):
        found[f"{name} {edges[k]}..{edges[k + 1]}"] = float(figure(numbers[bins == k].sum(dim=0)))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def guided_states(task: GuidanceTask, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """States of guided trajectories: `(steps, M, *shape)`, their levels t `(steps,)`, conditions `(M,)`."""
    import torch

    from nag.corrections import Recorder, WeakModel
    from nag.noise.read import read_levels
    from nag.seams import corrected
    from nag.shift.calls import silent, takes

    options = task.options
    states: list[Tensor] = []
    ends = tuple(None if math.isinf(end) else end for end in options.interval)
    guidance = WeakModel(
        scale=options.scale,
        network=task.weak,
        blind=task.blind,
        unconditional=task.classless,
        degraded=task.degraded,
        interval=ends,  # type: ignore[arg-type]
    )
    subject, count = task.subject, options.trajectories
    pipe = subject.pipeline_with(task.teacher, type(subject.scheduler).from_config(subject.scheduler.config))
    pipe.to(device)
    seen = Recorder(seen=lambda at, u: states.append(u[:count].detach().half().cpu()))
    alone = {}  # without class guidance; a pipeline with captions encodes the empty one above 1 only
    if task.classless and takes(pipe, "guidance_scale"):
        alone["guidance_scale"] = 1.001 if subject.reads_captions else 1.0
    with silent(pipe), corrected(pipe, guidance, seen):
        pipe(
            **subject.sampled(count) | alone,
            num_inference_steps=options.trajectory_steps,
            generator=torch.Generator().manual_seed(options.seed + 2),
            output_type="latent",
        )
    levels = read_levels(pipe.scheduler)
    t = levels.training.t_from_log_snr(levels.log_snr[: len(states)])
    known = len(subject.texts) or max(subject.null or 0, 1)
    classes = torch.arange(count, device=device) % known
    kept = task.acts(t) if task.inside else torch.ones_like(t, dtype=torch.bool)
    return torch.stack(states)[kept].to(device), t[kept].to(device), classes


def train_guided(
    options: GuidanceOptions, task_of: type[GuidanceTask], model_of: Callable[[Any, Any, Any], Any]
) -> dict[str, Any]:
    """Trains what `model_of(teacher, weak, options)` gives, and prints the figures of the end."""
    import torch

    from nag.finetune.loop import check_output_dir, examples_of, pretrained, train
    from nag.finetune.stream import mix
    from nag.finetune.weak import weak_network

    if options.model is None:
        raise ValueError("model must name the pipeline to learn from, got None.")
    checkpoint = check_output_dir(options)
    subject = pretrained(options)
    teacher = subject.network.float().eval().requires_grad_(False)
    subject, table = examples_of(options, subject)
    count = options.held_out_samples
    if not 0 < count < len(table):
        raise ValueError(
            f"held_out_samples must be between 1 and {len(table) - 1}, got {count}. They are taken from the data."
        )
    heldout = table.subset(range(len(table) - count, len(table)))
    table, weak = table.subset(range(len(table) - count)), None
    if options.weak not in OWN:
        weak = weak_network(options, subject, table)
    torch.manual_seed(mix(options.seed, "init") % 2**63)
    model = model_of(teacher, weak, options)
    task = task_of(model, subject, weak, heldout, options)
    found = train(task, table, options, checkpoint)  # type: ignore[arg-type]
    for name, value in task.figures.items():
        print(f"{name:<28} {value:.3f}")
    return found | task.figures
