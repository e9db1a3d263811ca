"""The blind check: exact parts against closed forms, walks against the pipelines themselves, criteria, files and the command."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from nag.blind import UnifiedScheduler
from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.noise.discrete import DiscreteVP
from nag.noise.measured import Measured
from nag.noise.process import Flow
from nag.noise.read import read_levels
from nag.quality.blind_check import BlindCheck, DriftRow, LevelRow, Walk, reading
from nag.quality.blind_exact import Knowledge, both_schedules, chosen_levels, drift_rows, know
from nag.quality.blind_measure import Network, level_rows, own_walk, walk
from nag.quality.blind_report import FILES, answer, write_blind_check
from nag.quality.feature_network import SmallClassifier
from nag.shift.calls import sample_generators
from nag.shift.page import check_output
from tests.command import nag
from tests.models import tiny_checkpoint, tiny_unet, write_parquet
from tests.oracles import SCHEDULERS, ExactUNet


def draws(generator, count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


# Exact on the data


def test_the_width_obeys_the_law_of_known_images(generator):
    """Flow, t = 0.1, D = 256: Var[t | x] = t^2 / (2 D + |x_0|^2), and in log-SNR that over (t (1 - t) / 2)^2."""
    data = draws(generator, 30, 256)
    known, t = know(Flow(), data), torch.tensor(0.1, dtype=torch.float64)
    known.check(t[None])
    found = known.at(Flow().corrupt(data, t, draws(generator, 30, 256)), None, t, ("velocity",))
    law = 0.01 / (512 + data.square().sum(1))
    torch.testing.assert_close(found.variance_t.mean(), law.mean(), rtol=0.05, atol=0)  # first order in 1/D
    wanted = (law / (0.5 * 0.1 * 0.9) ** 2).mean()
    torch.testing.assert_close(found.variance_log_snr.mean(), wanted, rtol=0.05, atol=0)


def test_classes_have_posteriors_of_their_own(generator):
    """A state of class 0 is compared with the images of class 0 alone."""
    data, labels = draws(generator, 8, 6), torch.tensor([0, 1] * 4)
    t = torch.tensor(0.6, dtype=torch.float64)
    x = Flow().corrupt(data, t, draws(generator, 8, 6))
    panels = {"panels": 40}
    both = know(Flow(), data, labels, **panels).at(x, labels, t, ("eps",)).difference["eps"]
    alone = know(Flow(), data[labels == 0], **panels).at(x[labels == 0], None, t, ("eps",)).difference["eps"]
    torch.testing.assert_close(both[labels == 0], alone, rtol=1e-9, atol=1e-9)
    pooled = know(Flow(), data, **panels).at(x, labels, t, ("eps",)).difference["eps"]
    assert (pooled - both).norm() > 0.01 * both.norm()


def test_the_relative_drift_error_is_half_the_error_of_the_noise(generator):
    """Per unit of log-SNR the flow moves a state by sigma eps_hat / 2, on every schedule and for every target."""
    data, eps = draws(generator, 12, 8), draws(generator, 12, 8)
    known = know(Flow(), data, panels=60)
    schedules = both_schedules(known, data, None)
    assert schedules["flow"] is known
    rows = {(row.schedule, row.target): row for row in drift_rows(schedules, data, None, eps, [-1.0, 20.0])}
    assert {row.log_snr for row in rows.values()} == {-1.0, 20.0}
    assert ("vp", "eps") in rows  # and not at 20, which its table does not reach
    for name, part in schedules.items():
        t = part.process.t_from_log_snr(torch.tensor(-1.0, dtype=torch.float64))
        exact = part.at(part.process.corrupt(data, t, eps), None, t, ("eps", "x_0"))
        alpha, sigma = part.process.alpha(t), part.process.sigma(t)
        noise = {"eps": exact.difference["eps"], "x_0": alpha / sigma * exact.difference["x_0"]}
        row = next(r for r in drift_rows({name: part}, data, None, eps, [-1.0]) if r.target == "eps")
        for target, error in noise.items():
            row = next(r for r in drift_rows({name: part}, data, None, eps, [-1.0]) if r.target == target)
            wanted = 0.5 * float(error.norm(dim=1).mean()) / math.sqrt(8)
            assert row.relative.value == pytest.approx(wanted, rel=1e-6)
            assert row.drift.value == pytest.approx(row.gain * row.error.value, rel=1e-9)


# The network


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "x_0"])
def test_a_perfect_network_is_explained_and_trusted(name, generator):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(20)
    levels = read_levels(scheduler)
    unet = ExactUNet(levels)
    known = Knowledge(process=levels.training, oracles={None: unet.oracle})
    x_0, eps = unet.oracle.data, draws(generator, 6, 1, 4, 4)
    t = chosen_levels(levels.training, [-1.0, 1.0])
    rows = level_rows(Network(unet=unet, levels=levels), known, x_0, None, eps, t)
    for row in rows:
        assert row.explained.value == pytest.approx(1, abs=0.02)  # the network works in single precision
        assert row.alignment.value == pytest.approx(1, abs=0.02)
        assert row.null_error.value == pytest.approx(row.exact_error.value, rel=0.02)


def test_an_error_of_the_null_branch_is_not_explained(generator):
    """The test above can fail: a perfect network whose null branch is off is not."""

    class Off(ExactUNet):
        def forward(self, sample, timestep, class_labels=None, **_):
            output = super().forward(sample, timestep, class_labels)
            embedding = self.time_embedding(self.time_proj(timestep.float().expand(len(sample))))
            output.sample = output.sample + (embedding.abs().sum() == 0) * 0.8
            return output

    scheduler = SCHEDULERS["eps"]()
    scheduler.set_timesteps(20)
    unet = Off(read_levels(scheduler))
    known = Knowledge(process=unet.levels.training, oracles={None: unet.oracle})
    t = chosen_levels(unet.levels.training, [1.0])
    eps = draws(generator, 6, 1, 4, 4)
    (row,) = level_rows(Network(unet=unet, levels=unet.levels), known, unet.oracle.data, None, eps, t)
    assert row.explained.value < 0.3
    assert not result(levels=(row,)).trusts(row)


TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
SAMPLERS = {
    "ddim": DDIMScheduler(**TRAILING),
    "v": DDIMScheduler(**TRAILING, prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(sigma_max=10.0),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_walks_end_where_the_pipeline_does(name, generator):
    """Deterministic first-order samplers: told and blind, to single precision."""
    scheduler = SAMPLERS[name]
    pipe = NAGPipeline.from_pipe(DDIMPipeline(unet=tiny_unet(num_class_embeds=3), scheduler=DDIMScheduler()))
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    noise, labels = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0, 1, 1])
    arguments = {"class_labels": labels, "num_inference_steps": 5, "output_type": "latent"}
    told = pipe(latents=noise, **arguments).images
    with null_level(pipe.unet):
        blind = pipe(latents=noise, **arguments).images
    scheduler.set_timesteps(5)
    network = Network(unet=pipe.unet, levels=read_levels(scheduler))
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    options = {"seed": 0, "init_noise_sigma": start, "batch_size": 2}
    found, ends = walk(network, noise, labels, stochasticity=0.0, **options)
    close = {"rtol": 2e-3, "atol": 2e-3 * float(told.abs().max())}  # the pipeline works in single precision
    torch.testing.assert_close(ends.told.float(), told, **close)
    torch.testing.assert_close(ends.blind.float(), blind, **close)
    assert (told - blind).norm() > 10 * (ends.told.float() - told).norm()
    distance = (ends.blind - ends.told).flatten(1).norm(dim=1)
    assert found.distance == pytest.approx(float(distance.median()))
    assert found.bound >= found.distance
    wanted = distance / ends.told.flatten(1).norm(dim=1)
    assert found.relative_distance.value == pytest.approx(float(wanted.mean()))


def test_stochastic_walks_have_the_noise_of_ddpm(generator):
    """For a network that answers eps = 0, x' = (alpha'/alpha) x + posterior noise: its variance is known."""
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    unet = tiny_unet()
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    levels = read_levels(scheduler)
    network = Network(unet=unet, levels=levels)
    noise = torch.randn(200, 1, 8, 8, generator=generator)
    _, ends = walk(network, noise, None, stochasticity=1.0, seed=1, init_noise_sigma=1.0, batch_size=200)
    table = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    variance = torch.tensor(1.0, dtype=torch.float64)
    for a, after in zip(table, [*table[1:], torch.tensor(1.0).double()], strict=True):
        posterior = (1 - after) / (1 - a) * (1 - a / after)
        variance = variance * after / a + posterior
    torch.testing.assert_close(ends.told.var(), variance, rtol=0.03, atol=0)  # 12,800 numbers
    assert torch.equal(ends.told, ends.blind)  # this network does not listen to its level


@pytest.mark.parametrize("clipped", [True, False])
def test_its_own_samples_are_the_pipeline_s_with_their_clipping(clipped):
    """Told as the pipeline samples by itself, blind as it does with the level embedding's output set to zero."""
    scheduler = DDPMScheduler(clip_sample=clipped, clip_sample_range=0.1)
    pipe = NAGPipeline.from_pipe(DDIMPipeline(unet=tiny_unet(num_class_embeds=3), scheduler=DDIMScheduler()))
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    labels = torch.tensor([0, 1, 1])
    found, ends = own_walk(pipe, labels, steps=4, num_samples=3, seed=5, batch_size=2)

    def sampled() -> torch.Tensor:
        generator = sample_generators(5, 0, 3)
        arguments = {"class_labels": labels, "num_inference_steps": 4, "output_type": "latent"}
        return pipe(generator=generator, **arguments).images

    with null_level(pipe.unet):
        blind = sampled()
    close = {"rtol": 1e-4, "atol": 1e-5}  # in batches of 2 and 1 there, of 3 here
    torch.testing.assert_close(ends.told.float(), sampled(), **close)
    torch.testing.assert_close(ends.blind.float(), blind, **close)
    assert bool(ends.told.abs().max() <= 0.1 + 1e-6) == clipped  # the last step ends at the clipped data
    wanted = (ends.blind - ends.told).flatten(1).norm(dim=1) / ends.told.flatten(1).norm(dim=1)
    assert found.relative_distance.value == pytest.approx(float(wanted.mean()))
    assert found.name == "its own (DDPMScheduler)"


def test_its_own_sampler_that_diverges_says_so():
    unet = tiny_unet()
    torch.nn.init.constant_(unet.conv_out.bias, math.inf)
    pipe = NAGPipeline.from_pipe(DDIMPipeline(unet=unet, scheduler=DDIMScheduler(clip_sample=False)))
    found, ends = own_walk(pipe, None, steps=2, num_samples=2, seed=0)
    assert (found.diverged, ends) == (True, None)


def test_levels_that_come_twice_are_walked_once(generator):
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(6)
    network = Network(unet=tiny_unet(), levels=read_levels(scheduler))
    found, _ = walk(
        network,
        torch.randn(2, 1, 8, 8, generator=generator),
        None,
        stochasticity=0.0,
        seed=0,
        init_noise_sigma=float(scheduler.init_noise_sigma),
    )
    assert len(found.log_snr) == 6
    assert list(found.log_snr) == sorted(found.log_snr)


def test_a_walk_that_diverges_says_so(generator):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    unet = tiny_unet()
    torch.nn.init.constant_(unet.conv_out.bias, math.inf)
    network = Network(unet=unet, levels=read_levels(scheduler))
    found, ends = walk(
        network, torch.randn(2, 1, 8, 8), None, stochasticity=0.0, seed=0, init_noise_sigma=1.0
    )
    assert found.diverged
    assert ends is None
    assert not found.allows(0.1)
    diverged = result(walks=(found,))
    assert diverged.verdict == "not"
    assert "Deterministic sampling diverged without the level" in reading(diverged)[0]


# Criteria


def exactly(value: float, error: float = 0.0) -> Measured:
    return Measured(value=value, standard_error=error)


def row(log_snr: float, *, explained: float = 0.9, width: float = 0.1, alignment: float = 0.5) -> LevelRow:
    return LevelRow(
        t=0.5, log_snr=log_snr, width=width, width_law=0.1, width_regressor=None, variance=exactly(0.1), variance_law=0.1,
        variance_law_noise=0.1, square=1.0, null_error=exactly(0.1), exact_error=exactly(0.1),
        explained=exactly(explained), alignment=exactly(alignment, 0.1),
    )  # fmt: skip


def sampled(stochasticity: float, distance: float, frechet: tuple[float, float, float] | None = None) -> Walk:
    quality = {}
    if frechet is not None:
        told, blind, error = frechet
        quality = {
            "frechet_told": exactly(told),
            "frechet_blind": exactly(blind),
            "frechet_difference": exactly(blind - told, error),
        }
    return Walk(
        stochasticity=stochasticity, log_snr=(-1.0, 1.0), bound=9.0, distance=1.0, relative_distance=exactly(distance, 0.01),
        amplification=(2.0, 1.0), injection=(1.0, 1.0), lipschitz=(0.0, 1.0), distances=(0.5, 1.0), **quality,
    )  # fmt: skip


def result(**changes) -> BlindCheck:
    drift = DriftRow(
        schedule="vp", target="eps", log_snr=0.0, gain=1.0, error=exactly(1), drift=exactly(1), relative=exactly(0.02)
    )  # fmt: skip
    values = {
        "prediction": "eps", "process": "DiscreteVP", "dimension": 64, "num_posterior_images": 40, "num_states": 8,
        "num_samples": 8, "threshold": 0.5, "max_width": 1.0, "tolerance": 0.1,
        "levels": tuple(row(level) for level in (-4.0, -2.0, 0.0, 2.0, 4.0)),
        "drift": (drift, replace(drift, target="x_0", relative=exactly(0.001))),
        "walks": (sampled(0.0, 0.05), sampled(1.0, 0.05)), "settings": {"seed": 0},
    }  # fmt: skip
    return BlindCheck(**(values | changes))


@pytest.mark.parametrize(
    ("bad", "interval"),
    [
        ({}, (None, None)),
        ({0: {"width": 1.5}}, (-3.0, None)),
        ({0: {"width": 1.5}, 4: {"explained": 0.4}}, (-3.0, 3.0)),
        ({0: {"explained": 0.4}, 2: {"alignment": 0.15}}, (1.0, None)),
        ({0: {"explained": 0.1}, 1: {"width": 2}, 3: {"explained": 0}, 4: {"explained": 0}}, (-1.0, 1.0)),
    ],
)
def test_the_interval_is_the_longest_run_of_trusted_levels(bad, interval):
    levels = tuple(row(2.0 * k - 4, **bad.get(k, {})) for k in range(5))
    assert result(levels=levels).noise_guidance_interval == interval


def test_no_trusted_level_is_no_interval():
    nowhere = result(levels=(row(-1.0, explained=0.31), row(1.0, explained=0.2)))
    with pytest.raises(
        ValueError, match=r"noise_guidance_interval must hold a level.*at best 31 % .* 50 % are asked"
    ):
        _ = nowhere.noise_guidance_interval
    assert "noise_guidance_interval must hold" in " ".join(reading(nowhere))
    with pytest.raises(ValueError, match="noise_guidance_interval must be of a network that predicts eps"):
        _ = result(prediction="x_0").noise_guidance_interval


@pytest.mark.parametrize(
    ("walks", "verdict"),
    [
        ((sampled(0.0, 0.05), sampled(1.0, 0.5)), "can be dropped"),
        ((sampled(0.0, 0.5), sampled(1.0, 0.05)), "only with stochastic sampling"),
        ((sampled(0.0, 0.5), sampled(1.0, 0.5)), "not"),
        # a Frechet distance judges where there is one: far from the told sample, yet as good
        ((sampled(0.0, 0.5, (10, 10.5, 0.1)), sampled(1.0, 0.5)), "can be dropped"),
        (
            (sampled(0.0, 0.05, (10, 12, 0.1)), sampled(1.0, 0.5, (10, 9, 0.1))),
            "only with stochastic sampling",
        ),
    ],
)
def test_verdict(walks, verdict):
    found = result(walks=walks)
    assert found.verdict == verdict
    said = reading(found)[0]
    assert ("cannot be dropped" in said) == (verdict == "not")
    assert ("stochastic sampling only" in said) == (verdict == "only with stochastic sampling")


def test_its_own_sampler_decides():
    far, near, stochastic = sampled(0.0, 0.5), sampled(0.0, 0.05), sampled(1.0, 0.05)
    for own, walks, verdict in (
        (near, (far, far), "can be dropped"),
        (far, (near, stochastic), "only with stochastic sampling"),
        (far, (near, far), "not"),
    ):
        found = result(own=replace(own, sampler="DDPMScheduler"), walks=walks)
        assert found.verdict == verdict
        assert "Its own (DDPMScheduler) sampling of 2 steps" in reading(found)[0]


@pytest.mark.parametrize(
    ("deterministic", "stochastic", "said"),
    [
        # tolerance is 10 % of 10: a loss of 0.2 ± 0.1 is within it, one of 3 ± 0.1 is not, one of 1.1 ± 0.5 is open
        (0.2, 0.2, "This checkpoint need not be told the noise level: without it deterministic sampling has"),
        (
            3.0,
            0.2,
            "need not be told the noise level if sampling is stochastic: without it stochastic sampling has",
        ),
        (3.0, 3.0, "This checkpoint needs to be told the noise level: without it deterministic sampling has"),
        (
            1.1,
            3.0,
            "Whether this checkpoint needs to be told the noise level is open: without it deterministic",
        ),
        (3.0, 0.9, "Whether this checkpoint needs to be told the noise level is open: without it stochastic"),
    ],
)
def test_the_answer_claims_nothing_within_two_standard_errors(deterministic, stochastic, said):
    errors = [0.5 if loss in (1.1, 0.9) else 0.1 for loss in (deterministic, stochastic)]
    walks = tuple(
        sampled(kind, 0.3, (10, 10 + loss, error))
        for kind, loss, error in zip((0.0, 1.0), (deterministic, stochastic), errors, strict=True)
    )
    found = answer(result(walks=walks, tolerance=0.1, settings={"model": "my model", "data": "images"}))
    assert said in found.text
    if "is open" in said:
        assert found.command.startswith("nag blind-check 'my model' --data images --num_samples ")
    else:
        assert found.command.startswith("pipe(noise_guidance_scale=0.5, noise_guidance_interval=(")


def test_a_close_call_is_called_one():
    close = result(walks=(sampled(0.0, 0.3, (10, 11.2, 0.5)), sampled(1.0, 0.3, (10, 20, 0.5))))
    said = reading(close)[0]
    assert said.count("not by two standard errors") == 1
    assert "Frechet distance 10 → 11.2 (+1.2 ± 0.5)" in said


# Files


def test_it_is_loaded_as_it_was_saved(tmp_path):
    kept = result(
        walks=(sampled(0.0, 0.5, (10, 12, 0.1)), Walk(stochasticity=1.0, log_snr=(0.0,), diverged=True))
    )
    path = kept.save(tmp_path / "folder" / "blind_check.json")
    assert BlindCheck.load(path) == kept
    other = tmp_path / "other.json"
    for text in ("{}", "[]", "no json"):
        other.write_text(text)
        with pytest.raises(ValueError, match=r"path.* .*other.json"):
            BlindCheck.load(other)


def test_files_are_replaced_only_when_asked(tmp_path):
    folder = tmp_path / "out"
    page = write_blind_check(result(), folder, title="<b>Model</b> & more")
    assert sorted(path.name for path in folder.iterdir()) == [
        "blind_check.html",
        "blind_check.json",
        "blind_check.png",
    ]
    text = page.read_text(encoding="utf-8")
    assert "<b>Model" not in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert text.count("<script") == 1
    assert text.index('class="verdict"') < text.index("<svg")
    assert len(text) < 1.5e6
    shown = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert shown["interval"] == [None, None]
    with pytest.raises(ValueError, match="output_dir.*out"):
        check_output(folder, FILES)
    (folder / "mine.txt").write_text("kept")
    write_blind_check(result(tolerance=0.2), folder, overwrite=True)
    assert BlindCheck.load(folder / "blind_check.json").tolerance == 0.2
    assert (folder / "mine.txt").read_text() == "kept"
    with pytest.raises(ValueError, match="output_dir.*mine.txt"):
        check_output(folder / "mine.txt", FILES)


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny class-conditional DDIM checkpoint with regressor and classifier beside it, and held-out images."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("blind"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = SmallClassifier(sample_size=8, num_classes=2, block_out_channels=(4, 4), num_features=6)
    classifier.save_pretrained(folder / "model" / "classifier")
    return folder


def run(checkpoint, *words, model="model"):
    return nag("blind-check", checkpoint / model, "--data", checkpoint / "data", *words)


SMALL = ["--num_states", 4, "--num_samples", 10, "--steps", 3, "--resamples", 3, "--levels", -2, 0, 2]


def test_the_command_writes_what_the_pipeline_takes(checkpoint, tmp_path):
    out = tmp_path / "out"
    done = run(checkpoint, *SMALL, "--threshold", 1e-6, "--max_width", 9, "--output_dir", out)
    assert done.exit_code == 0, done.output
    assert "The noise condition of this checkpoint" in done.output
    found = BlindCheck.load(out / "blind_check.json")
    assert [walk.name for walk in found.walks] == ["deterministic", "stochastic"]
    assert found.own.sampler == "DDIMScheduler"
    assert found.own.frechet_difference is not None
    assert all(walk.frechet_difference is not None for walk in found.walks)
    # the nearest timesteps
    assert [row.log_snr for row in found.levels] == pytest.approx([-2, 0, 2], abs=0.02)
    assert all(row.width_regressor > 0 for row in found.levels)
    assert {(row.schedule, row.target) for row in found.drift} == {
        (schedule, target) for schedule in ("vp", "flow") for target in ("eps", "x_0", "v", "velocity")
    }
    trusting = replace(found, levels=tuple(replace(row, alignment=exactly(1)) for row in found.levels))
    pipe = NAGPipeline.from_pretrained(checkpoint / "model")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        class_labels=[0, 1],
        num_inference_steps=3,
        noise_guidance_scale=0.5,
        noise_guidance_interval=trusting.noise_guidance_interval,
        output_type="np",
    ).images
    assert images.shape == (2, 8, 8, 1)
    again = run(checkpoint, *SMALL, "--output_dir", out)
    assert again.exit_code == 2
    assert "output_dir must be a new or empty folder" in again.output
    assert run(checkpoint, *SMALL, "--output_dir", out, "--overwrite").exit_code == 0


def test_a_flow_without_classes_regressor_or_classifier(checkpoint, tmp_path):
    pipe = NAGPipeline.from_pipe(DDIMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.save_pretrained(checkpoint / "flow")
    done = run(checkpoint, *SMALL, "--output_dir", tmp_path / "out", model="flow")
    assert done.exit_code == 0, done.output
    found = BlindCheck.load(tmp_path / "out" / "blind_check.json")
    assert (found.process, found.prediction) == ("Flow", "velocity")
    assert found.walks[0].frechet_told is None
    assert found.levels[0].width_regressor is None
    coarse = run(checkpoint, *SMALL, "--panels", 2, "--output_dir", tmp_path / "coarse", model="flow")
    assert coarse.exit_code == 2
    assert "prior must space its levels by at most" in coarse.output
    assert re.search(r"panels=\d+", coarse.output)
    assert not (tmp_path / "coarse").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images", 1], "num_images must be at least 2, got 1"),
        (["--num_posterior_images", 1], "num_posterior_images must be at least 2, got 1"),
        (["--num_states", 1], "num_states must be at least 2, got 1"),
        (["--num_samples", 1], "num_samples must be at least 2, got 1"),
        (["--num_samples", 6], "num_samples must be more than the 6 features"),
        (["--num_images", 6], "num_images must be more than the 6 features"),
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--batch_size", 0], "batch_size must be at least 1, got 0"),
        (["--resamples", 1], "resamples must be at least 2, got 1"),
        (["--threshold", 0], r"threshold must lie in \(0, 1\], got 0.0"),
        (["--max_width", 0], "max_width must be positive and finite, got 0.0"),
        (["--tolerance", "inf"], "tolerance must be positive and finite, got inf"),
        (["--levels", -40, 0], "levels must be log-SNRs within .* got -40.0"),
        (["--scheduler", "flow_euler"], "scheduler must be for networks with a DiscreteVP process"),
    ],
)
def test_what_cannot_work_is_refused_before_any_file(checkpoint, tmp_path, words, message):
    done = run(checkpoint, *words, "--output_dir", tmp_path / "out")
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output
    assert not (tmp_path / "out").exists()


def test_a_single_image_and_a_model_without_a_noise_condition_are_refused(checkpoint, tmp_path):
    from nag.pipelines.noise_unconditional import NoiseUnconditionalPipeline

    one = write_parquet(tmp_path / "one", count=1, split="heldout")
    done = nag("blind-check", checkpoint / "model", "--data", one, "--output_dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "data must hold at least 2 images, got 1" in done.output
    pipe = NoiseUnconditionalPipeline(unet=tiny_unet(), scheduler=UnifiedScheduler())
    pipe.save_pretrained(checkpoint / "unconditional")
    done = run(checkpoint, "--output_dir", tmp_path / "out", model="unconditional")
    assert done.exit_code == 2
    assert "model must be told its noise level, got" in done.output


def test_levels_are_those_of_the_process():
    process = DiscreteVP.from_alphas_cumprod(DDPMScheduler().alphas_cumprod)
    assert len(chosen_levels(process)) == 13
    assert float(Flow().log_snr(chosen_levels(Flow())[0])) == pytest.approx(-8)
    t = chosen_levels(process, [0.0, 0.001, -3.0])
    timesteps = process.timestep(t)
    torch.testing.assert_close(timesteps, timesteps.round(), rtol=0, atol=1e-9)
    assert len(t) == 2  # two levels on one timestep are one
    assert t[0] > t[1]
