"""nag.corrections.calibration: the table of measured levels, what it is for and its file."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from nag.corrections import EpsilonScaling, NoiseGuidance
from nag.corrections.calibration import FILE_NAME, NoiseCalibration
from nag.noise.read import read_levels


def start(scheduler: Any, steps: int = 10) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


def table(scheduler: Any, shift: float = -0.2, **measured: Any) -> NoiseCalibration:
    levels = read_levels(scheduler)
    defaults = {"samples": 256, "seed": 7, "regressor": "abc"}
    return NoiseCalibration.for_scheduler(
        scheduler, levels.log_snr + shift, torch.full((len(levels),), 0.01), **(defaults | measured)
    )


def test_shift_is_positive_where_states_are_noisier() -> None:
    calibration = table(start(DDIMScheduler()), shift=-0.2)
    assert calibration.shift == pytest.approx([0.1] * 10)
    assert calibration.timesteps[0] == 900
    with pytest.raises(dataclasses.FrozenInstanceError):
        calibration.seed = 3  # type: ignore[misc]


def test_tables_of_several_samplers_share_a_file(tmp_path: Path) -> None:
    ddim10, ddim20 = start(DDIMScheduler(trained_betas=None), 10), start(DDIMScheduler(), 20)
    euler = start(EulerDiscreteScheduler(use_karras_sigmas=True), 10)
    first = table(ddim10)
    file = first.save(tmp_path / "checkpoint")
    assert file == tmp_path / "checkpoint" / FILE_NAME
    for scheduler in (ddim20, euler):
        assert table(scheduler).save(file) == file
    guided = table(ddim10, shift=-0.5, guidance_scale=3.0)
    guided.save(file)
    assert NoiseCalibration.load(tmp_path / "checkpoint", ddim10, guidance_scale=1.0) == first
    assert NoiseCalibration.load(file, ddim10, guidance_scale=3.0, eta=0.0) == guided
    assert NoiseCalibration.load(file, euler) == table(euler)
    again = table(ddim10, shift=-0.3, seed=8)
    again.save(file)
    assert NoiseCalibration.load(file, ddim10, guidance_scale=1.0) == again
    assert len(json.loads(file.read_text())["tables"]) == 4
    assert [p.name for p in file.parent.iterdir()] == [FILE_NAME]
    with pytest.raises(
        ValueError,
        match=r"noise_calibration.json must hold a table for DDIMScheduler with 5 steps and these settings, got 4 others "
        r"\(.*EulerDiscreteScheduler with 10 steps has scheduler = EulerDiscreteScheduler.*Measure one with `nag calib",
    ):
        NoiseCalibration.load(file, start(DDIMScheduler(), 5))


def test_custom_betas_survive_the_file(tmp_path: Path) -> None:
    betas = torch.linspace(1e-3, 0.02, 100).numpy()
    scheduler = start(DDIMScheduler(num_train_timesteps=100, trained_betas=betas), 5)
    calibration = table(scheduler)
    calibration.save(tmp_path)
    assert NoiseCalibration.load(tmp_path, scheduler) == calibration


@pytest.mark.parametrize(
    ("scheduler", "steps", "named"),
    [
        (DDPMScheduler(), 10, "scheduler = DDIMScheduler where scheduler is DDPMScheduler"),
        (DDIMScheduler(clip_sample=False), 10, "clip_sample = True where clip_sample is False"),
        (DDIMScheduler(beta_end=0.03, clip_sample=False), 10, "beta_end = 0.02 where beta_end is 0.03"),
        (
            DDIMScheduler(timestep_spacing="trailing"),
            10,
            "timestep_spacing = 'leading' where timestep_spacing is 'trail",
        ),
        (DDIMScheduler(), 20, "num_inference_steps = 10 where num_inference_steps is 20"),
    ],
)
def test_check_names_the_first_setting_that_differs(scheduler: Any, steps: int, named: str) -> None:
    calibration = table(start(DDIMScheduler()))
    calibration.check(start(DDIMScheduler()))
    with pytest.raises(
        ValueError, match=f"noise_calibration must be measured for this sampler, got a table for {named}"
    ):
        calibration.check(start(scheduler, steps))
    with pytest.raises(RuntimeError, match="scheduler must have its timesteps set"):
        calibration.check(DDIMScheduler())


def test_check_sees_levels_that_the_configuration_does_not_name() -> None:
    scheduler = start(FlowMatchEulerDiscreteScheduler())
    calibration = table(scheduler)
    shifted = FlowMatchEulerDiscreteScheduler()
    shifted.set_shift(3.0)
    with pytest.raises(ValueError, match=r"got a table for timesteps\[1\] = 889"):
        calibration.check(start(shifted))
    longer = dataclasses.replace(
        calibration,
        **{
            name: getattr(calibration, name) * 2
            for name in ("log_snr", "standard_error", "nominal_log_snr", "timesteps")
        },
    )
    with pytest.raises(
        ValueError, match=r"got a table for len\(timesteps\) = 20 where len\(timesteps\) is 10"
    ):
        longer.check(scheduler)


GUIDANCE = NoiseGuidance(scale=0.5, interval=(-1.0, None))


def test_check_compares_the_sampler_where_it_is_known() -> None:
    scheduler = start(DDIMScheduler())
    plain, guided = table(scheduler), table(scheduler, corrections=(GUIDANCE.settings(),))
    for calibration in (plain, guided):
        calibration.check(scheduler)
        calibration.check(scheduler, eta=0.0, guidance_scale=1.0)
    plain.check(scheduler, corrections=[])
    for same in (GUIDANCE, dataclasses.replace(GUIDANCE, null_pass="whole")):
        guided.check(scheduler, corrections=[same.settings()])
    for settings, named in (
        ({"eta": 1.0}, "eta = 0.0 where eta is 1.0"),
        ({"guidance_scale": 2.0}, "guidance_scale = 1.0 where guidance_scale is 2.0"),
        ({"corrections": (GUIDANCE.settings(),)}, r"corrections = \(\) where corrections is .*'scale': 0.5"),
    ):
        with pytest.raises(ValueError, match=f"got a table for {named}"):
            plain.check(scheduler, **settings)


def test_corrections_survive_the_file(tmp_path: Path) -> None:
    scheduler = start(DDIMScheduler())
    settings = (GUIDANCE.settings(), EpsilonScaling(scale=1.01).settings())
    measured = table(scheduler, corrections=settings)
    measured.save(tmp_path)
    table(scheduler).save(tmp_path)
    assert NoiseCalibration.load(tmp_path, scheduler, corrections=settings) == measured
    with pytest.raises(ValueError, match="has corrections = "):
        NoiseCalibration.load(tmp_path, scheduler, corrections=settings[::-1])


def test_tables_must_fit_and_be_finite() -> None:
    calibration = table(start(DDIMScheduler()))
    with pytest.raises(
        ValueError, match="log_snr must have one finite value for each of the 10 timesteps, got"
    ):
        dataclasses.replace(calibration, log_snr=(0.0, 1.0))
    with pytest.raises(ValueError, match="standard_error must have one finite value .*, got .*nan"):
        dataclasses.replace(calibration, standard_error=(math.nan,) * 10)


def test_broken_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    scheduler = start(DDIMScheduler())
    calibration, file = table(scheduler), tmp_path / FILE_NAME
    with pytest.raises(
        FileNotFoundError, match=f"noise_calibration must name a file of tables, got .*{FILE_NAME}"
    ):
        NoiseCalibration.load(tmp_path, scheduler)
    good = json.loads(calibration.save(file).read_text())
    missing = {k: v for k, v in good["tables"][0].items() if k != "seed"} | {"colour": "red"}
    for text, found in (
        ("{", "something else"),
        ("[]", "something else"),
        (json.dumps({"format": "another"}), "'another'"),
        (json.dumps(good | {"version": 99}), "version 99"),
        (json.dumps(good | {"tables": [missing]}), "colour"),
    ):
        match = f"noise_calibration must name a file of nag noise calibration.*got .*{found}"
        file.write_text(text)
        with pytest.raises(ValueError, match=match):
            NoiseCalibration.load(file, scheduler)
        with pytest.raises(ValueError, match=match):
            calibration.save(file)
        assert file.read_text() == text
