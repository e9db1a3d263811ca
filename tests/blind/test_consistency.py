"""Consistency training against diffusers' consistency scheduler and the papers' tables; the learned variance likewise."""

import itertools
import math

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DDPMScheduler

from nag.blind import ConsistencyScheduler
from nag.blind.consistency import ConsistencyTraining
from nag.blind.learned_variance import variational_bound
from nag.noise.discrete import DiscreteVP

U = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_denoised_point_is_that_of_the_scheduler():
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(4)
    training = ConsistencyTraining(name="ict", num_steps=100)
    x, value = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    s = scheduler.sigmas[:4]
    denoised = training.denoised(value, x, s)
    for i, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x[i : i + 1], timestep)
        close(training.model_input(x, s)[i : i + 1], scaled)
        close(training.timestep(s[i]).double(), timestep.double(), 1e-5)
        reached = scheduler.step(
            value[i : i + 1], timestep, x[i : i + 1], generator=torch.Generator().manual_seed(i)
        )
        noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(i))
        scale = (scheduler.sigmas[i + 1] ** 2 - 0.002**2).clamp(min=0).sqrt()
        close(denoised[i : i + 1], reached.prev_sample - scale * noise, 1e-4)


def test_two_steps_are_at_80_and_0_821():
    """The levels of the released sampler, ct_eval.py of locuslab/ect: t_steps = [80, 0.821], 0 after them."""
    scheduler = ConsistencyScheduler(clip_denoised=False)
    scheduler.set_timesteps(2)
    close(scheduler.sigmas, torch.tensor([80.0, 0.821, 0.002]))
    close(scheduler.timesteps, 250 * torch.tensor([80.0, 0.821], dtype=torch.float64).log(), 1e-9)
    x, ends = torch.randn(2, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 80
    generator, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for level, following in ((80.0, 0.821), (0.821, 0.002)):
        timestep = scheduler.timesteps[scheduler.step_index or 0]
        close(scheduler.scale_model_input(x, timestep), x / math.sqrt(level**2 + 0.25))
        skip = 0.25 / ((level - 0.002) ** 2 + 0.25)
        out = (level - 0.002) * 0.5 / math.sqrt(level**2 + 0.25)
        expected = skip * x + out * ends
        expected = expected + math.sqrt(following**2 - 0.002**2) * torch.randn(x.shape, generator=noise)
        x = scheduler.step(ends, timestep, x, generator=generator).prev_sample
        close(x, expected, 1e-5)


@pytest.mark.parametrize("steps", [1, 3, 18])
def test_other_numbers_of_steps_are_those_of_diffusers(steps):
    ours, theirs = ConsistencyScheduler(), CMStochasticIterativeScheduler(num_train_timesteps=1000)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)


def test_a_saved_second_level_comes_back(tmp_path):
    ConsistencyScheduler(second_sigma=1.5).save_pretrained(tmp_path)
    scheduler = ConsistencyScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(2)
    close(scheduler.sigmas[1], torch.tensor(1.5))
    for wrong in (0.002, 80.0, math.nan):
        with pytest.raises(ValueError, match=f"second_sigma.*80.0, got {wrong}"):
            ConsistencyScheduler(second_sigma=wrong)


def test_the_distance_of_a_pair_is_that_of_the_released_losses():
    """ict: sqrt(|d|^2 + c^2) - c, c = 0.00054 sqrt(pixels), Song 2024, eq. 7; ecm: c = 0, loss.py of locuslab/ect."""
    d = torch.tensor([[3e-3, 4e-3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])[:, None, :, None]
    c = 0.00054 * 2
    huber = torch.tensor([math.sqrt(25e-6 + c**2) - c, 0.0])
    for name, expected in (("ict", huber), ("ecm", torch.tensor([5e-3, 0.0]))):
        x = d.clone().requires_grad_()
        found = ConsistencyTraining(name=name, num_steps=1).distance(x, torch.zeros_like(d))
        close(found, expected, 1e-8)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
    close(gradient[0].flatten(), torch.tensor([0.6, 0.8, 0.0, 0.0]))
    chosen = ConsistencyTraining(name="ecm", num_steps=1, huber=0.00054)
    close(chosen.distance(d, torch.zeros_like(d)), huber, 1e-8)


def test_the_network_has_no_say_at_the_smallest_level():
    training = ConsistencyTraining(name="ecm", num_steps=10)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for level in (0.002, 0.001, 0.0):
        assert torch.equal(training.denoised(torch.full_like(x, 9.0), x, torch.full((3,), level)), x)


def test_ict_grid_doubles_from_10_to_1280():
    """Song 2024, table 1: N(k) = min(s_0 2^floor(k / K'), s_1) + 1 points, K' = floor(K / (log2(s_1 / s_0) + 1))."""
    training = ConsistencyTraining(name="ict", num_steps=800)
    assert [training.num_cells(k) for k in range(0, 800, 100)] == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert training.num_cells(99) == 10
    assert ConsistencyTraining(name="ict", num_steps=3).num_cells(2) == 40


def test_ict_pairs_are_neighbours_drawn_by_the_lognormal():
    training = ConsistencyTraining(name="ict", num_steps=800)
    upper, lower = training.pair(U, 0)
    grid = torch.tensor(
        [(0.002 ** (1 / 7) + i / 10 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(11)],
        dtype=torch.float64,
    )
    cell = torch.searchsorted(grid, (upper + lower) / 2) - 1
    close(lower, grid[cell], 1e-9)
    close(upper, grid[cell + 1], 1e-9)
    edges = [math.erf((math.log(g) + 1.1) / (math.sqrt(2) * 2.0)) for g in grid]
    expected = torch.tensor([b - a for a, b in itertools.pairwise(edges)]) / (edges[-1] - edges[0])
    close(cell.bincount(minlength=10) / len(U), expected, 5e-4)


def test_ecm_pairs_close_up_stage_by_stage():
    """Geng 2024: r / s = 1 - n(s) / q^stage, n(s) = 1 + 8 sigmoid(-s), at most 5."""
    training = ConsistencyTraining(name="ecm", num_steps=800, stages=8)
    assert [training.stage(k) for k in (0, 99, 100, 799)] == [1, 1, 2, 8]
    for step in (0, 350, 799):
        upper, lower = training.pair(U, step)
        n = 1 + 8 / (1 + upper.exp())
        close(lower, (upper * (1 - n / 2 ** training.stage(step))).clamp(min=0), 1e-9)
        assert (lower < upper).all()
        assert (upper >= 0.002).all()
        assert (upper <= 80).all()
    close(training.pair(U, 0)[0].log().median(), torch.tensor(-1.1).double(), 0.02)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="name must be one of ict, ecm, got 'cd'"):
        ConsistencyTraining(name="cd", num_steps=1)


def test_the_bound_is_the_divergence_of_diffusers_own_step():
    """KL of two normals from torch.distributions; means and variances from DDPMScheduler, table "learned_range"."""
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    process = DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([1, 40, 500, 998])
    x_0 = torch.rand(4, 1, 5, 5, generator=generator) * 2 - 1
    eps = torch.randn(x_0.shape, generator=generator)
    eps_hat = eps + 0.1 * torch.randn(x_0.shape, generator=generator)
    value = torch.rand(x_0.shape, generator=generator) * 2 - 1
    x_t = scheduler.add_noise(x_0, eps, timesteps)
    found = variational_bound(process, x_0, x_t, process.t_from_timestep(timesteps.double()), eps_hat, value)

    def mean(noise: torch.Tensor, i: int) -> torch.Tensor:
        step = DDPMScheduler(clip_sample=False)
        step._get_variance = lambda *_, **__: torch.zeros(())
        return step.step(noise[i], timesteps[i], x_t[i], generator=torch.Generator()).prev_sample

    for i, timestep in enumerate(timesteps):
        std = torch.exp(0.5 * scheduler._get_variance(timestep, predicted_variance=value[i]))
        exact = DDPMScheduler()._get_variance(timestep, variance_type="fixed_small").sqrt()
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean(eps, i), exact), torch.distributions.Normal(mean(eps_hat, i), std)
        )
        close(found[i].float(), divergence.mean() / math.log(2), 2e-3)


def test_the_first_timestep_is_a_likelihood_of_8_bit_cells():
    """The cells' probabilities sum to 1 over all 256 grey values."""
    process = DiscreteVP.from_alphas_cumprod(DDPMScheduler().alphas_cumprod)
    grey = (torch.arange(256) / 127.5 - 1)[:, None, None, None]
    t = process.t_from_timestep(torch.zeros(256, dtype=torch.float64))
    x_t = torch.full((256, 1, 1, 1), 0.3)
    eps_hat, value = torch.full_like(x_t, 0.2), torch.full_like(x_t, 0.5)
    bits = variational_bound(process, grey, x_t, t, eps_hat, value)
    torch.testing.assert_close((2.0**-bits).sum(), torch.ones((), dtype=bits.dtype), rtol=0, atol=1e-4)


def test_the_mean_gets_no_gradient_from_the_bound():
    process = DiscreteVP.from_alphas_cumprod(DDPMScheduler().alphas_cumprod)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    eps_hat, value = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
    t = process.t_from_timestep(torch.tensor([0.0, 300.0]))
    variational_bound(process, x, x, t, eps_hat, value).sum().backward()
    assert eps_hat.grad is None
    assert (value.grad != 0).any()
