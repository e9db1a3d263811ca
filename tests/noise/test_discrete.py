"""The process of a table of timesteps, against diffusers; the laws of every process are in test_process.py."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.testing import assert_close

from nag.noise.discrete import DiscreteVP

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64
SCHEDULERS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos": {"beta_schedule": "squaredcos_cap_v2"},
    "short": {"num_train_timesteps": 50},
}


@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_discrete_process_is_the_table_of_diffusers(config: dict) -> None:
    scheduler = DDPMScheduler(**config)
    process = DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod)
    timestep = torch.arange(scheduler.config.num_train_timesteps, dtype=torch.float64)
    t = process.t_from_timestep(timestep)
    assert process.num_train_timesteps == scheduler.config.num_train_timesteps
    assert float(t[-1]) == process.t_max
    assert_close(process.timestep(t), timestep, **ROUNDING)
    table = scheduler.alphas_cumprod.double()
    # through a logarithm and back: 1e-10 relative where alpha^2 is down to 2e-9 (squaredcos)
    assert_close(process.alpha(t) ** 2, table, rtol=1e-10, atol=0)
    assert_close(process.sigma(t) ** 2, 1 - table, rtol=1e-10, atol=0)


def test_discrete_process_adds_noise_as_diffusers_does(generator: torch.Generator) -> None:
    scheduler = DDPMScheduler()
    process = DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod)
    timestep = torch.tensor([0, 1, 500, 998, 999])
    x_0, eps = (torch.randn(5, 1, 4, 4, generator=generator) for _ in range(2))
    wanted = scheduler.add_noise(x_0, eps, timestep)
    got = process.corrupt(x_0, process.t_from_timestep(timestep), eps)
    assert_close(got, wanted, rtol=1e-5, atol=1e-5)  # float32
    v = process.target("v", process.t_from_timestep(timestep)).value(x_0, eps)
    assert_close(v, scheduler.get_velocity(x_0, eps, timestep), rtol=1e-5, atol=1e-5)


def test_discrete_process_is_linear_in_log_snr_between_timesteps() -> None:
    process = DiscreteVP.from_alphas_cumprod(DDPMScheduler().alphas_cumprod)
    at = process.log_snr(process.t_from_timestep(torch.tensor([400.0, 400.25, 401.0], dtype=torch.float64)))
    assert_close(at[1], 0.75 * at[0] + 0.25 * at[2], **ROUNDING)


def test_zero_terminal_snr_stays_finite() -> None:
    table = DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    process = DiscreteVP.from_alphas_cumprod(table)
    t = torch.tensor(1.0, dtype=torch.float64)
    assert_close(process.log_snr(t), torch.tensor(math.log(2**-126), dtype=torch.float64), rtol=1e-9, atol=0)
    assert float(process.sigma(t)) == 1.0


@pytest.mark.parametrize("table", [(1.0,), (1.0, 1.0), (1.0, 2.0), (3.0, 1.0, 2.0)])
def test_table_that_does_not_fall_is_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"log_snr_table must fall strictly over at least 2 timesteps, got \d values"
    ):
        DiscreteVP(log_snr_table=table)
