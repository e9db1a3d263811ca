"""Exact posteriors of nine points on every process, and states drawn from them; shared by the tests of the oracle."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from nag.noise.discrete import DiscreteVP
from nag.noise.process import (
    EDM,
    Cosine,
    Flow,
    GaussianProcess,
    VarianceExploding,
    VariancePreserving,
)
from nag.theory import FiniteData, LevelPrior

# float64, sums of hundreds of terms of order 1
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VariancePreserving(),
    "discrete_vp": DiscreteVP.from_alphas_cumprod(DDPMScheduler(num_train_timesteps=40).alphas_cumprod),
    "ve": VarianceExploding(),
    "edm": EDM(),
    "flow": Flow(),
    "cosine": Cosine(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def prior_of(process: GaussianProcess) -> LevelPrior:
    """Some training prior of the process."""
    if isinstance(process, DiscreteVP):
        return LevelPrior.timesteps(process)
    return LevelPrior.quadrature(process, panels=5)


def oracle_of(
    process: GaussianProcess, generator: torch.Generator, dimension: int = 6, weighted: bool = True
) -> FiniteData:
    """Nine points, with unequal weights."""
    weights = torch.rand(9, generator=generator, dtype=torch.float64) if weighted else None
    data = draw(generator, 9, dimension)
    return FiniteData(data=data, process=process, prior=prior_of(process), data_weights=weights)


def states(oracle: FiniteData, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws (x, t) from p(t) p(x|t); the data with equal weights."""
    index = torch.randint(len(oracle.data), (count,), generator=generator)
    level = torch.multinomial(
        oracle.prior.log_probability.exp(), count, replacement=True, generator=generator
    )
    x_0, t = oracle.data[index], oracle.prior.t[level]
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    return oracle.process.corrupt(x_0, t, eps), t


def relative(value: Tensor, wanted: Tensor) -> float:
    """Largest relative error over the batch, in the Euclidean norm."""
    return float(((value - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max())
