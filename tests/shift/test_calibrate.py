"""Measuring a calibration: a network with a known error, whose shift at every step follows from a recursion by hand.

Black images (x_0 = 0) and a network that predicts (1 - b alpha^2) eps: a DDIM step multiplies a state r z, z ~ N(0, I),
by a number, so r is known at every step, and the sample variance tells the level exactly.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DModel

from nag.network.regressor import NoiseEstimate
from nag.noise.process import GaussianProcess
from nag.noise.read import read_levels, read_training
from nag.pipelines import UNet2DPipeline
from nag.seams import attach
from nag.shift.calibrate import calibrate
from tests.models import tiny_unet

BIAS, SIZE, STEPS, START = 0.3, 24, 12, -1.0  # START: below it 576 pixels do not tell the level


class Shrinking(UNet2DModel):
    """Predicts (1 - BIAS alpha^2) eps for black images, from the level that it is told."""

    def __init__(self) -> None:
        config = {k: v for k, v in tiny_unet().config.items() if not k.startswith("_")}
        super().__init__(**config | {"sample_size": SIZE})
        self.process = read_training(DDIMScheduler())

    def forward(self, sample, timestep, class_labels=None):
        t = self.process.t_from_timestep(torch.as_tensor(timestep).double())
        factor = (1 - BIAS * self.process.alpha(t) ** 2) / self.process.sigma(t)
        return SimpleNamespace(sample=factor.to(sample) * sample)


@dataclass
class VarianceEstimator:
    process: GaussianProcess
    log_snr_range: tuple[float, float] = (-10.0, 10.0)

    def estimate(self, x, class_labels=None):
        variance = x.square().mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return NoiseEstimate(
            log_snr=((1 - variance) / variance).log(), variance=torch.full_like(variance, 1e-3)
        )


@pytest.fixture
def pipe():
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    return attach(UNet2DPipeline(unet=Shrinking(), scheduler=scheduler))


def by_hand(levels, corrected: bool, interval_start: float) -> list[float]:
    """log(sigma/alpha) minus nominal at each step: the recursion of the state's scale, plain or corrected."""
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    scale, shifts = sigma[0], []
    for i in range(len(alpha)):
        own = math.log(scale / math.sqrt(1 - scale**2)) if scale < 1 else math.nan
        shifts.append(own - math.log(sigma[i] / alpha[i]))
        at_alpha, at_sigma = alpha[i], sigma[i]
        if corrected and levels.log_snr[i] >= interval_start:
            at_alpha, at_sigma = math.sqrt(1 - scale**2), scale
        if i + 1 < len(alpha):
            eps_hat = (1 - BIAS * at_alpha**2) * scale / at_sigma
            x_0_hat = (scale - at_sigma * eps_hat) / at_alpha
            scale = alpha[i + 1] * x_0_hat + sigma[i + 1] * eps_hat
    return shifts


def calibrated(pipe, batch_size=64):
    return calibrate(
        pipe, VarianceEstimator(pipe.unet.process), torch.zeros(64, 1, SIZE, SIZE), num_inference_steps=STEPS,
        num_samples=64, batch_size=batch_size, interval=(START, None), progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [64, 16])
def test_the_table_holds_the_levels_of_the_corrected_sampler(pipe, batch_size):
    found = calibrated(pipe, batch_size)
    levels = read_levels(pipe.scheduler)
    corrected, plain = by_hand(levels, True, START), by_hand(levels, False, START)
    measured = [i for i in range(STEPS) if levels.log_snr[i] >= START]
    assert len(measured) >= 4
    # 64 samples of 576 pixels: 0.004 in log sigma, one over alpha^2 more in log(sigma/alpha); batches feed back a little
    for i in measured:
        assert found.shift[i] == pytest.approx(corrected[i], abs=0.02), i
    # a table of the plain sampler would fail
    assert abs(plain[measured[-1]] - corrected[measured[-1]]) > 0.1
    for i in set(range(STEPS)) - set(measured):
        assert found.shift[i] == 0
        assert found.standard_error[i] == 0
    assert found.samples == 64
    found.check(pipe.scheduler, eta=0.0, guidance_scale=1.0, corrections=())


def test_the_table_is_used_as_it_was_measured(pipe):
    """A run with the finished table passes through the levels of the table."""
    estimator = VarianceEstimator(pipe.unet.process)
    table = calibrated(pipe)
    seen = []
    pipe.set_progress_bar_config(disable=True)
    pipe(
        batch_size=64,
        num_inference_steps=STEPS,
        noise_calibration=table,
        generator=[torch.Generator().manual_seed(1000 + i) for i in range(64)],
        output_type="latent",
        callback_on_step_end=lambda _, i, t, kept: (
            seen.append(estimator.estimate(kept["latents"]).log_snr.mean().item()) or {}
        ),
    )
    for i in range(1, STEPS):
        if table.nominal_log_snr[i] >= START:
            # other noise: twice 0.02 in log_snr
            assert seen[i - 1] == pytest.approx(table.log_snr[i], abs=0.06)


def test_refusals(pipe):
    estimator, images = VarianceEstimator(pipe.unet.process), torch.zeros(16, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match="samples.* 4 and 16"):
        calibrate(pipe, estimator, images, num_samples=4)
    pipe.scheduler = HeunDiscreteScheduler()
    with pytest.raises(ValueError, match="scheduler must step from the state it is handed"):
        calibrate(pipe, estimator, images)
