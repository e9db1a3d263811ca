"""docs/fractal.md: the truth is exact, the page is what was measured, the scripts run from end to end."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import multivariate_normal

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "fractal"
NAMES = ("truth", "networks", "run", "draw")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts; other examples have some of the same names."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield __import__
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def points(scripts):
    """A noised mixture and states of it, some of them far away."""
    mixture = scripts("truth").trees().noised(0.8, 0.6)
    labels = torch.arange(6) % 2
    x = mixture.sample(labels, torch.Generator().manual_seed(0))
    return mixture, x * torch.tensor([1, 1, 1, 1, 4, 4])[:, None], labels


def test_density_of_a_noised_state_is_that_of_scipy(scripts, points):
    mixture, x, labels = points
    truth = scripts("truth").trees()
    covariance = truth.axes @ torch.diag_embed(truth.spread**2) @ truth.axes.mT
    covariance = 0.64 * covariance + 0.36 * torch.eye(2, dtype=torch.float64)
    each = torch.stack(
        [
            torch.as_tensor(multivariate_normal(0.8 * mean.numpy(), cov.numpy()).pdf(x.numpy()))
            for mean, cov in zip(truth.mean, covariance, strict=True)
        ],
        dim=1,
    )
    weighted = each * truth.weight
    torch.testing.assert_close(mixture.log_density(x), weighted.sum(1).log())
    of_class = weighted * (truth.label == labels[:, None])
    torch.testing.assert_close(mixture.log_density(x, labels), (2 * of_class.sum(1)).log())
    branch = torch.stack([of_class[:, truth.branch == b].sum(1) for b in range(62)], 1)
    torch.testing.assert_close(mixture.branches(x, labels), branch / branch.sum(1, keepdim=True))


@pytest.mark.parametrize("told", [True, False])
def test_the_score_is_the_gradient_of_the_log_density(points, told):
    mixture, x, labels = points
    labels = labels if told else None
    score = mixture.score(x, labels)
    (gradient,) = torch.autograd.grad(mixture.log_density(x.requires_grad_(), labels).sum(), x)
    torch.testing.assert_close(score, gradient)
    step, apart = 1e-5, []
    for axis in torch.eye(2, dtype=torch.float64):
        ends = [mixture.log_density(x.detach() + sign * step * axis, labels) for sign in (1, -1)]
        apart.append((ends[0] - ends[1]) / (2 * step))
    torch.testing.assert_close(score, torch.stack(apart, 1), rtol=1e-5, atol=1e-6)  # finite differences


def test_samples_have_the_moments_and_shares_of_the_truth(scripts):
    truth = scripts("truth").trees()
    labels = torch.arange(40_000) % 2
    x = truth.sample(labels, torch.Generator().manual_seed(0))
    assert x.mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert float((x**2).mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(truth.branches(x, labels).mean(0), truth.shares, rtol=0, atol=0.005)
    assert float(truth.shares.sum()) == pytest.approx(1)


@pytest.mark.slow
def test_the_divergence_falls_to_its_floor_with_the_truth_and_is_one_far_away(scripts):
    truth = scripts("truth")
    mixture, labels = truth.trees(), torch.arange(20_000) % 2
    cells = truth.true_cells(mixture)
    assert float(cells.sum()) == pytest.approx(1)
    x = mixture.sample(labels, torch.Generator().manual_seed(0))
    found = [truth.divergence(x[:n], labels[:n], cells) for n in (1000, 5000, 20_000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.05
    assert truth.divergence(x, 1 - labels, cells) > 0.8
    assert truth.divergence(x + 100, labels, cells) == pytest.approx(1)


def test_a_thin_network_is_the_same_function_of_one_pixel_and_is_saved_whole(scripts, tmp_path):
    from nag.network.table import load_network

    networks = scripts("networks")
    torch.manual_seed(0)
    plain = networks.network(8).eval()
    thin = networks.thin(networks.network(8)).eval()
    thin.load_state_dict(
        {k: v[..., 1:2, 1:2] if v.shape[2:] == (3, 3) else v for k, v in plain.state_dict().items()}
    )
    networks.save(thin, tmp_path / "thin")
    x, labels = torch.randn(6, 2, 1, 1), torch.arange(6) % 3
    wanted = plain(x, 5, class_labels=labels).sample
    for other in (
        thin,
        load_network(str(tmp_path / "thin")),
        networks.load(tmp_path / "thin").unet,
    ):
        torch.testing.assert_close(other(x, 5, class_labels=labels).sample, wanted)


def test_handed_the_exact_field_the_sampler_has_no_error(scripts):
    """What is measured as the error of the score vanishes where the network is the exact one."""
    run, networks = scripts("run"), scripts("networks")
    pipe = networks.UNet2DPipeline(unet=networks.network(8), scheduler=networks.scheduler())
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(10) % 2
    states, exact = run.forward_states(scripts("truth").trees(), pipe.scheduler, labels, seed=0, steps=5)

    def forward(u, timestep, class_labels=None, **_):
        i = pipe.scheduler.step_index or 0
        return SimpleNamespace(sample=exact[i].float()[..., None, None])

    pipe.unet.forward = forward
    options = run.Options(num_inference_steps=5)
    _, cost, moves = run.sampled(pipe, "plain", labels, 0, options, told=states)
    for move, eps in zip(moves, exact, strict=True):
        torch.testing.assert_close(move[..., 0, 0], eps.float(), rtol=1e-3, atol=1e-3)
    assert cost == 5


@pytest.mark.slow
def test_the_whole_runs_and_resumes(scripts, monkeypatch, tmp_path):
    run, draw = scripts("run"), scripts("draw")
    monkeypatch.setattr(scripts("truth"), "CELLS", 24)
    few = {
        "train_steps": 16,
        "num_samples": 20,
        "num_choosing": 20,
        "num_states": 10,
        "num_inference_steps": 3,
    }
    options = {"models": tmp_path / "models", "output": tmp_path / "results.json", "trainings": 2, **few}
    monkeypatch.setattr(
        run, "METHODS", {name: (text, weights[:2]) for name, (text, weights) in run.METHODS.items()}
    )
    run.main(run.Options(methods=("plain", "noise guidance"), **options))
    first = json.loads(options["output"].read_text())
    assert first["plain/0"]["evaluations"] == 3
    assert first["noise guidance/0"]["evaluations"] > 3
    assert len(first["plain/1"]["score_error"]) == 3
    run.main(run.Options(**options))
    whole = json.loads(options["output"].read_text())
    assert whole.items() >= first.items()  # nothing is measured twice
    monkeypatch.setattr(draw, "RESULTS", options["output"])
    assert "Not run" not in draw.table()
    del whole["self-guidance/1"]
    options["output"].write_text(json.dumps(whole))
    assert "Not run: self-guidance (`python examples/fractal/run.py` goes on" in draw.table()
    with pytest.raises(SystemExit, match="other settings"):
        run.main(run.Options(**options | {"num_samples": 10}))


def test_the_page_is_what_was_measured(scripts):
    draw = scripts("draw")
    assert (ROOT / "docs" / "fractal.md").read_text(encoding="utf-8") == draw.page()
    assert draw.table().count("\n") > 4  # and there is something to show
