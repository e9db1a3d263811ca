"""Paths, targets and finite data sets on which the theory's identities are tested."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from nag.blind.objectives import make_objective
from nag.noise.process import EDM, Cosine, Flow, GaussianProcess, VariancePreserving
from nag.theory import FiniteData, LevelPrior, Prediction
from tests.oracles import draw

SIGMA_IS_T = EDM(sigma_min=0.0, sigma_max=1.0, rho=1.0)
PATHS: dict[str, GaussianProcess] = {
    "flow": Flow(),
    "vp": VariancePreserving(),
    "sigma_is_t": SIGMA_IS_T,
    "edm": EDM(),
    "cosine": Cosine(),
}
NAMED = ("eps", "x_0", "v", "velocity", "score")


def eqm_linear(t: Tensor) -> tuple[Tensor, Tensor]:
    """GoN's EqM: c = -t, d = t."""
    return -t, t


def targets_of(name: str) -> dict[str, Prediction]:
    """The named targets of a path, and those that are functions."""
    targets: dict[str, Prediction] = {target: target for target in NAMED}
    if name == "flow":
        targets["eqm linear"] = eqm_linear
        targets["eqm truncated"] = make_objective("eqm").coefficients
    if name == "edm":
        targets["edm"] = "edm"
    return targets


CASES: list[tuple[str, str]] = [(path, target) for path in PATHS for target in targets_of(path)]


@dataclass(frozen=True)
class Problem:
    """A data set, states at levels drawn from the prior, and clocks that say something else."""

    oracle: FiniteData
    x: Tensor
    clock: Tensor


def problem_of(
    path: str | GaussianProcess, generator: torch.Generator, dimension: int = 5, count: int = 8
) -> Problem:
    """Six points, t in [0.05, 0.95]: the terms of the decomposition diverge one by one at the noisy end of a flow."""
    process = PATHS[path] if isinstance(path, str) else path
    prior = LevelPrior.discrete(torch.linspace(0.05, 0.95, 40, dtype=torch.float64))
    oracle = FiniteData(data=draw(generator, 6, dimension), process=process, prior=prior)
    true = prior.t[torch.randint(40, (count,), generator=generator)]
    clock = prior.t[torch.randint(40, (count,), generator=generator)] + 0.003  # no level of the grid
    x = process.corrupt(oracle.data[torch.arange(count) % 6], true, draw(generator, count, dimension))
    return Problem(oracle, x, clock)


def digits_of(count: int | None = None) -> Tensor:
    """Handwritten digits, 1797 images of 8x8, scaled to [-1, 1]."""
    return torch.from_numpy(load_digits().data[:count]).double() / 8 - 1
