"""The Fisher floor against its definition, and the measurement against an estimator that reaches it."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from nag.network.regressor import NoiseEstimate
from nag.noise.process import EDM, Flow, GaussianProcess, VariancePreserving
from nag.shift.accuracy import fisher_floor, measure_accuracy, plot_accuracy

LEVELS = torch.tensor([-2.0, 0.0, 3.0, 5.0], dtype=torch.float64)


def test_floor_of_a_vp_process_in_closed_form():
    norms = torch.tensor([30.0, 180.0], dtype=torch.float64)
    found = fisher_floor(VariancePreserving(), LEVELS, norms, 256)
    alpha, sigma = VariancePreserving().alpha_sigma(LEVELS)
    each = [2 / (alpha * (2 * 256 * alpha**2 + sigma**2 * n).sqrt()) for n in norms]
    torch.testing.assert_close(found, ((each[0] ** 2 + each[1] ** 2) / 2).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", [VariancePreserving(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_floor_is_the_curvature_of_the_divergence(process):
    """Oracle: the Fisher information is 2 KL(p(x|l) || p(x|l + h)) / h^2 as h goes to 0."""
    dimension, norm, h = 48, torch.tensor([20.0], dtype=torch.float64), 1e-4

    def divergence(a, b):
        (alpha, sigma), (other, width) = process.alpha_sigma(a), process.alpha_sigma(b)
        ratio = sigma**2 / width**2
        return 0.5 * (dimension * (ratio - 1 - ratio.log()) + (alpha - other) ** 2 * norm / width**2)

    information = (divergence(LEVELS, LEVELS + h) + divergence(LEVELS, LEVELS - h)) / h**2
    found = fisher_floor(process, LEVELS, norm, dimension)
    torch.testing.assert_close(found, information.rsqrt(), rtol=1e-4, atol=0)  # h^2 and rounding over h^2


@dataclass
class VarianceEstimator:
    """For black images (x_0 = 0): the sample variance is sufficient for sigma, and reaches the floor for large d."""

    process: GaussianProcess = VariancePreserving()
    log_snr_range: tuple[float, float] = (-10.0, 10.0)
    claim: float = 1.0

    def estimate(self, x, class_labels=None):
        variance = x.square().mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        error = self.claim * math.sqrt(2 / x[0].numel()) / (1 - variance)
        return NoiseEstimate(log_snr=((1 - variance) / variance).log(), variance=error**2)


def test_an_efficient_estimator_is_measured_at_the_floor_and_covers_as_it_says():
    images = torch.zeros(2000, 1, 32, 32)
    levels = torch.tensor([1.0, 3.0, 5.0])
    found = measure_accuracy(VarianceEstimator(), images, log_snr=levels)
    # 2,000 states: 1.6 % on the error; second-order terms of the estimator are O(1/d)
    assert found.ratio == pytest.approx((1, 1, 1), abs=0.05)
    assert found.rmse_standard_error == pytest.approx([r / math.sqrt(2 * 2000) for r in found.rmse], rel=0.2)
    overconfident = measure_accuracy(VarianceEstimator(claim=0.5), images[:500], log_snr=levels)
    assert overconfident.coverage_90 < 0.7  # P(|z| < 0.82) = 0.59
    assert found.worst_ratio(0, 3) == max(found.ratio[:2])


def test_the_plot_and_the_numbers_are_written(tmp_path):
    found = measure_accuracy(VarianceEstimator(), torch.zeros(20, 1, 8, 8), log_snr=torch.tensor([1.0, 3.0]))
    plot_accuracy({"variance": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(json.dumps(found.to_dict()))["count"] == 20
