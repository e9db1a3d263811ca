"""Losses of the denoiser's training, one class per kind of objective.

Each is given a way to ask the network, `ask(u, label)`, which hides the level and the class of the samples that
dropout has chosen; the same samples and dropouts count in every call of one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from nag.blind.consistency import ConsistencyTraining
from nag.blind.objectives import Objective
from nag.noise.discrete import DiscreteVP
from nag.noise.target import expand

__all__ = ["Ask", "Consistency", "ExplicitEnergy", "LearnedVariance", "Loss", "Regression"]

Ask = Callable[[Tensor, Tensor], Tensor]


class Loss(Protocol):
    """What is minimised."""

    outputs: int
    """Channels that the network gives per channel of the state."""

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        """Loss per sample, `(B,)`.

        Args:
            ask: the network: `(B, C, H, W)` states and `(B,)` labels to `(B, C', H, W)`.
            images: `(B, C, H, W)` in [-1, 1].
            eps: `(B, C, H, W)`, standard normal.
            u: `(B,)`, uniform in [0, 1): which level.
            step: of training, from 0.
        """


def _mean(square: Tensor) -> Tensor:
    return square.mean(dim=tuple(range(1, square.ndim)))


class Regression:
    """w_t |f(u, t) - r|^2, averaged over pixels."""

    outputs = 1

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        t = self.objective.level(u)
        x_t = self.objective.process.corrupt(images, t, eps)
        value = self.value(ask, x_t, self.objective.timestep(t))
        return self.objective.weight(t) * _mean(
            (value - self.objective.target(t).value(images, eps)).square()
        )

    def value(self, ask: Ask, x_t: Tensor, label: Tensor) -> Tensor:
        """What is compared with the target, `(B, C, H, W)`."""
        return ask(x_t, label).float()


class ExplicitEnergy(Regression):
    """The same for grad E of an explicit energy, differentiated a second time by training."""

    def __init__(self, objective: Objective, kind: str) -> None:
        super().__init__(objective)
        self.kind = kind

    def value(self, ask: Ask, x_t: Tensor, label: Tensor) -> Tensor:
        from nag.blind.energy import gradient_of

        return gradient_of(lambda x: ask(x, label), x_t, self.kind, create_graph=True).float()


class LearnedVariance:
    """ADM's |f - eps|^2 + T/1000 times the variational bound of the variance (Nichol 2021, eq. 16)."""

    outputs = 2

    def __init__(self, objective: Objective) -> None:
        if objective.prediction != "eps":
            raise ValueError(
                f"prediction must be 'eps' for objective adm, got {objective.prediction!r}. Its bound is of predicted noise."
            )
        self.objective = objective

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        from nag.blind.learned_variance import variational_bound

        process: Any = self.objective.process
        assert isinstance(process, DiscreteVP)
        t = self.objective.level(u)
        x_t = process.corrupt(images, t, eps)
        value, variance = ask(x_t, self.objective.timestep(t)).float().chunk(2, dim=1)
        bound = variational_bound(process, images, x_t, t, value, variance)
        return _mean((value - eps).square()) + bound * (process.num_train_timesteps / 1000)


class Consistency:
    """A pair of points of one trajectory, the lower of them without gradient; see `nag.blind.consistency`."""

    outputs = 1

    def __init__(self, training: ConsistencyTraining) -> None:
        self.training = training

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        import torch

        training = self.training

        def end(level: Tensor) -> Tensor:
            x = images + expand(level, images) * eps
            value = ask(training.model_input(x, level), training.timestep(level)).float()
            return training.denoised(value, x, level)

        upper, lower = training.pair(u, step)
        # the same dropout inside the network for both points of a pair, on whatever device
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            wanted = end(lower)
        torch.clear_autocast_cache()  # or the casts of the pass without gradient might serve the next one
        return training.weight(upper, lower) * training.distance(end(upper), wanted)
