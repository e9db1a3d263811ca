"""A network weakened from within, for the length of a `with` block.

    "attention"    softmax(q k^T / sqrt(d)) := 1 in self-attention: a position sees itself alone, and the layer answers with its
                   own projected value. Attention to a prompt is not touched (perturbed-attention guidance)
    "block"        the residual branch of a block is 0: it answers with its input, or with what its shortcut makes of it
                   (skip-layer guidance, as in diffusers' pipeline for Stable Diffusion 3)

in the middle of the network or everywhere. Known are the blocks of diffusers' U-nets, its `BasicTransformerBlock`, and for "block"
those of its `TransformerBlockRegistry` too; joint attention to image and text has no map for the image alone. diffusers' own
`LayerSkipConfig` knows no residual blocks of U-nets, leaves hooks behind, and mixes up image and prompt where a block answers with
the prompt first.

References:
    Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, Ahn 2024, arXiv 2403.17377 (identity map).
    S^2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models, Chen 2025, arXiv 2508.12880 (dropped
    blocks, there drawn anew at each step).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from nag.network.swap import Instrument, instrumented
from nag.network.table import unwrap

__all__ = ["DEGRADED", "PARTS", "degraded", "degraded_modules"]

DEGRADED = ("attention", "block")
PARTS = ("middle", "all")


class _ValuesAlone(Instrument):
    """Self-attention with the identity for its map; whatever its processor."""

    def __call__(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape = hidden_states.shape
        tokens = hidden_states.flatten(2).mT if len(shape) == 4 else hidden_states
        if self.group_norm is not None:
            tokens = self.group_norm(tokens.mT).mT
        tokens = self.to_out[0](self.to_v(tokens))
        output = tokens.mT.reshape(shape) if len(shape) == 4 else tokens
        return (output + hidden_states if self.residual_connection else output) / self.rescale_output_factor


def _registered(cls: type) -> TransformerBlockMetadata | None:
    """What diffusers knows of the answers of a transformer's block; of Bria's, which answers with both, it says the image alone."""
    try:
        return None if cls.__name__ == "BriaTransformerBlock" else TransformerBlockRegistry.get(cls)
    except ValueError:
        return None


class _Skipped(Instrument):
    """A block without its residual branch, which is not computed."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = [*args, *kwargs.values()][0]
        known = _registered(self.plain_class)
        if known is not None:
            given = inspect.signature(self.plain_class.forward).bind(self, *args, **kwargs).arguments
            x = given.get(known.hidden_states_argument_name, x)
            prompt = given.get(known.encoder_hidden_states_argument_name)
            first = known.return_encoder_hidden_states_index
            return x if first is None else (prompt, x) if first == 0 else (x, prompt)
        if isinstance(self, Transformer2DModel):
            return Transformer2DModelOutput(sample=x) if kwargs.get("return_dict", True) else (x,)
        shortcut = getattr(self, "conv_shortcut", None)
        scale = "rescale_output_factor" if isinstance(self, Attention) else "output_scale_factor"
        return (x if shortcut is None else shortcut(x)) / getattr(self, scale, 1.0)


def _attention(name: str, module: nn.Module) -> nn.Module | None:
    """The self-attention of a transformer's block, or that of a U-net's block over its positions."""
    found: Any = module.attn1 if isinstance(module, BasicTransformerBlock) else module
    if found is module and name.split(".")[-2:-1] != ["attentions"]:
        return None
    own = isinstance(found, Attention) and not found.is_cross_attention and found.added_kv_proj_dim is None
    return found if own and found.spatial_norm is None else None


def _block(name: str, module: nn.Module) -> nn.Module | None:
    """The module itself, if its output is its input and a residual."""
    if isinstance(module, ResnetBlock2D):
        found = module.upsample is None and module.downsample is None
    elif isinstance(module, Attention):
        found = _attention(name, module) is not None and module.residual_connection
    else:
        found = isinstance(module, Transformer2DModel) or _registered(type(module)) is not None
    return module if found else None


def degraded_modules(model: nn.Module, how: str, part: str = "middle") -> list[nn.Module]:
    """The modules that answer otherwise.

    Args:
        model: a network, plain, compiled or wrapped.
        how: "attention" or "block".
        part: "middle" for the middle block of a U-net, or for the middle one of all blocks found; or "all".
    """
    model, find = unwrap(model), _attention if how == "attention" else _block
    found = dict[str, nn.Module]()
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        one = None if inside else find(name, module)
        found |= {} if one is None else {name: one}
    if not found:
        what = "self-attention" if how == "attention" else "residual blocks"
        raise ValueError(
            f"network must have {what} to weaken, as diffusers' U-nets and its basic transformer blocks do, got "
            f"{type(model).__name__} without. Use another weak model."
        )
    if part == "all":
        return list(found.values())
    inner = [one for name, one in found.items() if name.startswith("mid_block.")]
    return inner or [list(found.values())[len(found) // 2]]


@contextmanager
def degraded(model: nn.Module, how: str, part: str = "middle") -> Iterator[None]:
    """Within the block the network is weakened; see `degraded_modules`."""
    mixin = _ValuesAlone if how == "attention" else _Skipped
    with ExitStack() as stack:
        for module in degraded_modules(model, how, part):
            stack.enter_context(instrumented(module, mixin))
        yield
