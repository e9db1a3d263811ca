"""Laws of every `GaussianProcess`: closed forms, derivatives, inverses, and every conversion there and back."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from nag.noise.discrete import DiscreteVP
from nag.noise.levels import PreconditionedEDM
from nag.noise.process import (
    EDM,
    PREDICTIONS,
    Cosine,
    Flow,
    GaussianProcess,
    VarianceExploding,
    VariancePreserving,
    expand,
)

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


def predictions_of(process: GaussianProcess) -> list[str]:
    """The prediction types that are defined for a process."""
    return [name for name in PREDICTIONS if name != "edm" or isinstance(process, EDM)]


PAIRS = [
    pytest.param(process, source, target, id=f"{name}-{source}-{target}")
    for name, process in PROCESSES.items()
    for source, target in itertools.product(predictions_of(process), repeat=2)
]
TARGETS = [
    pytest.param(process, prediction, id=f"{name}-{prediction}")
    for name, process in PROCESSES.items()
    for prediction in predictions_of(process)
]


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
    values += process.x_0_and_eps(x, x, t, "v")
    assert {value.dtype for value in values} == {dtype}
    # 1e-4: float32 against float64, at levels where nothing is singular
    assert_close(process.alpha(t).double(), process.alpha(t.double()), rtol=1e-4, atol=1e-6)
    assert_close(process.sigma(t).double(), process.sigma(t.double()), rtol=1e-4, atol=1e-6)


# What a network predicts


@pytest.mark.parametrize(("process", "source", "target"), PAIRS)
def test_conversion_there_and_back_is_the_identity(
    process: GaussianProcess, source: str, target: str, generator: torch.Generator
) -> None:
    t = inner_levels()
    value, x_t = draw(generator, len(t), 2, 3), draw(generator, len(t), 2, 3)
    there = process.convert(value, x_t, t, source=source, target=target)
    back = process.convert(there, x_t, t, source=target, target=source)
    # 1e-8: x_0 from eps divides by alpha, down to 4e-5 at the noisy end of VP, and eps from x_0 by sigma; both twice
    assert_close(back, value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "prediction"), TARGETS)
def test_the_true_target_gives_back_the_true_data_and_noise(
    process: GaussianProcess, prediction: str, generator: torch.Generator
) -> None:
    t = inner_levels()
    x_0, eps = draw(generator, len(t), 5), draw(generator, len(t), 5)
    x_t = process.corrupt(x_0, t, eps)
    value = process.from_x_0_and_eps(x_0, eps, t, prediction)
    x_0_hat, eps_hat = process.x_0_and_eps(value, x_t, t, prediction)
    # as above: a division by alpha or by sigma
    assert_close(x_0_hat, x_0, rtol=1e-8, atol=1e-8)
    assert_close(eps_hat, eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "prediction"), TARGETS)
def test_any_prediction_implies_data_and_noise_that_make_up_the_state(
    process: GaussianProcess, prediction: str, generator: torch.Generator
) -> None:
    t = inner_levels()
    value, x_t = draw(generator, len(t), 5), draw(generator, len(t), 5)
    x_0_hat, eps_hat = process.x_0_and_eps(value, x_t, t, prediction)
    # 1e-8 of the largest of the two parts, which cancel where alpha is small
    assert_close(process.corrupt(x_0_hat, t, eps_hat), x_t, rtol=1e-8, atol=1e-8)


@every_process
def test_targets_are_what_their_names_say(process: GaussianProcess, generator: torch.Generator) -> None:
    t = inner_levels().requires_grad_()
    x_0, eps = draw(generator, len(t), 1), draw(generator, len(t), 1)
    x_t = process.corrupt(x_0, t, eps)
    (velocity,) = torch.autograd.grad(x_t.sum(), t)
    t, x_t = t.detach(), x_t.detach()
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    score = -(x_t - alpha * x_0) / sigma**2  # of N(alpha x_0, sigma^2)
    wanted = {
        "eps": eps,
        "x_0": x_0,
        "v": alpha * eps - sigma * x_0,
        "velocity": velocity[:, None],
        "score": score,
    }
    for prediction, value in wanted.items():
        # 1e-8: the score above subtracts at small sigma
        assert_close(process.from_x_0_and_eps(x_0, eps, t, prediction), value, rtol=1e-8, atol=1e-10)


def test_v_is_the_velocity_along_the_circle_only() -> None:
    t = torch.tensor(0.3, dtype=torch.float64)
    on_circle = torch.stack(Cosine().coefficients("velocity", t)) * 2 / math.pi
    assert_close(on_circle, torch.stack(Cosine().coefficients("v", t)), **ROUNDING)
    flow = torch.stack(Flow().coefficients("velocity", t)) - torch.stack(Flow().coefficients("v", t))
    assert flow.abs().min() > 0.2


def test_edm_target_is_the_network_of_the_preconditioned_denoiser(generator: torch.Generator) -> None:
    process = EDM(sigma_data=0.7)
    t = inner_levels()
    x_0, eps = draw(generator, len(t), 4), draw(generator, len(t), 4)
    sigma = process.sigma(t)[:, None]
    c_skip = 0.7**2 / (sigma**2 + 0.7**2)  # Karras 2022, table 1
    c_out = sigma * 0.7 / (sigma**2 + 0.7**2).sqrt()
    network = (x_0 - c_skip * process.corrupt(x_0, t, eps)) / c_out
    # 1e-9: x_0 - c_skip x_t cancels at small sigma
    assert_close(process.from_x_0_and_eps(x_0, eps, t, "edm"), network, rtol=1e-9, atol=1e-9)


def test_edm_target_has_unit_variance_for_data_of_its_scale() -> None:
    c, d = EDM().coefficients("edm", levels(EDM()))
    assert_close(0.25 * c**2 + d**2, torch.ones_like(c), **ROUNDING)


# lambda = (b/a)(d a - c b) and nu = (b' a - a' b)/(a d - b c): theory of the affine relations, GoN eqs. 15 and 63

AFFINE_TABLE = [
    # process, prediction, lambda(t), c/a, nu(t)
    ("flow", "eps", lambda t: t, lambda t: 0 * t, lambda t: 1 / (1 - t)),
    ("flow", "x_0", lambda t: -(t**2) / (1 - t), lambda t: 1 / (1 - t), lambda t: -1 / t),
    ("flow", "velocity", lambda t: t / (1 - t), lambda t: -1 / (1 - t), lambda t: 0 * t + 1),
    ("flow", "score", lambda t: 0 * t - 1, lambda t: 0 * t, lambda t: -t / (1 - t)),
    ("sigma_is_t", "eps", lambda t: t, lambda t: 0 * t, lambda t: 0 * t + 1),
    ("sigma_is_t", "x_0", lambda t: -(t**2), lambda t: 0 * t + 1, lambda t: -1 / t),
    ("sigma_is_t", "score", lambda t: 0 * t - 1, lambda t: 0 * t, lambda t: -t),
    (
        "cosine",
        "v",
        lambda t: torch.tan(math.pi * t / 2),
        lambda t: -torch.tan(math.pi * t / 2),
        lambda t: 0 * t + math.pi / 2,
    ),
]


def affine(process: GaussianProcess, prediction: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """lambda, c/a and nu from the coefficients."""
    a, b = process.alpha(t), process.sigma(t)
    c, d = process.coefficients(prediction, t)
    nu = (process.sigma_dot(t) * a - process.alpha_dot(t) * b) / (a * d - b * c)
    return (b / a) * (d * a - c * b), c / a, nu


@pytest.mark.parametrize("row", AFFINE_TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_affine_coefficients_of_the_table(row: tuple) -> None:
    name, prediction, *wanted = row
    t = inner_levels()
    for got, function in zip(affine(PROCESSES[name], prediction, t), wanted, strict=True):
        assert_close(got, function(t), rtol=1e-10, atol=1e-12)


def test_v_on_the_variance_preserving_path() -> None:
    process = VariancePreserving()
    t = inner_levels()
    a, b, beta = process.alpha(t), process.sigma(t), 0.1 + 19.9 * t
    for got, wanted in zip(affine(process, "v", t), (b / a, -b / a, beta * a / (2 * b)), strict=True):
        assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("process", "prediction"), TARGETS)
def test_gain_times_lambda_is_half_of_g_squared_for_every_target(
    process: GaussianProcess, prediction: str
) -> None:
    t = inner_levels()
    lambda_, _, nu = affine(process, prediction, t)
    assert_close(nu * lambda_, process.g_squared(t) / 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("process", "prediction"), TARGETS)
def test_gain_is_that_of_the_probability_flow(
    process: GaussianProcess, prediction: str, generator: torch.Generator
) -> None:
    # dx/dt = mu x + nu r with mu = (a' d - b' c)/(a d - b c), along x = a x_0 + b eps with frozen x_0 and eps
    t = inner_levels()
    x_0, eps = draw(generator, len(t)), draw(generator, len(t))
    c, d = process.coefficients(prediction, t)
    a, b = process.alpha(t), process.sigma(t)
    mu = (process.alpha_dot(t) * d - process.sigma_dot(t) * c) / (a * d - b * c)
    nu = affine(process, prediction, t)[2]
    got = mu * (a * x_0 + b * eps) + nu * (c * x_0 + d * eps)
    # 1e-7: the two parts cancel where alpha or sigma is small
    assert_close(got, process.alpha_dot(t) * x_0 + process.sigma_dot(t) * eps, rtol=1e-7, atol=1e-7)


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


# Shapes and error texts


def test_expand_broadcasts_levels_against_a_batch(generator: torch.Generator) -> None:
    x = draw(generator, 3, 2, 4, 4)
    t = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert expand(t, x).shape == (3, 1, 1, 1)
    assert expand(t[0], x).shape == ()
    assert_close(expand(t, x) * x, torch.stack([a * b for a, b in zip(t, x, strict=True)]), **ROUNDING)


@pytest.mark.parametrize("t", [torch.rand(2), torch.rand(3, 1), torch.rand(1)])
def test_expand_refuses_other_shapes(t: Tensor) -> None:
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\), got \(.*\)\. Give one level"):
        expand(t, torch.zeros(3, 4))


@every_process
def test_unknown_prediction_is_refused_with_the_valid_names(process: GaussianProcess) -> None:
    with pytest.raises(
        ValueError, match="prediction must be one of eps, x_0, v, velocity, score, edm, got 'sample'"
    ):
        process.coefficients("sample", torch.tensor(0.5))


def test_edm_prediction_is_refused_elsewhere() -> None:
    with pytest.raises(
        ValueError, match=r"prediction must not be 'edm' for Flow, got 'edm'\. Use the EDM process"
    ):
        Flow().coefficients("edm", torch.tensor(0.5))
