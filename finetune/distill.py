r"""Distils guidance by a weak model into the network: its only pass is then guided, at the cost of plain sampling.

The teacher f stays as it is, and the student s, a copy of it, learns what guidance would have made of f:

    loss = | s(u, t, c) - f - W(t) (f - f_weak) |^2,          W(t) = w inside the interval of log-SNR, else 0,

averaged over pixels. There is no noise in the target, unlike in a denoising loss, so few samples are enough. f_weak and the
states u are those of `nag.finetune.guided`. Samples with hidden level keep the teacher's own null prediction, so that the
student has a null branch too.

The student has a strength that is chosen afterwards: theta + lambda (theta_s - theta), which `nag finetune merge` writes as a
plain checkpoint. With a LoRA of rank r only the adapter is trained and kept, and lambda is its scale.

References:
    On Distillation of Guided Diffusion Models, Meng 2023, arXiv 2210.03142 (a guided teacher's prediction as the target).
    Efficient Distillation of Classifier-Free Guidance using Adapters, Jensen 2025, arXiv 2503.07274 (adapters; trajectories).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from nag.finetune.guided import GuidanceOptions, GuidanceTask, by_level, train_guided
from nag.finetune.options import AdapterOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nag.finetune.loop import Draws

__all__ = ["DistillOptions", "DistillTask", "run"]


@dataclass(frozen=True, kw_only=True)
class DistillOptions(AdapterOptions, GuidanceOptions):
    """Distil guidance by a weak model into a network, so that its only pass is guided.

    nag finetune distill MODEL --weak train --scale 2 --data IMAGES
    """

    level_dropout: float = 0.1
    """Share of samples whose noise level is hidden; they keep the teacher's null prediction."""
    control: Literal["none", "shuffled"] = "none"
    """shuffled: learn the changes of other samples of the batch, a control of the same size."""


class DistillTask(GuidanceTask):
    """A student, a copy of its teacher, and a weak model."""

    names: ClassVar = (*GuidanceTask.names, "level_dropout", "lora_rank", "control")

    def target(self, u: Tensor, t: Tensor, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the student is to say, and the teacher's own prediction, each `(B, *shape)`."""
        import torch

        from nag.noise.target import expand

        told, weak = self.told_and_weak(u, t, labels, hidden)
        change = told - weak
        if self.options.control == "shuffled":
            change = change.roll(1, dims=0)
        weight = torch.where(self.acts(t) & ~hidden, self.options.scale, 0.0).to(told)
        return told + expand(weight, told) * change, told

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        from nag.network.null import null_level

        u, t, labels, hide = self.batch(images, labels, draws)
        hidden = hide < self.options.level_dropout
        wanted, _ = self.target(u, t, hidden, labels)
        subject = self.subject
        with null_level(model, hidden):
            value = subject.ask(model, u, self.objective.timestep(t), subject.conditions(labels)).float()
        return (value - wanted).square().mean(dim=tuple(range(1, value.ndim)))

    def explained(self) -> dict[str, float]:
        """1 - |s - target|^2 / |target - f|^2 on held-out images, over all levels and by level."""
        import torch

        def parts(u: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            wanted, told = self.target(u, t, torch.zeros_like(t, dtype=torch.bool), labels)
            subject, timestep = self.subject, self.objective.timestep(t)
            value = subject.ask(self.model, u, timestep, subject.conditions(labels)).float()
            return (value - wanted).square().flatten(1).sum(1), (wanted - told).square().flatten(1).sum(1)

        return by_level("explained", *self.measured(parts), lambda sums: 1 - sums[0] / sums[1])

    def save(self, folder: Path) -> None:
        """Writes the student as a pipeline, or its adapter, with a model card, and uploads it if asked."""
        from nag.files import written_whole
        from nag.finetune.loop import saved_copy
        from nag.finetune.model_card import upload, write_model_card
        from nag.network.merged import save_adapter

        options, self.figures = self.options, self.explained()
        with written_whole(folder) as part:
            if options.lora_rank:
                save_adapter(self.model, part, self.subject.name, options.model or "")
            else:
                self.subject.pipeline_with(saved_copy(self.model, options)).save_pretrained(part)
            write_model_card(
                part,
                "distill",
                options,
                title="Denoiser with distilled guidance",
                text=(
                    f"Guidance of weight {options.scale:g} by the weak model {options.weak!r}, distilled. Its strength is set by "
                    "`nag finetune merge --strength`; `nag tune` finds it for a sampler."
                ),
                figures=self.figures,
                relation="adapter" if options.lora_rank else "finetune",
            )
        upload(folder, options)


def student_of(teacher: Any, weak: Any, options: DistillOptions) -> Any:
    """A copy of the teacher that is trained, as a whole or by its adapter."""
    import copy

    from nag.network.merged import add_adapter
    from nag.network.null_adapter import NullAdapter

    student = copy.deepcopy(teacher).requires_grad_(True)
    if options.lora_rank:
        add_adapter(student, options.lora_rank)
    else:
        NullAdapter.detach(student)
    return student


def run(options: DistillOptions) -> dict[str, Any]:
    """Trains a student; see `DistillOptions`."""
    if options.weak == "exit":
        raise ValueError(
            "weak must be a model that predicts by itself for a student, got 'exit'. `nag finetune direction` trains exit heads."
        )
    return train_guided(options, DistillTask, student_of)


if __name__ == "__main__":
    run(tyro.cli(DistillOptions, use_underscores=True))
