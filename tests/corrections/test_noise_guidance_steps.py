"""Guidance step by step: which calls are made, how branches combine, where it acts, what it refuses."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from nag.corrections.noise_guidance import MODES, PASSES
from nag.network.null import null_level, record_dropout
from nag.network.regressor import NoiseLevelRegressor
from nag.theory.posterior import FiniteData
from tests.models import tiny_unet
from tests.oracles import CLOSE, guided, real, situation

# Cost: which calls are made


def counting(unet: UNet2DModel) -> UNet2DModel:
    """Writes down how many rows each call has."""
    unet.batches = []
    unet.register_forward_pre_hook(
        lambda module, args, kwargs: module.batches.append(len(args[0] if args else kwargs["sample"])),
        with_kwargs=True,
    )
    return unet


def test_off_is_exactly_one_plain_call(unet: UNet2DModel) -> None:
    u, ask = real(counting(unet))
    with torch.no_grad():
        plain = unet(u, ask["timestep"]).sample
        unet.batches = []
        for settings in ({}, {"mode": "gradient"}, {"scale": 2.0, "interval": (5.0, None)}):
            assert torch.equal(guided(unet, u, ask, **settings), plain)
    assert unet.batches == [2, 2, 2]


def test_all_null_passes_agree(class_unet: UNet2DModel) -> None:
    u, ask = real(counting(class_unet))
    settings = {"scale": 0.8, "class_labels": torch.tensor([0, 2]), "guidance_scale": 3.0}
    with torch.no_grad():
        found = {way: guided(class_unet, u, ask, null_pass=way, **settings) for way in PASSES}
        ask["timestep"] = ask["timestep"].expand(4)
        expanded = guided(class_unet, u, ask, **settings)
    assert class_unet.batches == [6, 6, 4, 2, 4, 4, 6]
    assert torch.equal(found["auto"], found["batched"])
    for way in ("sequential", "whole"):
        torch.testing.assert_close(found[way], found["batched"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expanded, found["batched"])


@pytest.mark.parametrize("null_pass", PASSES)
def test_a_frozen_head_reads_the_null_pass_that_is_made_anyway(unet: UNet2DModel, null_pass: str) -> None:
    u, ask = real(counting(unet))
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    settings = {"scale": 0.8, "mode": "corrected", "null_pass": null_pass}
    with torch.no_grad():
        shared = guided(unet, u, ask, regressor=regressor, **settings)
        assert sum(unet.batches) == 4
        full = NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind="full")
        full.head.load_state_dict(regressor.head.state_dict())
        separate = guided(unet, u, ask, regressor=full, **settings)
    torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(unet: UNet2DModel) -> None:
    u, ask = real(unet, batch=3)
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    for mode in ("classifier_free", "corrected", "gradient"):
        settings = {"scale": 0.8, "mode": mode, "regressor": regressor}
        together = guided(unet, u, ask, **settings)
        alone = torch.cat([guided(unet, one, ask, **settings) for one in u.split(1)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# Class guidance, learned variance


def branches(unet, u, ask, labels):
    ask_plain = ask["timestep"]
    none = torch.full_like(labels, unet.config.num_class_embeds - 1)
    told, classless = (unet(u, ask_plain, class_labels=c).sample for c in (labels, none))
    with null_level(unet):
        null, joint = (unet(u, ask_plain, class_labels=c).sample for c in (labels, none))
    return told, classless, null, joint


def test_class_guidance_and_joint() -> None:
    unet, u, ask, _ = situation("eps", classes=True)
    labels = torch.tensor([0, 1, 1])
    told, classless, null, joint = branches(unet, u, ask, labels)
    g, w = 3.0, 0.6
    expected = {
        False: told + (g - 1) * (told - classless) + w * (told - null),
        True: told + (g - 1 + w) * (told - joint),
    }
    for way, value in expected.items():
        unet.calls = 0
        found = guided(unet, u, ask, class_labels=labels, guidance_scale=g, scale=w, joint=way)
        torch.testing.assert_close(found, value, **CLOSE)
        for off in ({"scale": 0.0}, {"scale": w, "interval": (20.0, None)}):
            off |= {"joint": way, "class_labels": labels}
            plain_class = told + (g - 1) * (told - classless)
            torch.testing.assert_close(guided(unet, u, ask, guidance_scale=g, **off), plain_class, **CLOSE)
            assert torch.equal(guided(unet, u, ask, **off), told)
    alone = guided(unet, u, ask, class_labels=labels, scale=w, joint=True)
    torch.testing.assert_close(alone, told + w * (told - joint), **CLOSE)


def test_learned_variance_is_the_conditional_branch_s() -> None:
    unet = tiny_unet(out_channels=2)
    u, ask = real(unet)
    with torch.no_grad():
        plain = unet(u, ask["timestep"]).sample
        found = guided(unet, u, ask, scale=1.0)
        with null_level(unet):
            null = unet(u, ask["timestep"]).sample
    torch.testing.assert_close(found[:, 1:], plain[:, 1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, :1], 2 * plain[:, :1] - null[:, :1], rtol=1e-5, atol=1e-5)


def test_pure_noise_has_no_level_to_be_aware_of() -> None:
    unet, u, ask, posterior = situation("velocity")
    for step, off in ((0, True), (1, False)):
        at = ask | {"step": step, "timestep": ask["scheduler"].timesteps[step]}
        for mode in MODES:
            found = guided(unet, u, at, regressor=posterior, scale=1.0, mode=mode)
            assert torch.equal(found, unet(u, at["timestep"]).sample) == off


def test_an_untrained_null_branch_is_told_of_once(
    unet: UNet2DModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Three times the prediction without its level, and then as much as with it."""
    u, ask = real(unet)
    with torch.no_grad():
        unet.time_embedding.linear_2.weight *= 100
        guided(unet, u, ask, scale=1.0)
        assert "Without its level UNet2DModel predicts something else by" in caplog.text
        caplog.clear()
        unet.time_embedding.linear_2.weight.zero_()
        unet.time_embedding.linear_2.bias.zero_()
        record_dropout(unet, 0.1)
        guided(unet, u, ask, scale=1.0)
    assert not caplog.text


def test_a_network_without_a_record_of_its_null_branch_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for share in (None, 0.0):
        unet = tiny_unet()
        if share is not None:
            record_dropout(unet, share)
        u, ask = real(unet)
        with torch.no_grad():
            guided(unet, u, ask, scale=1.0)
            guided(unet, u, ask, scale=1.0)
        assert len(caplog.messages) == 1
        assert "UNet2DModel has no record of level dropout" in caplog.text
        assert "nag diagnose" in caplog.text
        caplog.clear()


# Refusals


@pytest.mark.parametrize("mode", ["classifier_free", "corrected"])
def test_x_0_networks_are_refused_where_predictions_are_compared(mode: str) -> None:
    unet, u, ask, posterior = situation("x_0")
    with pytest.raises(
        ValueError,
        match=f"noise_guidance_mode '{mode}' must not be used for a network that predicts x_0, got one",
    ):
        guided(unet, u, ask, regressor=posterior, scale=1.0, mode=mode)
    assert unet.calls == 0
    guided(unet, u, ask, scale=0.0, mode=mode)


def test_and_rightly_so() -> None:
    """With one datum the x_0 difference is zero: the reason for the refusal."""
    unet, u, ask, _ = situation("x_0")
    single = FiniteData(data=unet.oracle.data[:1], process=unet.oracle.process, prior=unet.oracle.prior)
    t = unet.oracle.process.t_from_log_snr(ask["levels"].log_snr[ask["step"]])
    torch.testing.assert_close(single.denoised(u, t), single.blind(u, "x_0"), **CLOSE)
    assert float(single.posterior_gradient(u, t).norm()) > 0.1


def unfit(kind: str, unet: UNet2DModel) -> NoiseLevelRegressor | None:
    if kind == "None":
        return None
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "Flow" else DDIMScheduler()
    return NoiseLevelRegressor.from_unet(unet, scheduler).to(getattr(torch, kind, torch.float32))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("corrected", "None"), ("gradient", "None"), ("corrected", "Flow"), ("gradient", "bfloat16")],
)
def test_regressors_that_do_not_fit(unet: UNet2DModel, mode: str, kind: str) -> None:
    u, ask = real(unet)
    with pytest.raises(ValueError, match=f"regressor.*got .*{kind}"):
        guided(unet, u, ask, regressor=unfit(kind, unet), scale=1.0, mode=mode)


@pytest.mark.parametrize("kind", ["sequential", "group"])
def test_gradients_refuse_offloading_that_swaps_weights(
    unet: UNet2DModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    u, ask = real(unet)
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    if kind == "sequential":
        cpu_offload(unet, execution_device=torch.device("cpu"))
    else:
        # diffusers 0.40 asks for an accelerator even to offload from the CPU to the CPU
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
        unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(
        ValueError, match="UNet2DModel must keep its weights in place for noise_guidance_mode 'gradient'"
    ):
        guided(unet, u, ask, regressor=regressor, scale=1.0, mode="gradient")
    with torch.no_grad():
        guided(unet, u, ask, regressor=regressor, scale=1.0, mode="corrected")
