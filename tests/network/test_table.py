"""Every row of the table, proved on a tiny network: the level is hidden completely, and nothing else is."""

import copy
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nag.network.degraded import DEGRADED, PARTS, degraded, degraded_modules
from nag.network.direction import DirectionHead
from nag.network.null import null_level
from nag.network.null_adapter import NullAdapter
from nag.network.regressor import tapped
from nag.network.table import ARCHITECTURES, architecture_of, level_modules
from tests.network.cases import give_null_vectors
from tests.network.tiny_networks import CASES, arguments, make, names_of

pytestmark = [
    # diffusers' own: ControlNets and Chroma import it from its old place
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
    # diffusers' Mochi asks for autocast to float32, which the CPU has not
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
    # diffusers' AnyFlow FAR and Wan-Animate 2 have no other attention; compiled, it takes minutes
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    # diffusers' Nucleus has an attention without added queries
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning"),
]
TOLD = {"t": (3.0, 900.0), "t-1": (2.0, 899.0), "t/T": (0.003, 0.9), "1-t/T": (0.997, 0.1)}
MASK = torch.tensor([True, False, True])


BY_INDEX = ("WanVACETransformer3DModel", "LatteTransformer3DModel")  # what a block gets depends on its place
WITHOUT_LAYERS = "UNet1DModel"
SLOW = {"WanAnimate2Transformer3DModel"}  # five seconds, for its attention is not compiled


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES],
)
def case(request):
    """A name and its network; where the null must be a vector it has one, which is not zero."""
    if CASES[request.param].needs is not None:
        pytest.importorskip(CASES[request.param].needs)
    model = make(request.param)
    if architecture_of(model).null == "vector":
        give_null_vectors(model)
    return request.param, model


def told(name: str, model: nn.Module, which: int = 0, batch: int = 3) -> dict[str, Any]:
    """The argument that carries the level, the first or the second of two."""
    architecture = architecture_of(model)
    level = torch.full((batch,), TOLD[architecture.told][which])
    carried = CASES[name].timestep(level)
    return carried if isinstance(carried, dict) else {architecture.timestep: carried}


def tensors(output: Any, batch: int) -> list[Tensor]:
    """All tensors of an output; lists of samples are stacked."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)) and len(output) == batch and len(output[0]) != batch:
        return [torch.stack(list(output))]
    return [tensor for part in output if part is not None for tensor in tensors(part, batch)]


@torch.no_grad()
def call(model: nn.Module, inputs: dict[str, Any], batch: int = 3) -> list[Tensor]:
    """The network's answer; it gets lists of its own, for some networks pop from what they are handed."""
    inputs = {key: list(value) if isinstance(value, list) else value for key, value in inputs.items()}
    output = model(**inputs, return_dict=False)
    return tensors(output if isinstance(output[0], Tensor) else list(output), batch)


def rows(found: list[Tensor]) -> Tensor:
    """One row per sample."""
    return torch.cat([tensor.reshape(3, -1) for tensor in found], dim=1)


def assert_differ(first: list[Tensor], second: list[Tensor]) -> None:
    change = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(first, second, strict=True))
    assert change > 1e-4


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def test_the_level_matters_and_is_hidden_completely(case):
    name, model = case
    inputs = arguments(name, 3)
    plain = [call(model, inputs | told(name, model, which)) for which in (0, 1)]
    assert all(tensor.isfinite().all() for tensor in plain[0])
    assert_differ(*plain)
    with null_level(model):
        hidden = [call(model, inputs | told(name, model, which)) for which in (0, 1)]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=0, atol=0)
    assert_differ(plain[0], hidden[0])


@torch.no_grad()
@pytest.mark.parametrize("how", DEGRADED)
def test_every_network_is_weakened_or_refused(case, how):
    name, model = case
    try:
        degraded_modules(model, how)
    except ValueError as error:
        assert f"got {name.split(':')[0]} " in str(error)  # noqa: PT017
        return
    inputs = arguments(name, 3) | told(name, model)
    plain = call(model, inputs)
    for part in PARTS:
        with degraded(model, how, part):
            assert_differ(call(model, inputs), plain)


def test_a_transformer_without_a_block_is_as_if_it_had_been_taken_out(case):
    """Whether its blocks answer with image and prompt, in either order, or with the image alone."""
    name, model = case
    if "Transformer" not in name or name in BY_INDEX:
        return
    try:
        (block,) = degraded_modules(model, "block")
    except ValueError:
        return
    inputs, shorter = arguments(name, 3) | told(name, model), copy.deepcopy(model)
    path = next(path for path, module in model.named_modules() if module is block)
    stack, _, index = path.rpartition(".")
    del shorter.get_submodule(stack)[int(index)]
    with degraded(model, "block"):
        found = call(model, inputs)
    for one, other in zip(found, call(shorter, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_nothing_else_is_hidden(case):
    name, model = case
    inputs = arguments(name, 3) | told(name, model)
    matter = []
    with null_level(model):
        hidden = call(model, inputs)
        for argument in names_of(name):
            changed = arguments(name, 3, argument)
            if same(changed, arguments(name, 3)):
                continue  # a mask of ones, or the like
            found = call(model, changed | told(name, model))
            if argument in CASES[name].inert:
                torch.testing.assert_close(found, hidden, rtol=0, atol=0)
            else:
                assert_differ(hidden, found)
                matter.append(argument)
    assert matter


def test_a_mask_hides_the_level_of_its_samples_alone(case):
    name, model = case
    inputs = arguments(name, 3) | told(name, model)
    plain = call(model, inputs)
    with null_level(model):
        hidden = call(model, inputs)
    if not architecture_of(model).per_sample:
        with pytest.raises(ValueError, match="mask must be None for"), null_level(model, MASK):
            pass
        return
    with null_level(model, MASK):
        found = rows(call(model, inputs))
    # rows of one batch: the same numbers up to the order of summation
    scale = rows(plain).abs().max().item()
    torch.testing.assert_close(found[MASK], rows(hidden)[MASK], rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(found[~MASK], rows(plain)[~MASK], rtol=1e-5, atol=1e-6 * scale)


def left(model: nn.Module) -> dict[str, Any]:
    return {name: (type(m), sorted(m.__dict__), len(m._forward_hooks)) for name, m in model.named_modules()}


def test_everything_is_left_as_found_also_after_an_exception(case):
    name, model = case
    inputs = arguments(name, 3) | told(name, model)
    before, state, plain = left(model), copy.deepcopy(model.state_dict()), call(model, inputs)

    def fail() -> None:
        with null_level(model):
            assert list(model.state_dict()) == list(state)
            with null_level(model):
                call(model, inputs)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert left(model) == before
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(call(model, inputs), plain, rtol=0, atol=0)


def features_of(name: str, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    kept: list[Tensor] = []
    module = model.get_submodule(str(architecture_of(model).features))
    hook = module.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        with null_level(model):
            call(model, inputs)
    finally:
        hook.remove()
    assert len(kept) == 1
    return kept[0]


def test_features_have_one_row_per_sample_and_no_level(case):
    name, model = case
    architecture = architecture_of(model)
    if architecture.features is None:
        assert architecture.middle is None
        return
    inputs = arguments(name, 3)
    found, other = (features_of(name, model, inputs | told(name, model, which)) for which in (0, 1))
    torch.testing.assert_close(found, other, rtol=0, atol=0)
    assert len(found) == 3
    channels = architecture.channels(model)
    if found.ndim == 4:
        assert found.shape[1] == channels
    else:
        assert found.shape == (3, CASES[name].tokens, channels)
    state = next(iter(arguments(name, 3)))
    changed = features_of(name, model, arguments(name, 3, state) | told(name, model))
    assert ((changed - found).flatten(1).abs().amax(dim=1) > 1e-4).all()  # each sample's own


@torch.no_grad()
def test_a_null_adapter_acts_without_the_level_alone(case):
    """Told predictions stay bit-identical; without the level they are others, once the adapter is more than zero."""
    name, model = case
    inputs = arguments(name, 3) | told(name, model)
    plain = call(model, inputs)
    with null_level(model):
        null = call(model, inputs)
    if name.startswith(WITHOUT_LAYERS):
        with pytest.raises(
            ValueError, match="network must have layers of diffusers' names for a null adapter"
        ):
            NullAdapter.of(model, 2)
        return
    adapter = NullAdapter.of(model, 2)
    with torch.no_grad():
        for weight in adapter.high:
            weight.fill_(0.1)
    model.__dict__["null_adapter"] = adapter
    try:
        assert all(torch.equal(a, b) for a, b in zip(call(model, inputs), plain, strict=True))
        with null_level(model):
            assert_differ(call(model, inputs), null)
    finally:
        del model.__dict__["null_adapter"]


def test_a_direction_head_reads_them_or_refuses(case):
    name, model = case
    inputs = arguments(name, 3) | told(name, model)
    state = next(iter(inputs.values()))
    state = torch.stack(state) if isinstance(state, list) else state
    try:
        head = DirectionHead.of(model)
        with tapped(model) as kept:
            (prediction, *_) = call(model, inputs)
        found = head(kept[-1], torch.zeros(3), state)
    except ValueError as error:
        assert re.match("(network|features) must", str(error))  # noqa: PT017
        assert name not in (
            "UNet2DModel",
            "UNet2DConditionModel",
            "DiTTransformer2DModel",
            "FluxTransformer2DModel",
        )
        return
    assert found.shape == state.shape
    assert prediction.shape[2:] == found.shape[2:]
    assert not found.any()
    torch.nn.init.normal_(head.last.weight)
    moved = head(kept[-1].roll(1, dims=0), torch.zeros(3), state)
    found = head(kept[-1], torch.zeros(3), state)
    torch.testing.assert_close(moved, found.roll(1, dims=0))


def cut(value: Any, index: slice) -> Any:
    if value is None:
        return None
    return value[index] if isinstance(value, Tensor) else [part[index] for part in value]


def cut_rows(
    inputs: dict[str, Any], wanted: tuple[str, ...], index: slice, prefix: str = ""
) -> dict[str, Any]:
    made = {}
    for key, value in inputs.items():
        if isinstance(value, dict):
            made[key] = cut_rows(value, wanted, index, f"{prefix}{key}.")
        else:
            made[key] = cut(value, index) if prefix + key in wanted else value
    return made


def test_the_arguments_with_rows_are_all_that_has_to_be_cut(case):
    name, model = case
    architecture = architecture_of(model)
    if not architecture.rows:
        return
    inputs = arguments(name, 3) | told(name, model)
    whole = rows(call(model, inputs))
    for i in range(3):
        one = call(model, cut_rows(inputs, architecture.rows, slice(i, i + 1)), batch=1)
        found = torch.cat([tensor.flatten() for tensor in one])
        torch.testing.assert_close(found, whole[i], rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_every_row_has_a_tiny_network_and_names_that_exist():
    assert {name.split(":")[0] for name in CASES} == set(ARCHITECTURES)
    for name in CASES:
        model = make(name)
        architecture = architecture_of(model)
        assert architecture.told in TOLD
        accepted = inspect.signature(model.forward).parameters
        assert {argument.split(".")[0] for argument in (*architecture.rows, architecture.timestep)} <= set(
            accepted
        )
        assert level_modules(model)
