"""What samples cost, counted against closed forms and torch's own counter, and that samples do not depend on the batch."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from nag.corrections.text import parse_method
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.named import make_scheduler
from nag.noise.read import read_levels
from nag.pipelines import UNet2DPipeline
from nag.quality.feature_network import SmallClassifier, SmallClassifierFeatures
from nag.quality.sampling import (
    Cost,
    _Operations,
    count_cost,
    largest_steps,
    sample_features,
    within,
)
from nag.seams.attach import attach
from nag.shift.calls import sizes
from nag.shift.forward import Diverged
from tests.models import tiny_unet
from tests.seams.zoo_transformers import dit, flux


def classifier(seed=0):
    """An untrained feature network of 4 features for 8x8 gray images and 2 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SmallClassifier(sample_size=8, num_classes=2, block_out_channels=(4, 4), num_features=4)
    return SmallClassifierFeatures(network).eval()


def pipeline(scheduler="ddim", regressor=None, **unet):
    base = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    made = UNet2DPipeline(unet=tiny_unet(**unet), scheduler=make_scheduler(scheduler, base))
    if regressor is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made.regressor = NoiseLevelRegressor.from_unet(
                made.unet, base, kind=regressor, hidden_size=8
            ).eval()
    return made


def arguments(text, steps):
    return parse_method(text).arguments() | {"num_inference_steps": steps}


LABEL = {"class_labels": [0]}


def inside(scheduler, steps, start=-2.5):
    """Calls of the network whose level is in the default interval."""
    made = pipeline(scheduler).scheduler
    made.set_timesteps(steps)
    return int((read_levels(made).log_snr >= start).sum())


@pytest.mark.parametrize(("scheduler", "calls"), [("ddim", 4), ("dpm++", 4), ("heun", 7)])
def test_evaluations_have_closed_forms(scheduler, calls):
    """N steps, 2 N - 1 for Heun; the null branch adds those inside its interval; class guidance doubles."""
    pipe = pipeline(scheduler)
    plain = count_cost(pipe, arguments("plain", 4))
    assert (plain.passes, plain.evaluations) == (calls, calls)
    guided = count_cost(pipe, arguments("nag:scale=1", 4))
    assert guided.passes == guided.evaluations == calls + inside(scheduler, 4)
    pipe = pipeline(scheduler, num_class_embeds=3)
    both = count_cost(pipe, arguments("class_guidance:scale=2+nag:scale=1", 4), each=LABEL)
    assert both.passes == both.evaluations == 2 * calls + inside(scheduler, 4)


def test_operations_are_those_of_torch_counter():
    unet, x = tiny_unet(), torch.zeros(2, 1, 8, 8)
    with FlopCounterMode(display=False) as expected:
        unet(x, 3).sample.sum().backward()
    unet.zero_grad()
    with _Operations() as found:
        unet(x, 3).sample.sum().backward()
    assert found.total == expected.get_total_flops() > 0


def test_other_networks_and_backward_passes_are_charged():
    """A full regressor is about one evaluation; its gradient about one more for the states' side of the backward pass."""
    pipe = pipeline(regressor="full")
    within = inside("ddim", 6)
    corrected = count_cost(pipe, arguments("nag_corrected:scale=1", 6))
    assert corrected.passes == 6 + within
    assert corrected.evaluations - corrected.passes == pytest.approx(within, rel=0.1)
    gradient = count_cost(pipe, arguments("nag_gradient:scale=1", 6))
    assert gradient.passes == 6
    assert gradient.evaluations - gradient.passes == pytest.approx(2 * within, rel=0.1)


@pytest.mark.parametrize(
    ("scheduler", "method", "guess"),
    [
        ("ddim", "plain", None),
        ("ddim", "nag:scale=1", None),
        ("heun", "plain", 1),
        ("ddim", "class_guidance:scale=2", 2),
    ],
)
def test_the_largest_number_of_steps(scheduler, method, guess):
    """One step more is dearer than the budget, whatever is tried first."""
    conditional = method.startswith("class")
    pipe = pipeline(scheduler, **({"num_class_embeds": 3} if conditional else {}))
    label, given = LABEL if conditional else {}, parse_method(method).arguments()
    steps, cost = largest_steps(pipe, given, 6, each=label, guess=guess)
    assert cost == count_cost(pipe, given | {"num_inference_steps": steps}, each=label)
    assert cost.evaluations <= 6
    more = count_cost(pipe, given | {"num_inference_steps": steps + 1}, each=label)
    assert more.evaluations > 6


def test_a_budget_that_pays_for_no_step():
    pipe = pipeline(num_class_embeds=3)
    given = parse_method("class_guidance:scale=2").arguments()
    assert largest_steps(pipe, given, 1, each=LABEL) is None


def test_the_dry_count_is_what_sampling_does():
    pipe, labels = pipeline("heun", num_class_embeds=3), torch.arange(6) % 2
    given = arguments("nag:scale=1", 4)
    sampled = sample_features(
        pipe,
        classifier(),
        num_samples=6,
        seed=1,
        arguments=given,
        each={"class_labels": labels},
        batch_size=4,
    )
    assert sampled.passes == count_cost(pipe, given, each=LABEL).passes


@pytest.mark.parametrize(
    ("build", "each"), [(dit, {"class_labels": [0, 1, 1]}), (flux, {"prompt": ["a cat"] * 3})]
)
def test_networks_whose_state_is_named_are_counted(build, each):
    """DiT, Flux and others are asked with `hidden_states=`; a hook counts the rows."""
    pipe, rows = attach(build()), []
    pipe.vae.register_to_config(shift_factor=0.1)
    network = pipe.transformer
    network.register_forward_hook(
        lambda _, args, given, out: rows.append(len(given["hidden_states"] if not args else args[0])),
        with_kwargs=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = SmallClassifier(in_channels=3, sample_size=16, block_out_channels=(4, 4), num_features=4)
    given = {"num_inference_steps": 2, **sizes(pipe, 16)}
    found = sample_features(
        pipe, SmallClassifierFeatures(judge).eval(), num_samples=3, seed=1, arguments=given, each=each
    )
    assert found.features.shape == (3, 4)
    assert found.passes == sum(rows) / 3 >= 2


def test_samples_do_not_depend_on_the_batch_size():
    """Float32 rounding of another batch size may move a pixel by one of 255 levels: features to 0.05 of their size."""
    pipe, network, labels = pipeline("ddpm", num_class_embeds=3), classifier(), torch.arange(10) % 2
    whole, parts = (
        sample_features(
            pipe, network, num_samples=10, seed=3, arguments=arguments("plain", 3), each={"class_labels": labels},
            batch_size=size, keep_images=6,
        )
        for size in (10, 4)
    )  # fmt: skip
    torch.testing.assert_close(whole.features, parts.features, rtol=0.05, atol=1e-3)
    assert np.abs(whole.images.astype(int) - parts.images.astype(int)).max() <= 1
    assert whole.images.shape == (6, 8, 8, 1)
    torch.testing.assert_close(whole.class_labels, labels)
    assert whole.predicted_classes.shape == (10,)
    other = sample_features(
        pipe, network, num_samples=10, seed=4, arguments=arguments("plain", 3), each={"class_labels": labels}
    )
    assert (other.images[:6].astype(int) - whole.images).any()


def test_features_are_those_of_the_pipelines_eight_bit_images():
    pipe, network = pipeline(), classifier()
    found = sample_features(pipe, network, num_samples=2, seed=5, arguments={"num_inference_steps": 2})
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(found.features, network(images).detach(), rtol=1e-6, atol=1e-6)
    assert found.seconds > 0


def test_autocast():
    pipe, network = pipeline(), classifier()
    shared = {"num_samples": 4, "seed": 1, "arguments": {"num_inference_steps": 2}}
    exact = sample_features(pipe, network, **shared)
    rounded = sample_features(pipe, network, **shared, mixed_precision="bf16")
    apart = (exact.images.astype(int) - rounded.images.astype(int)).astype(float)
    assert 0 < np.abs(apart).mean() < 10  # bfloat16 has three digits


def test_samples_that_diverge():
    pipe = pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Diverged, match="samples must be finite, got 2 of 2 that are not"):
        sample_features(pipe, classifier(), num_samples=2, seed=0, arguments={"num_inference_steps": 1})


def test_small_operations_beside_the_network_take_no_step_away():
    """A wavelet transform costs less than half a per cent of this network's evaluation: charged, but within the tolerance."""
    pipe, given = pipeline(), parse_method("dcw_wavelet:scale=0.1").arguments()
    steps, cost = largest_steps(pipe, given, 3)
    assert steps == cost.passes == 3
    assert 3 < cost.evaluations < 3 * 1.005


def test_a_large_budget_gives_no_evaluation_away():
    for budget in (1, 20, 100, 200, 1000):
        assert within(Cost(passes=budget, evaluations=budget), budget)
        assert not within(Cost(passes=budget + 1, evaluations=budget + 1), budget)
