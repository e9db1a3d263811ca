"""Laws of `Target` at the levels of every process: there and back, what each target means, and its affine form."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import EDM, Cosine, Flow, GaussianProcess
from nag.noise.target import PREDICTIONS, Target, expand
from tests.noise.test_process import PROCESSES, ROUNDING, draw, every_process, inner_levels, levels


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


@pytest.mark.parametrize(("process", "source", "target"), PAIRS)
def test_reading_one_target_as_another_and_back_is_the_identity(
    process: GaussianProcess, source: str, target: str, generator: torch.Generator
) -> None:
    t = inner_levels()
    value, x_t = draw(generator, len(t), 2, 3), draw(generator, len(t), 2, 3)
    one, other = process.target(source, t), process.target(target, t)
    there = other.value(*one.x_0_and_eps(value, x_t))
    # 1e-8: x_0 from eps divides by alpha, down to 4e-5 at the noisy end of VP, and eps from x_0 by sigma; both twice
    assert_close(one.value(*other.x_0_and_eps(there, x_t)), value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "prediction"), TARGETS)
def test_true_and_any_values_give_data_and_noise_that_make_up_the_state(
    process: GaussianProcess, prediction: str, generator: torch.Generator
) -> None:
    t = inner_levels()
    x_0, eps, value, x_t = (draw(generator, len(t), 5) for _ in range(4))
    target = process.target(prediction, t)
    state = target.state(x_0, eps)
    assert_close(state, process.corrupt(x_0, t, eps), **ROUNDING)
    # 1e-8: a division by alpha or by sigma
    x_0_hat, eps_hat = target.x_0_and_eps(target.value(x_0, eps), state)
    assert_close(x_0_hat, x_0, rtol=1e-8, atol=1e-8)
    assert_close(eps_hat, eps, rtol=1e-8, atol=1e-8)
    assert_close(target.state(*target.x_0_and_eps(value, x_t)), x_t, rtol=1e-8, atol=1e-8)


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
        assert_close(process.target(prediction, t).value(x_0, eps), value, rtol=1e-8, atol=1e-10)


def numbers(target: Target) -> Tensor:
    return torch.stack([target.c, target.d])


def test_v_is_the_velocity_along_the_circle_only() -> None:
    t = torch.tensor(0.3, dtype=torch.float64)
    on_circle = numbers(Cosine().target("velocity", t)) * 2 / math.pi
    assert_close(on_circle, numbers(Cosine().target("v", t)), **ROUNDING)
    flow = numbers(Flow().target("velocity", t)) - numbers(Flow().target("v", t))
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
    assert_close(process.target("edm", t).value(x_0, eps), network, rtol=1e-9, atol=1e-9)


def test_edm_target_has_unit_variance_for_data_of_its_scale() -> None:
    target = EDM().target("edm", levels(EDM()))
    assert_close(0.25 * target.c**2 + target.d**2, torch.ones_like(target.c), **ROUNDING)


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


@pytest.mark.parametrize(("process", "prediction"), [(EDM(), "sample"), (Flow(), "sample"), (Flow(), "edm")])
def test_a_prediction_that_a_process_has_not_is_refused(process: GaussianProcess, prediction: str) -> None:
    with pytest.raises(ValueError, match=f"prediction must be one of eps, x_0, .*, got '{prediction}'"):
        process.target(prediction, torch.tensor(0.5))
