"""Scores of unusual images on real small networks, the area under the ROC curve, and the sets that are to be told apart."""

import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from nag.blind import EquilibriumMatchingScheduler
from nag.blind.energy import equilibrium_field, explicit_energy
from nag.network.regressor import NoiseLevelRegressor
from nag.pipelines.equilibrium_matching import EqMPipeline
from tests.models import tiny_unet, write_parquet

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "noise_unconditional"))
from ood import OOD_SCORES, auroc, ood_scores, other_images, shifted_sets


def images(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1


def eqm(energy: str | None = None, classes: int | None = None) -> EqMPipeline:
    unet = tiny_unet(seed=1, num_class_embeds=classes)
    return EqMPipeline(unet=unet, scheduler=EquilibriumMatchingScheduler(), energy=energy)


@pytest.fixture
def regressor(ddim_scheduler):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NoiseLevelRegressor.from_unet(tiny_unet(), ddim_scheduler, hidden_size=8).eval()


@pytest.mark.parametrize("classes", [None, 4])
def test_energy_and_gradient_norm_are_those_of_the_network_at_the_image(generator, classes):
    pipe, x = eqm("dot", classes), images(5, generator)
    labels = None if classes is None else torch.full((5,), classes - 1)
    with torch.no_grad():
        energy = explicit_energy(pipe.unet, x, labels, "dot")
        norm = equilibrium_field(pipe.unet, x, labels, "dot").flatten(1).norm(dim=1)
    batched = {"rtol": 1e-4, "atol": 1e-4}  # single precision, another batch size
    torch.testing.assert_close(ood_scores(pipe, x, "energy", batch_size=2).float(), energy, **batched)
    torch.testing.assert_close(ood_scores(pipe, x, "gradient_norm", batch_size=3).float(), norm, **batched)
    assert norm.std() > 0


def test_the_gradient_norm_needs_no_explicit_energy(generator):
    pipe, x = eqm(), images(3, generator)
    with torch.no_grad():
        norm = equilibrium_field(pipe.unet, x).flatten(1).norm(dim=1)
    torch.testing.assert_close(ood_scores(pipe, x, "gradient_norm").float(), norm, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="energy.*got None"):
        ood_scores(pipe, x, "energy")


def test_surprise_is_minus_the_log_density_of_the_estimate(regressor, generator):
    x, reference = images(6, generator), 0.3 * images(40, generator)
    found = ood_scores(regressor, x, "surprise", reference=reference, batch_size=4)
    with torch.no_grad():
        wanted, expected = (regressor.estimate(part).log_snr.double() for part in (x, reference))
    normal = torch.distributions.Normal(expected.mean(), expected.std())
    torch.testing.assert_close(found, -normal.log_prob(wanted), rtol=1e-4, atol=1e-4)  # single precision


def test_surprise_at_a_level_noises_both_sets_alike(regressor, generator):
    reference = images(200, generator)
    noisy = {"reference": reference, "log_snr": 2.0}
    same = ood_scores(regressor, images(200, generator), "surprise", **noisy)
    again = ood_scores(regressor, 0 * reference, "surprise", seed=1, **noisy)
    entropy = -same.mean()  # of fresh draws of the reference's own kind: the normal's, up to sampling
    with torch.no_grad():
        alpha, sigma = regressor.process.alpha_sigma(torch.tensor(2.0))
        eps = torch.randn(reference.shape, generator=generator)
        spread = regressor.estimate(alpha * reference + sigma * eps).log_snr.double().std()
    torch.testing.assert_close(-entropy, 0.5 * (2 * math.pi * math.e * spread**2).log(), rtol=0, atol=0.25)
    assert again.mean() > same.mean()


@pytest.mark.parametrize(
    ("inside", "outside"),
    [([0.0, 1, 2, 3], [1.5, 2.5, 3.5]), ([0.0, 0, 1], [0.0, 1, 1]), ([5.0, 6], [1.0, 2, 3])],
)
def test_auroc_counts_pairs(inside, outside):
    pairs = [(high > low) + 0.5 * (high == low) for low, high in product(inside, outside)]
    found = auroc(torch.tensor(inside), torch.tensor(outside))
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.value == pytest.approx(
        roc_auc_score([0] * len(inside) + [1] * len(outside), inside + outside)
    )


def test_its_standard_error_is_the_spread_over_fresh_draws(generator):
    draws, errors = [], []
    for _ in range(400):
        inside = torch.randn(60, generator=generator)
        found = auroc(inside, 0.8 + 1.5 * torch.randn(40, generator=generator))
        draws.append(found.value)
        errors.append(found.standard_error)
    values = torch.tensor(draws)
    assert float(values.mean()) == pytest.approx(0.6713, abs=0.01)  # Phi(0.8 / sqrt(1 + 1.5^2))
    assert float(torch.tensor(errors).mean()) == pytest.approx(float(values.std()), rel=0.1)


def test_shifted_sets_keep_what_they_must(generator):
    x = torch.rand(4, 3, 6, 5, generator=generator) * 2 - 1
    sets = shifted_sets(x, seed=5)
    torch.testing.assert_close(sets["inverted"], -x, rtol=0, atol=0)
    assert sets["noise"].abs().max() <= 1
    assert sets["noise"].shape == x.shape
    permuted = sets["permuted"]
    assert not torch.equal(permuted, x)
    # whole pixels move, all images alike
    before, after = (part.flatten(2).transpose(0, 2).reshape(30, -1) for part in (x, permuted))
    assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
    for name, again in shifted_sets(x, seed=5).items():
        torch.testing.assert_close(again, sets[name], rtol=0, atol=0)
    assert not torch.equal(shifted_sets(x, seed=6)["permuted"], permuted)


def test_other_images_take_the_size_of_these(tmp_path, generator):
    folder = write_parquet(tmp_path / "other", count=7)
    found = other_images(folder, torch.zeros(1, 1, 4, 4), num_images=5)
    assert found.shape == (5, 1, 4, 4)
    assert found.std() > 0.05
    with pytest.raises(ValueError, match="like must hold square images"):
        other_images(folder, torch.zeros(1, 1, 4, 5))


def test_what_cannot_be_scored_is_refused(regressor, generator):
    x, pipe = images(3, generator), eqm("dot")
    for score in OOD_SCORES[:2]:
        with pytest.raises(TypeError, match="model must be an EqMPipeline"):
            ood_scores(regressor, x, score)
    with pytest.raises(TypeError, match="model must be a NoiseLevelRegressor"):
        ood_scores(pipe, x, "surprise", reference=x)
    with pytest.raises(ValueError, match="score must be one of energy, gradient_norm, surprise"):
        ood_scores(pipe, x, "likelihood")
    with pytest.raises(ValueError, match="images must hold at least one"):
        ood_scores(pipe, x[:0], "energy")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ood_scores(pipe, x, "energy", batch_size=0)
    for reference in (None, x[:1]):
        with pytest.raises(ValueError, match="reference must hold at least 2 images"):
            ood_scores(regressor, x, "surprise", reference=reference)
    with pytest.raises(ValueError, match="reference must hold images that the regressor tells apart"):
        ood_scores(regressor, x, "surprise", reference=x[:1].repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="log_snr must lie within the regressor's"):
        ood_scores(regressor, x, "surprise", reference=x, log_snr=50.0)
    with pytest.raises(FloatingPointError, match="scores must be finite, got 3 of 3"):
        ood_scores(pipe, x * math.nan, "energy")
    for inside, outside in ((torch.zeros(1), torch.zeros(5)), (torch.zeros(5), torch.full((5,), math.nan))):
        with pytest.raises(ValueError, match="must hold at least 2 finite scores"):
            auroc(inside, outside)
