r"""Trains a direction head: guidance by a weak model from a few convolutions, whose weight is chosen when sampling.

The network f stays as it is. A head h on the features z of its last layer (`nag.network.direction`) learns

    loss = g(t) | h(z, t) - (f - f_weak) |^2,          g(t) = 1 / E |f - f_weak|^2 per unit of log-SNR,

averaged over pixels, at levels within the interval; g is measured once, on held-out images, before the first step, so that a head
that says nothing has the loss 1. There is no noise in the target. f_weak and the states are those of `nag.finetune.guided`.
With `--weak exit` the head is the weak model: it learns f itself, f_weak = 0 above, from the state and the features after the
middle block. As E[r | z] = E[E[r | u] | z], that is what it would learn of the data r, without their noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from nag.finetune.guided import GuidanceOptions, GuidanceTask, by_level, train_guided

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nag.finetune.loop import Draws

__all__ = ["DirectionOptions", "DirectionTask", "run"]


@dataclass(frozen=True, kw_only=True)
class DirectionOptions(GuidanceOptions):
    """Train a direction head: guidance by a weak model in the pass that sampling makes anyway.

    nag finetune direction MODEL --interval -2.5 inf --data IMAGES --output_dir MODEL/direction
    """

    learning_rate: float = 1e-2
    """Peak learning rate."""
    hidden_size: int = 16
    """Width of the head."""


class DirectionTask(GuidanceTask):
    """A direction head, its network and a weak model."""

    names: ClassVar = (*GuidanceTask.names, "hidden_size")
    inside: ClassVar = True
    weights: Tensor | None = None

    def change(self, u: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The features of the network's own pass, and what the head is to make of them, f - f_weak."""
        from nag.network.regressor import tapped
        from nag.network.table import split_output

        with tapped(self.teacher, middle=self.exit) as kept:
            told, weak = self.told_and_weak(u, t, labels)
        return kept[0], split_output(told - weak, u.shape[1])[0]

    def weight(self, t: Tensor) -> Tensor:
        """g(t), `(B,)`; measured at the first call, with the size of the head's output."""
        import torch

        edges = torch.arange(-8.0, 9.0)
        if self.weights is None:
            levels, power = self.measured(self._power)
            found = torch.full((len(edges) + 1,), float(power.mean()))
            for k in (bins := torch.bucketize(levels.float(), edges)).unique():
                found[k] = power[bins == k].mean()
            self.model.size.fill_(power.mean().sqrt())
            self.weights = 1 / found.clamp_min(torch.finfo(found.dtype).tiny)
        return self.weights.to(t.device)[torch.bucketize(self.process.log_snr(t).float(), edges.to(t.device))]

    def _power(self, *asked: Any) -> list[Tensor]:
        return [self.change(*asked)[1].square().flatten(1).mean(1)]

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        u, t, labels, _ = self.batch(images, labels, draws)
        features, change = self.change(u, t, labels)
        weight = self.weight(t)
        found = model(features, self.process.log_snr(t), u).float()
        return weight * (found - change).square().flatten(1).mean(1)

    def explained(self) -> dict[str, float]:
        """1 - |h - d|^2 / |d|^2 and <h, d> / |h| |d|, d = f - f_weak, on held-out images, over all levels and by level."""

        def parts(u: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
            features, change = self.change(u, t, labels)
            found = self.model(features, self.process.log_snr(t), u).float()
            pairs = ((found - change,) * 2, (change, change), (found, change), (found, found))
            return [(a * b).flatten(1).sum(1) for a, b in pairs]

        found = self.measured(parts)
        shares = by_level("explained", *found, lambda sums: 1 - sums[0] / sums[1])
        return shares | by_level("cosine", *found, lambda sums: sums[2] / (sums[1] * sums[3]).sqrt())

    def save(self, folder: Path) -> None:
        """Writes the head with a model card, and uploads it if asked."""
        import torch

        from nag.files import written_whole
        from nag.finetune.loop import weight_dtype
        from nag.finetune.model_card import upload, write_model_card

        options, self.figures = self.options, self.explained()
        with written_whole(folder) as part:
            before = self.model.dtype
            torch.nn.Module.to(self.model, weight_dtype(options)).save_pretrained(part)
            torch.nn.Module.to(self.model, before)
            write_model_card(
                part,
                "direction",
                options,
                title="Direction head",
                text=f"Regresses f - f_weak for the weak model {options.weak!r}: guidance without a second pass, by "
                f"`nag.corrections.{'ExitGuidance' if self.exit else 'DirectionGuidance'}`.",
                figures=self.figures,
            )
        upload(folder, options)


def head_of(teacher: Any, weak: Any, options: DirectionOptions) -> Any:
    """An untrained head."""
    from nag.network.direction import DirectionHead
    from nag.network.regressor import fingerprint

    return DirectionHead.of(
        teacher,
        hidden=options.hidden_size,
        weak=options.weak if weak is None else fingerprint(weak),
        scale=options.scale,
        interval=[None if math.isinf(end) else end for end in options.interval],
        steps=options.max_train_steps,
    )


def run(options: DirectionOptions) -> dict[str, Any]:
    """Trains a direction head; see `DirectionOptions`."""
    return train_guided(options, DirectionTask, head_of)


if __name__ == "__main__":
    run(tyro.cli(DirectionOptions, use_underscores=True))
