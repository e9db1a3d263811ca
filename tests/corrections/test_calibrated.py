"""Calibrated levels in a run: which table is taken, what it does, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nag.corrections import Calibrated, Correction, CostCounter, EpsilonScaling, NoiseGuidance, SelfGuidance
from nag.corrections.calibration import FILE_NAME, NoiseCalibration
from nag.noise.read import read_levels
from nag.pipelines import UNet2DPipeline
from nag.seams import corrected
from tests.corrections.samplers import LABELS, SCHEDULERS, STEPS, close, network, plain, sample
from tests.corrections.steps import seeded, set_timesteps
from tests.corrections.test_calibration import table

UNIT = network(num_class_embeds=4)
GUIDANCE = NoiseGuidance(scale=0.5)


def measured(name: str = "ddim", shift: float = -0.3, **sampler: Any) -> NoiseCalibration:
    return table(set_timesteps(SCHEDULERS[name](), STEPS), shift, **sampler)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "ddpm", "flow"])
def test_a_table_is_its_levels_and_so_is_its_file(name: str, tmp_path: Path) -> None:
    calibration = measured(name)
    levels = [
        None if level == nominal else level
        for level, nominal in zip(calibration.log_snr, calibration.nominal_log_snr, strict=True)
    ]
    file = calibration.save(tmp_path)
    expected = sample(UNIT, SCHEDULERS[name](), Calibrated(levels))
    for given in (calibration, file, str(file), tmp_path):
        assert torch.equal(sample(UNIT, SCHEDULERS[name](), Calibrated(given)), expected)
    assert not torch.equal(expected, plain(name))


@pytest.mark.parametrize("name", ["ddim", "euler", "flow"])
def test_the_nominal_table_changes_nothing_but_rounding(name: str) -> None:
    nominal = measured(name, shift=0.0)
    assert torch.equal(sample(UNIT, SCHEDULERS[name](), Calibrated(nominal)), plain(name))
    levels = read_levels(set_timesteps(SCHEDULERS[name](), STEPS)).log_snr.tolist()
    given = [None if level < -60 else level for level in levels]
    moved = sample(UNIT, SCHEDULERS[name](), Calibrated(measured(name)))
    close(sample(UNIT, SCHEDULERS[name](), Calibrated(given)), plain(name), moved)


def test_auto_is_the_one_beside_the_checkpoint(tmp_path: Path) -> None:
    pipe = UNet2DPipeline(UNIT, SCHEDULERS["ddim"]())
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=str(tmp_path))
    options = {"class_labels": LABELS, "num_inference_steps": STEPS, "output_type": "latent"}
    with (
        pytest.raises(
            ValueError, match=f"noise_calibration must lie beside the checkpoint .* got no {FILE_NAME}"
        ),
        corrected(pipe, Calibrated()),
    ):
        pass
    measured().save(tmp_path)
    with corrected(pipe, Calibrated("auto")):
        found = pipe(**options, generator=seeded()).images
    assert torch.equal(found, sample(UNIT, SCHEDULERS["ddim"](), Calibrated(measured())))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([0.0] * 3, "noise_calibration must have one log-SNR .* for each of 4 steps, got 3"),
        (
            measured("euler"),
            "got a table for scheduler = EulerDiscreteScheduler where scheduler is DDIMScheduler",
        ),
        (
            table(set_timesteps(SCHEDULERS["ddim"](), 5)),
            "got a table for num_inference_steps = 5 where .* is 4",
        ),
        (measured(guidance_scale=2.0), "got a table for guidance_scale = 2.0 where guidance_scale is 1.0"),
        (
            measured(corrections=(GUIDANCE.settings(),)),
            r"got a table for corrections = .* where corrections is \(\)",
        ),
        (measured(eta=0.5), "got a table for eta = 0.5 where eta is 0.0"),
    ],
    ids=["length", "scheduler", "steps", "class guidance", "corrections", "eta"],
)
def test_tables_of_another_sampler_are_refused(given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sample(UNIT, SCHEDULERS["ddim"](), Calibrated(given))


def test_a_table_belongs_to_the_corrections_that_it_was_measured_with() -> None:
    both = (GUIDANCE, EpsilonScaling(scale=1.01))
    calibration = measured(corrections=tuple(one.settings() for one in both), guidance_scale=2.0, eta=0.5)
    options = {"guidance_scale": 2.0, "eta": 0.5}
    given: tuple[Correction, ...] = (SelfGuidance(), both[0], Calibrated(calibration), both[1], CostCounter())
    sample(UNIT, SCHEDULERS["ddim"](), *given, **options)  # watchers, and what is off, do not count
    for other in ((both[0],), both[::-1], (*both, SelfGuidance(scale=0.1))):
        with pytest.raises(ValueError, match="got a table for corrections = .* where corrections is"):
            sample(UNIT, SCHEDULERS["ddim"](), *other, Calibrated(calibration), **options)
    with pytest.raises(ValueError, match="got a table for eta = 0.5 where eta is 0.0"):
        sample(UNIT, SCHEDULERS["ddim"](), *both, Calibrated(calibration), guidance_scale=2.0)
