"""What `SchedulerLevels` says of labels and levels, and which schedulers are refused."""

from typing import Any

import pytest
import torch
from diffusers.schedulers import SCMScheduler

from nag.noise.discrete import DiscreteVP
from nag.noise.named import REFUSED
from nag.noise.read import SUPPORTED, read_levels, read_training
from tests.noise.walks import make, pair, scheduler_class

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_schedulers_are_named_with_a_reason(name: str) -> None:
    stranger = type(name, (), {})()
    with pytest.raises(
        ValueError, match=rf"scheduler must be one of DDPMScheduler, .*, got {name}: {REFUSED[name]}"
    ):
        read_levels(stranger)
    with pytest.raises(ValueError, match=f"got {name}: "):
        read_training(stranger)


def test_unknown_and_unfit_schedulers() -> None:
    with pytest.raises(ValueError, match="got SCMScheduler: a consistency network"):
        read_levels(SCMScheduler())
    with pytest.raises(ValueError, match="got int: it is not known here"):
        read_levels(3)
    for name in SUPPORTED:
        cls = scheduler_class(name)
        if "dummy" in cls.__module__ or name.startswith(("Heun", "KDPM2", "LMS", "IPNDM", "ScoreSdeVe")):
            continue  # not importable, or set when built
        with pytest.raises(
            RuntimeError, match=rf"scheduler must have its timesteps set, got a fresh {name}\."
        ):
            read_levels(cls())
    flow = make("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="v_prediction")
    with pytest.raises(
        ValueError, match="prediction_type must mean one of velocity, x_0, eps for this DPMSolver.*'v_pred"
    ):
        read_levels(flow)
    vp = make("DPMSolverMultistepScheduler", prediction_type="flow_prediction")
    with pytest.raises(
        ValueError, match="prediction_type must mean one of eps, x_0, v .*, got 'flow_prediction'"
    ):
        read_levels(vp)


def test_subclasses_are_read_like_their_parents_and_left_alone() -> None:
    class Mine(scheduler_class("DDIMScheduler")):  # type: ignore[misc]
        pass

    scheduler = Mine()
    scheduler.set_timesteps(4)
    before = dict(vars(scheduler))
    torch.testing.assert_close(read_levels(scheduler).sigma, read_levels(make("DDIMScheduler", 4)).sigma)
    assert vars(scheduler) == before


@pytest.mark.parametrize(
    ("name", "options", "mean", "largest", "repeated"),
    [
        *(
            (f"{n}Scheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0)
            for n in ("DPMSolverMultistep", "DEISMultistep")
        ),
        *(
            (f"{n}Scheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0)
            for n in ("DPMSolverSinglestep", "SASolver")
        ),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, -0.62, 1.0, 1),
        ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, -0.62, 1.0, 1),
        ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, -0.49, 1.0, 0),
        ("SASolverScheduler", {"use_beta_sigmas": True}, -0.49, 1.0, 0),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
            -0.54,
            1,
            8,
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_beta_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
            -0.7,
            1,
            17,
        ),
        ("EulerDiscreteScheduler", {}, 0.0, 0.02, 0),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.0, 0.02, 0),
        ("EulerAncestralDiscreteScheduler", {}, 0.0, 0.02, 0),
        ("LMSDiscreteScheduler", {"use_exponential_sigmas": True}, 0.0, 0.02, 0),
        ("DDIMScheduler", {}, 0.0, 1e-3, 0),
    ],
)
def test_timestep_mismatch_of_diffusers(
    name: str, options: dict[str, Any], mean: float, largest: float, repeated: int
) -> None:
    """20 steps, in training timesteps; measured with diffusers 0.42 alone, to two digits."""
    levels = read_levels(make(name, 20, **(STABLE_DIFFUSION | options)))
    mismatch = levels.timestep_mismatch()
    assert float(mismatch.mean()) == pytest.approx(mean, abs=0.006)
    assert float(mismatch.abs().max()) <= largest
    assert len(levels.timesteps) - len(levels.timesteps.unique()) == repeated


def test_ddim_arrives_off_its_own_levels() -> None:
    """DDIM steps by T // N: with linspace spacing a state is up to 2.6 timesteps noisier than its label says."""
    linspace = read_levels(make("DDIMScheduler", 20, timestep_spacing="linspace")).arrival_mismatch()
    torch.testing.assert_close(linspace[1:], torch.full((19,), 50 - 999 / 19).double(), rtol=0, atol=0.6)
    assert linspace[0] == 0
    for options in ({"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}):
        assert read_levels(make("DDIMScheduler", 20, **options)).arrival_mismatch().abs().max() == 0
    thirds = read_levels(make("DDIMScheduler", 30, timestep_spacing="trailing")).arrival_mismatch()
    assert -1.01 < float(thirds.min()) < -0.99


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("MiniMaxH3Scheduler", {}),
        ("IPNDMScheduler", {}),
        ("DDPMWuerstchenScheduler", {"scaler": 0.5}),
        ("DDPMWuerstchenScheduler", {"scaler": 2.0}),
        ("ScoreSdeVeScheduler", {}),
        ("ScoreSdeVpScheduler", {}),
    ],
)
def test_labels_there_and_back_and_training_process(name: str, options: dict[str, Any]) -> None:
    scheduler = make(name, 9, **options)
    levels = read_levels(scheduler)
    inner = levels.log_snr[(levels.log_snr > -20) & (levels.log_snr < 20)]
    torch.testing.assert_close(levels.log_snr_of(levels.timestep_of(inner)), inner, rtol=0, atol=1e-6)
    assert levels.timestep_mismatch()[2:].abs().max() < 0.02 * levels.timesteps.abs().max()
    assert read_training(scheduler) == levels.training
    # the process is that of the network's input, at any level
    alpha, sigma = levels.training.alpha_sigma(levels.log_snr)
    torch.testing.assert_close(alpha, levels.network_alpha, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sigma, levels.network_sigma, rtol=1e-6, atol=1e-9)
    x_0, eps = pair((len(inner), 1, 4, 4))
    t = levels.training.t_from_log_snr(inner)
    if levels.prediction != "velocity" and (levels.training.log_snr(t) - inner).abs().max() < 1e-6:
        value = levels.training.target(levels.prediction, t).times(levels.prediction_scale).value(x_0, eps)
        torch.testing.assert_close(
            levels.prediction_from(x_0, eps, log_snr=inner), value, rtol=1e-5, atol=1e-6
        )
    # one level for each sample is the same as sample by sample
    value = levels.prediction_from(x_0, eps, log_snr=inner)
    model_input = levels.training.corrupt(x_0, t, eps)
    together = levels.x_0_and_eps(value, model_input, log_snr=inner)
    for i, level in enumerate(inner):
        alone = levels.x_0_and_eps(value[i : i + 1], model_input[i : i + 1], log_snr=float(level))
        torch.testing.assert_close(together[0][i : i + 1], alone[0])
        torch.testing.assert_close(together[1][i : i + 1], alone[1])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_pure_noise_at_the_first_step_stays_finite(prediction_type: str) -> None:
    options = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": prediction_type,
    }
    for name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        levels = read_levels(make(name, 6, **options))
        assert isinstance(levels.training, DiscreteVP)
        assert bool(levels.log_snr.isfinite().all())
        assert levels.log_snr[0] < -16
        x_0, eps = pair()
        model_input = levels.network_alpha[0] * x_0 + levels.network_sigma[0] * eps
        x_0_hat, eps_hat = levels.x_0_and_eps(levels.prediction_from(x_0, eps, 0), model_input, 0)
        assert bool(x_0_hat.isfinite().all())
        torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-9)
        if prediction_type != "epsilon":
            torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    levels = read_levels(make("DDIMScheduler", 4))
    x_0, eps = (x.to(dtype) for x in pair())
    got = levels.x_0_and_eps(eps, x_0, 2)
    assert got[0].dtype == got[1].dtype == torch.promote_types(dtype, torch.float32)
    exact = levels.x_0_and_eps(eps.double(), x_0.double(), 2)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=1e-5)
