"""The null level: per-sample, exact on exit, and harmless to copies, hooks, compilation and data-parallel wrappers."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models import transformers, unets
from torch import nn

from nag.network.null import null_level
from nag.network.rows import REFUSED
from nag.network.table import ARCHITECTURES, architecture_of, level_modules, split_output
from tests.models import tiny_unet
from tests.network.cases import give_null_vectors
from tests.network.tiny_networks import arguments, make


@pytest.fixture(params=["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"])
def case(request):
    inputs = arguments(request.param, 4)
    return make(request.param), lambda net, t: net(**inputs, timestep=torch.full((4,), t)).sample


def attributes(module: nn.Module) -> dict:
    return {name: (type(m), sorted(m.__dict__), len(m._forward_hooks)) for name, m in module.named_modules()}


@torch.no_grad()
def test_the_null_is_a_zero_embedding():
    """Oracle: the same network whose last embedding layer was set to zero by hand."""
    model, silenced = tiny_unet(), tiny_unet()
    nn.init.zeros_(silenced.time_embedding.linear_2.weight)
    nn.init.zeros_(silenced.time_embedding.linear_2.bias)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with null_level(model):
        found = model(x, 5).sample
    torch.testing.assert_close(found, silenced(x, 5).sample, rtol=0, atol=0)


@torch.no_grad()
def test_inner_masks_give_way_to_outer_ones(case):
    model, call = case
    outer = torch.tensor([True, True, False, False])
    with null_level(model, outer):
        expected = call(model, 3)
        with null_level(model):
            call(model, 3)
        torch.testing.assert_close(call(model, 3), expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_copy_made_meanwhile_is_plain_and_has_weights_of_its_own(case):
    model, call = case
    with null_level(model):
        twin = copy.deepcopy(model)
    assert attributes(twin) == attributes(model)
    torch.testing.assert_close(call(twin, 3), call(model, 3), rtol=0, atol=0)
    for parameter in twin.parameters():
        parameter.zero_()
    assert call(twin, 3).abs().max() == 0
    assert call(model, 3).abs().max() > 0


class Doubling(ModelHook):
    def post_forward(self, module, output):
        return 2 * output


@torch.no_grad()
def test_hooks_of_diffusers_that_were_there_before_still_run():
    model = tiny_unet()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    HookRegistry.check_if_exists_or_initialize(model.time_embedding).register_hook(Doubling(), "doubling")
    hooked = model(x, 5).sample
    mask = torch.tensor([True, False])
    with null_level(model, mask):
        mixed = model(x, 5).sample
    torch.testing.assert_close(mixed[1], hooked[1], rtol=1e-5, atol=1e-6)
    assert (mixed[0] - hooked[0]).abs().max() > 1e-4


@torch.no_grad()
def test_compiled_networks_honour_the_mask_in_one_graph():
    model = tiny_unet(  # the smallest there is: compiling takes its time by layers
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask, timestep = torch.tensor([True, False, True, False]), torch.tensor(3)
    plain = model(x, timestep).sample
    with null_level(model):
        null = model(x, timestep).sample
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, timestep).sample, plain, rtol=1e-5, atol=1e-6)
    for wanted in (mask, ~mask):
        with null_level(compiled, wanted):
            found = compiled(x, timestep).sample
        expected = torch.where(wanted[:, None, None, None], null, plain)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled(x, timestep).sample, plain, rtol=1e-5, atol=1e-6)


DATA_PARALLEL = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from nag.network.table import unwrap
from nag.network.null import null_level
from tests.models import tiny_unet

model = tiny_unet()
x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
mask = torch.tensor([True, False, True, False])
with torch.no_grad(), null_level(model, mask):
    expected = model(x, 3).sample
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
wrapped = DistributedDataParallel(model)
assert unwrap(wrapped) is model
with null_level(wrapped, mask):
    torch.testing.assert_close(wrapped(x, 3).sample.detach(), expected, rtol=0, atol=0)
with null_level(wrapped, mask), torch.autocast("cpu", torch.bfloat16):
    low = wrapped(x, 3).sample
torch.testing.assert_close(low.float().detach(), expected, rtol=0.1, atol=0.05)  # bfloat16: 8 bits
low.sum().backward()
assert all(p.grad is not None for p in model.parameters())
print("equal", flush=True)
os._exit(0)
"""


@pytest.mark.slow  # a process of its own
def test_data_parallel_wrapping_and_autocast(tmp_path):
    """In a process of its own that ends at once: gloo's group, taken down in a process that goes on, can wait forever."""
    done = subprocess.run(
        [sys.executable, "-c", DATA_PARALLEL, str(tmp_path / "store")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "equal\n", done.stderr


def test_gradient_does_not_reach_the_hidden_embedding():
    model = tiny_unet()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with null_level(model):
        model(x, 3).sample.sum().backward()
    assert model.time_embedding.linear_2.weight.grad is None
    assert model.conv_in.weight.grad.abs().max() > 0


def test_networks_that_divide_by_the_level_are_refused():
    model = tiny_unet(time_embedding_type="fourier")
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (model(x, 10).sample / model(x, 20).sample).std() > 0  # it runs, and depends on t
    with pytest.raises(ValueError, match="got UNet2DModel, which with .* 'fourier' divides its output"):
        architecture_of(model)


def test_unknown_networks_are_named_and_told_what_row_they_need():
    with pytest.raises(ValueError, match="model.*Linear, which has no row in nag/network/rows.py"):
        architecture_of(nn.Linear(1, 1))


@pytest.mark.parametrize("name", REFUSED)
def test_networks_whose_level_cannot_be_hidden_are_refused_with_the_reason(name):
    assert name not in ARCHITECTURES
    model = type(name, (nn.Module,), {})()
    with pytest.raises(ValueError, match=f"got {name}, which {REFUSED[name]}"), null_level(model):
        pass
    assert hasattr(unets, name) or hasattr(transformers, name)  # a class of that name there is


def test_a_network_that_modulates_without_bias_needs_a_vector():
    model = make("AuraFlowTransformer2DModel")
    with (
        pytest.raises(ValueError, match="got AuraFlowTransformer2DModel without one.*bias"),
        null_level(model),
    ):
        pass
    (vector,) = give_null_vectors(model)
    torch.nn.init.zeros_(vector)
    inputs = arguments("AuraFlowTransformer2DModel", 2)
    changed = arguments("AuraFlowTransformer2DModel", 2, "encoder_hidden_states")
    with null_level(model):
        zero, text = (model(**i, timestep=torch.tensor([0.5, 0.5])).sample for i in (inputs, changed))
    torch.testing.assert_close(zero, text, rtol=0, atol=0)  # at zero the text is without effect
    (gradient,) = torch.autograd.grad(zero.square().sum(), vector)
    assert gradient.abs().max() > 0  # but the vector can be trained
    nn.init.normal_(vector, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), null_level(model):
        one, other = (model(**i, timestep=torch.tensor([0.5, 0.5])).sample for i in (inputs, changed))
    assert (one - other).abs().max() > 1e-3 * one.abs().max()


@torch.no_grad()
def test_a_mask_without_a_level_for_each_sample():
    model = make("UNet1DModel")
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, False, True])
    with (
        null_level(model, mask),
        pytest.raises(ValueError, match="mask.*got 3"),
    ):
        model(x, 5)
    with null_level(model, mask):
        assert model(x, torch.full((3,), 5)).sample.shape == x.shape


def test_a_network_without_its_level_module_is_refused():
    model = tiny_unet()
    model.time_embed = model.time_embedding
    del model.time_embedding
    with pytest.raises(ValueError, match="must have a module named 'time_embedding'"):
        level_modules(model)


def test_subclasses_of_known_networks_are_known():
    class Mine(UNet2DModel):
        pass

    assert (
        architecture_of(Mine(**{k: v for k, v in tiny_unet().config.items() if not k.startswith("_")})).name
        == "UNet2DModel"
    )


def test_split_output():
    mean, rest = split_output(torch.arange(4.0).reshape(1, 4, 1, 1), 2)
    assert mean.flatten().tolist() == [0, 1]
    assert rest is not None
    assert rest.flatten().tolist() == [2, 3]
    assert split_output(torch.zeros(1, 2, 1, 1), 2)[1] is None
    with pytest.raises(ValueError, match="output must have 2 or 4 channels, got 3"):
        split_output(torch.zeros(1, 3, 1, 1), 2)
