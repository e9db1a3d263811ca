"""Laws of every `GaussianProcess`: closed forms, derivatives, inverses."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from nag.noise.discrete import DiscreteVP
from nag.noise.levels import PreconditionedEDM
from nag.noise.process import EDM, Cosine, Flow, GaussianProcess, VarianceExploding, VariancePreserving

# float64 everywhere; a handful of operations on numbers of order 1
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VariancePreserving(),
    "discrete_vp": DiscreteVP.from_alphas_cumprod(DDPMScheduler().alphas_cumprod),
    "ve": VarianceExploding(),
    "edm": EDM(),
    "sigma_is_t": EDM(sigma_min=0.0, sigma_max=1.0, rho=1.0),
    "flow": Flow(),
    "cosine": Cosine(),
    "preconditioned_edm": PreconditionedEDM(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def levels(process: GaussianProcess, count: int = 97) -> Tensor:
    """Levels over the whole finite range, both ends included."""
    return torch.linspace(process.t_min, process.t_max, count, dtype=torch.float64)


def inner_levels() -> Tensor:
    """Levels away from the ends, where no target is singular, and inside the cells of a table."""
    return torch.linspace(0.0203, 0.9807, 60, dtype=torch.float64)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# alpha, sigma and their derivatives

CLOSED_FORMS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "vp": (
        lambda t: math.exp(-0.05 * t - 0.25 * 19.9 * t**2),
        lambda t: math.sqrt(1 - math.exp(-0.1 * t - 0.5 * 19.9 * t**2)),
    ),
    "ve": (lambda t: 1.0, lambda t: 0.01 * 5000.0**t),
    "edm": (lambda t: 1.0, lambda t: (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7),
    "sigma_is_t": (lambda t: 1.0, lambda t: t),
    "flow": (lambda t: 1 - t, lambda t: t),
    "cosine": (lambda t: math.cos(math.pi * t / 2), lambda t: math.sin(math.pi * t / 2)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_alpha_and_sigma_have_their_closed_forms(name: str) -> None:
    process, (alpha, sigma) = PROCESSES[name], CLOSED_FORMS[name]
    t = levels(process)
    assert_close(process.alpha(t), torch.tensor([alpha(k) for k in t.tolist()], dtype=t.dtype), **ROUNDING)
    # 1e-10: the plain 1 - exp(-B) of this test loses 5 digits near t = 0, which expm1 keeps
    want = torch.tensor([sigma(k) for k in t.tolist()], dtype=t.dtype)
    assert_close(process.sigma(t), want, rtol=1e-10, atol=0)


@every_process
def test_derivatives_are_those_of_autograd(process: GaussianProcess) -> None:
    t = inner_levels().requires_grad_()
    for value, derivative in ((process.alpha, process.alpha_dot), (process.sigma, process.sigma_dot)):
        given = value(t)
        (wanted,) = torch.autograd.grad(given.sum(), t) if given.requires_grad else (torch.zeros_like(t),)
        assert_close(derivative(t.detach()), wanted, rtol=1e-10, atol=1e-12)


@every_process
def test_log_snr_falls_and_is_two_log_alpha_over_sigma(process: GaussianProcess) -> None:
    t = levels(process)
    assert (process.log_snr(t).diff() < 0).all()
    # 1e-9: alpha of a flow near t = 1 is 1e-5, of which float64 keeps 11 digits
    assert_close(process.log_snr(t), 2 * (process.alpha(t) / process.sigma(t)).log(), rtol=1e-9, atol=1e-9)


@every_process
def test_log_snr_has_an_inverse(process: GaussianProcess) -> None:
    t = levels(process)
    assert_close(process.t_from_log_snr(process.log_snr(t)), t, rtol=1e-9, atol=1e-12)


@every_process
def test_levels_outside_the_process_are_its_ends(process: GaussianProcess) -> None:
    ends = process.t_from_log_snr(torch.tensor([1e3, -1e3], dtype=torch.float64))
    assert_close(ends, torch.tensor([process.t_min, process.t_max], dtype=torch.float64), **ROUNDING)


@every_process
def test_alpha_sigma_of_the_log_snr_are_those_of_t(process: GaussianProcess) -> None:
    t = levels(process)
    alpha, sigma = process.alpha_sigma(process.log_snr(t))
    assert_close(alpha, process.alpha(t), rtol=1e-9, atol=1e-12)
    assert_close(sigma, process.sigma(t), rtol=1e-9, atol=1e-12)


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_preserved(process: GaussianProcess, dtype: torch.dtype) -> None:
    t = torch.tensor([0.25, 0.5], dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    values = [
        process.alpha(t),
        process.sigma(t),
        process.alpha_dot(t),
        process.sigma_dot(t),
        process.log_snr(t),
    ]
    values += [
        process.t_from_log_snr(t),
        *process.alpha_sigma(t),
        process.g_squared(t),
        process.corrupt(x, t, x),
    ]
    target = process.target("v", t)
    values += [*target.x_0_and_eps(x, x), target.value(x, x)]
    assert {value.dtype for value in values} == {dtype}
    # 1e-4: float32 against float64, at levels where nothing is singular
    assert_close(process.alpha(t).double(), process.alpha(t.double()), rtol=1e-4, atol=1e-6)
    assert_close(process.sigma(t).double(), process.sigma(t.double()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "half_g_squared"),
    [
        ("flow", lambda t: t / (1 - t)),
        ("vp", lambda t: (0.1 + 19.9 * t) / 2),
        ("sigma_is_t", lambda t: t),
        ("ve", lambda t: (0.01 * 5000**t) ** 2 * math.log(5000)),
        ("cosine", lambda t: math.pi / 2 * torch.tan(math.pi * t / 2)),
    ],
)
def test_g_squared_has_its_closed_form(name: str, half_g_squared: Callable[[Tensor], Tensor]) -> None:
    t = inner_levels()
    assert_close(PROCESSES[name].g_squared(t) / 2, half_g_squared(t), rtol=1e-10, atol=0)
