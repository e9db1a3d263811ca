"""A calibration to read, by hand: what was not measured is said, jumps are told, the picture is there."""

import pytest
from diffusers import DDIMScheduler
from PIL import Image

from nag.corrections.calibration import NoiseCalibration
from nag.noise.read import read_levels
from nag.shift.calibration_page import draw_calibrations, jumps, table_of


def calibration(shifts, errors):
    """One with these shifts in log(sigma/alpha) at the steps of DDIM: a level is 2 shifts below its nominal one."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(len(shifts))
    nominal = read_levels(scheduler).log_snr.tolist()
    levels = [a - 2 * b for a, b in zip(nominal, shifts, strict=True)]
    return NoiseCalibration.for_scheduler(
        scheduler, levels, [2 * error for error in errors], samples=4, seed=0, regressor="r"
    )


def test_a_standard_error_of_0_means_not_measured():
    lines = table_of(calibration([0.0, 0.1, 0.0], [0.0, 0.02, 0.01])).splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("not measured: the nominal level")
    assert lines[2].split()[-2:] == ["+0.100", "0.020"]
    assert lines[3].split()[-2:] == ["+0.000", "0.010"]


@pytest.mark.parametrize(
    ("shifts", "errors", "told"),
    [
        ([0.1, 0.15, 0.2], [0.01] * 3, []),
        (
            [0.0, 0.5, 0.5],
            [0.0, 0.02, 0.02],
            ["the shift jumps from step 0 (not measured) to step 1 (+0.500)"],
        ),
        (
            [0.1, 0.4, 0.1],
            [0.01] * 3,
            ["the shift jumps from step 0 (+0.100) to", "the shift jumps from step 1 (+0.400)"],
        ),
        ([0.1, 0.4, 0.1], [0.1] * 3, []),  # no jump by four standard errors
    ],
)
def test_jumps(shifts, errors, told):
    found = jumps(calibration(shifts, errors))
    assert len(found) == len(told)
    for sentence, wanted in zip(found, told, strict=True):
        assert sentence.startswith(wanted)


def test_the_picture(tmp_path):
    one = calibration([0.0, 0.1, 0.2], [0.0, 0.02, 0.02])
    path = draw_calibrations({"DDIM 3": one, "DDIM 3 $nag$": one}, tmp_path / "folder" / "calibration.png")
    with Image.open(path) as image:
        assert image.size == (1440, 800)
        assert len(image.convert("L").getcolors()) > 20
