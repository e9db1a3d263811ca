"""`FiniteData` as it is called: chunks, batches, precisions, devices, weights, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import Cosine, Flow
from nag.theory import FiniteData, LevelPrior
from tests.oracles import PROCESSES, ROUNDING, draw, oracle_of, prior_of, states


def test_result_does_not_depend_on_the_chunks(generator: torch.Generator) -> None:
    data, weights = draw(generator, 50, 2, 3), torch.rand(50, generator=generator)
    x, t = draw(generator, 7, 2, 3), torch.rand(7, generator=generator, dtype=torch.float64)

    def answers(chunk_elements: int) -> list[Tensor]:
        oracle = FiniteData(
            data=data,
            process=Flow(),
            prior=prior_of(Flow()),
            data_weights=weights,
            chunk_elements=chunk_elements,
        )
        single = [oracle.log_likelihood(x, t), oracle.log_posterior(x), oracle.log_marginal(x)]
        return [*single, oracle.posterior_gradient(x, t), oracle.blind(x, "velocity"), oracle.denoised(x, t)]

    whole = answers(2**22)
    assert [tuple(answer.shape) for answer in whole] == [(7,), (7, 80), (7,), (7, 2, 3), (7, 2, 3), (7, 2, 3)]
    for chunk_elements in (1, 7 * 80 * 11):
        for answer, wanted in zip(answers(chunk_elements), whole, strict=True):
            assert_close(answer, wanted, **ROUNDING)


def test_temporaries_are_bounded_whatever_the_size_of_the_data(generator: torch.Generator) -> None:
    sizes: list[int] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                k.numel() for k in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(k)
            )
            return out

    data, x = draw(generator, 4000, 4), draw(generator, 8, 4)
    oracle = FiniteData(data=data, process=Flow(), prior=prior_of(Flow()), chunk_elements=2**15)
    with Recorder():
        oracle.blind(x, "eps")
    bounded = [size for size in sizes if size != data.numel()]  # views of the data itself
    assert max(bounded) <= 2**15
    assert max(bounded) > 2**14  # and the budget is used


def test_result_does_not_depend_on_the_batch(generator: torch.Generator) -> None:
    oracle = oracle_of(Cosine(), generator)
    x, t = states(oracle, 6, generator)
    together = oracle.posterior_gradient(x, t)
    apart = torch.cat([oracle.posterior_gradient(x[i : i + 1], t[i]) for i in range(6)])
    assert_close(together, apart, **ROUNDING)


def test_level_may_be_a_number_a_scalar_or_one_per_query(generator: torch.Generator) -> None:
    oracle = oracle_of(Flow(), generator)
    x, _ = states(oracle, 3, generator)
    scalar = torch.tensor(0.25, dtype=torch.float64)
    for function in (oracle.log_likelihood, oracle.log_posterior, oracle.eps, oracle.posterior_gradient):
        assert_close(function(x, 0.25), function(x, scalar), rtol=0, atol=0)
        assert_close(function(x, scalar), function(x, scalar.expand(3)), **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_everything_is_computed_in_float64(dtype: torch.dtype, generator: torch.Generator) -> None:
    data, x = draw(generator, 5, 3).to(dtype), draw(generator, 2, 3).to(dtype)
    oracle = FiniteData(data=data, process=Flow(), prior=prior_of(Flow()))
    wanted = FiniteData(data=data.double(), process=Flow(), prior=prior_of(Flow()))
    for name in ("eps", "log_likelihood", "log_posterior"):
        answer = getattr(oracle, name)(x, 0.3)
        assert answer.dtype == torch.float64
        assert_close(answer, getattr(wanted, name)(x.double(), 0.3), rtol=0, atol=0)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_device_follows_the_data(device: str, generator: torch.Generator) -> None:
    process = PROCESSES["discrete_vp"]
    data, x = draw(generator, 5, 3), draw(generator, 2, 3)
    here = FiniteData(data=data, process=process, prior=LevelPrior.timesteps(process))
    there = FiniteData(data=data.to(device), process=process, prior=LevelPrior.timesteps(process))
    assert there.posterior_gradient(x, 0.5).device.type == device
    assert_close(there.posterior_gradient(x, 0.5).cpu(), here.posterior_gradient(x, 0.5), **ROUNDING)
    assert_close(there.log_posterior(x).cpu(), here.log_posterior(x), **ROUNDING)
    assert_close(there.blind(x, "v").cpu(), here.blind(x, "v"), **ROUNDING)


def test_integer_weights_are_repeated_data(generator: torch.Generator) -> None:
    data, x = draw(generator, 3, 4), draw(generator, 5, 4)
    repeated = FiniteData(data=data[[0, 0, 0, 1, 2, 2]], process=Flow(), prior=prior_of(Flow()))
    weighted = FiniteData(
        data=data, process=Flow(), prior=prior_of(Flow()), data_weights=torch.tensor([3, 1, 2])
    )
    without = FiniteData(
        data=data, process=Flow(), prior=prior_of(Flow()), data_weights=torch.tensor([1.0, 1.0, 0.0])
    )
    dropped = FiniteData(data=data[:2], process=Flow(), prior=prior_of(Flow()))
    assert len(without.data) == 2
    for left, right in ((weighted, repeated), (without, dropped)):
        assert_close(left.log_marginal(x), right.log_marginal(x), **ROUNDING)
        assert_close(left.posterior_gradient(x, 0.4), right.posterior_gradient(x, 0.4), **ROUNDING)


TWO = LevelPrior.discrete(torch.tensor([0.2, 0.4]))


def two(**changes: Any) -> FiniteData:
    """Two data of three numbers."""
    return FiniteData(**({"data": torch.zeros(2, 3), "process": Flow(), "prior": TWO} | changes))


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (
            lambda: two(prior=LevelPrior.discrete(torch.tensor([0.0, 0.5]))),
            "t must.*noise.*got 0.0",
        ),
        (
            lambda: two().log_likelihood(torch.zeros(2, 3), 0.0),
            "t must.*noise.*got 0.0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(ask: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ask()


@pytest.mark.parametrize("bad", [[-1.0, 2.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("data_weights", lambda weights: two(data_weights=weights)),
        ("loss_weight", lambda weights: two().blind(torch.zeros(1, 3), "eps", lambda t: weights)),
        ("probability", lambda weights: LevelPrior.discrete(TWO.t, weights)),
        (
            "density",
            lambda weights: LevelPrior.quadrature(Flow(), density=lambda t: weights.repeat(len(t) // 2)),
        ),
    ],
)
def test_weights_that_are_no_weights_are_refused(
    name: str, ask: Callable[[Tensor], Any], bad: list[float]
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite, at least 0 and not all 0, got values"):
        ask(torch.tensor(bad))
