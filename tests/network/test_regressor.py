"""The regressor: what it sees, what it returns, how it is calibrated, saved and attached."""

import copy
import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from scipy import integrate, stats

from nag.network.regressor import NORMAL_90, NoiseEstimate, NoiseLevelRegressor, fingerprint
from nag.noise.discrete import DiscreteVP
from tests.models import tiny_unet
from tests.network import tiny_networks

KINDS = ("frozen", "full", "encoder")


def make(kind="frozen", seed=0, **kwargs) -> NoiseLevelRegressor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = tiny_unet(num_class_embeds=4)
        return NoiseLevelRegressor.from_unet(
            unet, DDPMScheduler(), kind=kind, hidden_size=16, **kwargs
        ).eval()


def states(batch=4) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["statistics", "attention"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_estimates_do_not_depend_on_the_batch(kind, head):
    regressor, x = make(kind, head_type=head), states()
    found = regressor.estimate(x)
    assert found.log_snr.shape == found.variance.shape == (4,)
    assert found.log_snr.std() > 1e-5
    alone = [regressor.estimate(x[i : i + 1]) for i in range(4)]
    # the same network on another batch size: order of summation only
    torch.testing.assert_close(torch.cat([a.log_snr for a in alone]), found.log_snr, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([a.variance for a in alone]), found.variance, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_backbone_runs_at_the_null_level():
    """Oracle: the estimate from the features of a network whose level embedding was set to zero by hand."""
    regressor, x = make("full"), states()
    silenced = copy.deepcopy(regressor)
    torch.nn.init.zeros_(silenced.backbone.time_embedding.linear_2.weight)
    torch.nn.init.zeros_(silenced.backbone.time_embedding.linear_2.bias)
    kept = []
    silenced.backbone.conv_out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    silenced.backbone(x, torch.full((4,), 700), class_labels=torch.full((4,), 3))
    expected = silenced.estimate_from_features(kept[0])
    torch.testing.assert_close(regressor.estimate(x).log_snr, expected.log_snr, rtol=0, atol=0)


@torch.no_grad()
def test_encoder_equals_the_middle_of_the_whole_network():
    """The trimmed copy gives the features that the whole network has in its middle block."""
    regressor, unet, x = make("encoder"), tiny_unet(num_class_embeds=4), states()
    kept = []
    unet.mid_block.register_forward_hook(lambda *a: kept.append(a[2]))
    torch.nn.init.zeros_(unet.time_embedding.linear_2.weight)
    torch.nn.init.zeros_(unet.time_embedding.linear_2.bias)
    unet(x, 3, class_labels=torch.full((4,), 3))
    torch.testing.assert_close(
        regressor.estimate(x).log_snr, regressor.estimate_from_features(kept[0]).log_snr, rtol=0, atol=0
    )
    assert sum(p.numel() for p in regressor.backbone.parameters()) < 0.7 * sum(
        p.numel() for p in unet.parameters()
    )


@torch.no_grad()
def test_only_frozen_heads_see_classes():
    x, labels = states(), torch.tensor([0, 1, 2, 0])
    frozen, full = make("frozen"), make("full")
    assert (frozen.estimate(x, labels).log_snr - frozen.estimate(x).log_snr).abs().max() > 1e-6
    torch.testing.assert_close(full.estimate(x, labels).log_snr, full.estimate(x).log_snr, rtol=0, atol=0)


def test_log_posterior_is_a_density_over_log_snr():
    regressor, x = make("full"), states(1)
    with torch.no_grad():
        estimate = regressor.estimate(x)
        assert integrate.quad(lambda v: estimate.log_density(torch.tensor(v)).exp().item(), -200, 200)[
            0
        ] == pytest.approx(1, abs=1e-4)
        oracle = stats.norm(estimate.log_snr.item(), estimate.std.item()).logpdf(1.3)
        assert regressor.log_posterior(x, torch.tensor(1.3)).item() == pytest.approx(oracle, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_log_posterior_matches_finite_differences(kind):
    regressor = make(kind).double()
    if kind == "frozen":
        regressor.network.double()
    x, level, direction = (
        states(2).double(),
        torch.tensor(0.5).double(),
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double(),
    )
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(regressor.log_posterior(x, level).sum(), x)
    step = 1e-3
    with torch.no_grad():
        up, down = (regressor.log_posterior(x + s * direction, level).sum() for s in (step, -step))
    # the head's output is rounded to float32, so the difference quotient carries about 1e-7 / 1e-3
    assert ((up - down) / (2 * step)).item() == pytest.approx(
        (gradient * direction).sum().item(), rel=2e-2, abs=2e-3
    )


def test_posterior_moments_against_numerical_integration():
    regressor = make("full")
    estimate = NoiseEstimate(log_snr=torch.tensor([0.0, 3.0]), variance=torch.tensor([0.04, 0.5]))
    found = regressor.posterior_moment(estimate, lambda v: torch.sigmoid(-v).rsqrt())
    for value, mean, variance in zip(found, (0.0, 3.0), (0.04, 0.5), strict=True):
        density = stats.norm(mean, math.sqrt(variance))
        oracle = integrate.quad(lambda v: math.sqrt(1 + math.exp(v)) * density.pdf(v), mean - 9, mean + 9)[0]  # noqa: B023
        assert value.item() == pytest.approx(oracle, rel=1e-5)
    wide = NoiseEstimate(log_snr=torch.tensor([0.0]), variance=torch.tensor([1e4]))
    moment = regressor.posterior_moment(wide, lambda v: v)
    assert regressor.log_snr_range[0] <= moment.item() <= regressor.log_snr_range[1]


def test_calibration_recovers_a_known_bias_and_scale():
    """Predictions with residual N(0.3, (2 s)^2): the calibrated ones are unbiased and cover 90 %."""
    regressor, generator = make("full"), torch.Generator().manual_seed(0)
    mean = torch.linspace(-8, 8, 40_000)
    std = torch.full_like(mean, 0.2)
    truth = mean + 0.3 + 2 * std * torch.randn(len(mean), generator=generator)
    regressor.fit(mean, std, truth)
    bias, scale = regressor._fitted(mean)
    # 2,500 residuals per knot: 0.008 on the mean, 3 % on the scale
    torch.testing.assert_close(bias, torch.full_like(bias, 0.3), rtol=0, atol=0.03)
    torch.testing.assert_close(scale.exp(), torch.full_like(scale, 2.0), rtol=0.1, atol=0)
    inside = ((truth - mean - bias).abs() < NORMAL_90 * std * scale.exp()).float().mean()
    assert inside.item() == pytest.approx(0.9, abs=0.01)
    with pytest.raises(ValueError, match="mean must have at least 320 states, got 100"):
        regressor.fit(mean[:100], std[:100], truth[:100])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_save_and_load(kind, tmp_path):
    regressor, x = make(kind), states()
    regressor.calibration_bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    regressor.save_pretrained(tmp_path / "regressor")
    assert [p.name for p in tmp_path.rglob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    assert (
        "_name_or_path" not in (tmp_path / "regressor" / "config.json").read_text()
    )  # no path of this machine
    loaded = NoiseLevelRegressor.from_pretrained(tmp_path / "regressor")
    if kind == "frozen":
        assert loaded.backbone is None
        with pytest.raises(
            RuntimeError, match=r"regressor must be given its UNet first, got a frozen head alone"
        ):
            loaded.estimate(x)
        loaded.attach_backbone(tiny_unet(num_class_embeds=4))
    torch.testing.assert_close(loaded.estimate(x).log_snr, regressor.estimate(x).log_snr, rtol=0, atol=0)
    assert loaded.process == regressor.process
    assert isinstance(loaded.process, DiscreteVP)


@torch.no_grad()
def test_a_frozen_head_neither_saves_nor_changes_its_network():
    unet = tiny_unet()
    regressor = NoiseLevelRegressor.from_unet(unet, DDPMScheduler(), hidden_size=16)
    before = {name: type(m) for name, m in unet.named_modules()}
    regressor.estimate(states())
    assert {name: type(m) for name, m in unet.named_modules()} == before
    assert not any("backbone" in name for name in regressor.state_dict())
    assert not any(p is q for p in regressor.parameters() for q in unet.parameters())


def test_fingerprint_is_that_of_the_weights_at_half_precision():
    unet = tiny_unet()
    assert (
        fingerprint(unet)
        == fingerprint(copy.deepcopy(unet).half())
        == fingerprint(torch.compile(unet, backend="eager"))
    )
    assert fingerprint(unet) != fingerprint(tiny_unet(seed=1))


def test_flow_process():
    regressor = NoiseLevelRegressor.from_unet(
        tiny_unet(), FlowMatchEulerDiscreteScheduler(), kind="full", hidden_size=16
    )
    assert type(regressor.process).__name__ == "Flow"
    assert regressor.log_snr_range[0] == pytest.approx(-regressor.log_snr_range[1])


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda: make().attach_backbone(tiny_unet(seed=1, num_class_embeds=4)), "unet.*got"),
        (lambda: make().attach_backbone(tiny_unet(block_out_channels=(16, 16))), "unet.*got"),
        (lambda: make("full").attach_backbone(tiny_unet()), "unet.*got"),
        (lambda: NoiseLevelRegressor(kind="half"), "kind.*'half'"),
        (lambda: make(features="first"), "features.*'first'"),
        (lambda: NoiseLevelRegressor(process="VE"), "process.*'VE'"),
        (
            lambda: NoiseLevelRegressor.from_unet(tiny_unet(), EDMEulerScheduler()),
            "process.*'PreconditionedEDM'",
        ),
        (
            lambda: NoiseLevelRegressor.from_unet(tiny_networks.make("PriorTransformer"), DDPMScheduler()),
            "features.*PriorTransformer.*'last'",
        ),
    ],
)
def test_errors(ask, text):
    with pytest.raises(ValueError, match=text):
        ask()
