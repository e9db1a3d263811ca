"""The weights of a network between two others, or with an adapter folded in: theta + strength (theta_other - theta).

strength 0 is the first, 1 the other; what is distilled (`nag finetune distill`) is often best half way. Below 0 it goes away
from the other: with the same network fine-tuned on its own samples, -w is what Neon merges.

References:
    Neon: Negative Extrapolation From Self-Training Improves Image Generation, 2025 (strength below 0).
    Efficient Distillation of Classifier-Free Guidance using Adapters, Jensen 2025, arXiv 2503.07274 (an adapter's scale).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nag.files import fetch_beside, read_json
from nag.network.null_adapter import adaptable
from nag.network.regressor import fingerprint
from nag.network.table import load_network

__all__ = ["add_adapter", "is_adapter", "merged", "save_adapter", "set_weights", "with_weights"]

ADAPTER = "pytorch_lora_weights.safetensors"


def merged(network: nn.Module, other: nn.Module | str, strength: float) -> dict[str, Tensor]:
    """All floating-point weights of the mix, by name; exact at strength 0 and 1.

    Args:
        network: theta; stays as it is.
        other: theta_other, a network of the same architecture, the folder or Hub id of a pipeline with one, or of an adapter.
        strength: any number.

    Raises:
        ValueError: if a weight has another name or shape, or is not in memory, or an adapter is for another network.
    """
    if isinstance(other, str):
        other = with_adapter(network, other) if is_adapter(other) else _opened(other, _age(other))
    own, others, found = network.state_dict(), other.state_dict(), dict[str, Tensor]()
    for name in sorted(own.keys() ^ others.keys()):
        raise ValueError(f"other must be of the same architecture, got {name!r} in only one of both.")
    for name, value in own.items():
        if value.shape != others[name].shape:
            raise ValueError(
                f"other must be of the same architecture, got {tuple(others[name].shape)} for {name!r} where the first has "
                f"{tuple(value.shape)}."
            )
        if value.is_meta:
            raise ValueError(
                f"network must be in memory, got {name!r} offloaded. Use enable_model_cpu_offload."
            )
        if value.is_floating_point():
            exact = torch.promote_types(value.dtype, torch.float32)
            mixed = torch.lerp(value.to(exact), others[name].to(value.device, exact), strength)
            found[name] = mixed.to(value.dtype)
    return found


def _age(place: str) -> int:
    """When a folder's weights were last written; 0 for what is no folder."""
    return max((path.stat().st_mtime_ns for path in Path(place).rglob("*.safetensors")), default=0)


@lru_cache(maxsize=1)
def _opened(place: str, age: int) -> nn.Module:
    """The network of a pipeline, kept as long as its files are as old: a run of many calls reads it once."""
    return load_network(place)


def set_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts tensors in the place of a network's own, by name; returns those that were there."""
    own: dict[str, Tensor] = network.state_dict(keep_vars=True)
    before = {name: own[name].data for name in weights}
    for name, value in weights.items():
        own[name].data = value
    return before


@contextmanager
def with_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the network has other weights; afterwards its own tensors are back."""
    before = set_weights(network, weights)
    try:
        yield
    finally:
        set_weights(network, before)


def is_adapter(place: str) -> bool:
    """Whether a folder or Hub id holds an adapter of ours instead of a pipeline."""
    return fetch_beside(place, "adapter.json") is not None


def add_adapter(network: Any, rank: int) -> None:
    """Gives a network a LoRA, and leaves only that to be trained."""
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(adaptable(network))), network
    )


def save_adapter(network: Any, folder: Path, component: str, model: str) -> None:
    """Writes a network's LoRA as diffusers' `load_lora_weights` takes it, and the fingerprint of the network that it is for.

    Args:
        network: with the adapter.
        component: the network's name in its pipeline.
        model: the pipeline's name, to be told.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = {f"{component}.{k}": v for k, v in get_peft_model_state_dict(network).items()}
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / ADAPTER)
    (config,) = network.peft_config.values()
    content = {"rank": config.r, "model": model, "network": fingerprint(bare(network))}
    (folder / "adapter.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def bare(network: Any) -> Any:
    """A copy of a network without its LoRA."""
    plain = type(network).from_config(network.config)
    state = {k.replace(".base_layer", ""): v for k, v in network.state_dict().items() if "lora_" not in k}
    plain.load_state_dict(state)
    return plain


def with_adapter(network: Any, folder: str) -> Any:
    """A copy of a network with a LoRA folded in at its full strength.

    Raises:
        ValueError: if the adapter is for another network.
    """
    from peft import set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    from nag.files import fetch_beside

    place = fetch_beside(folder, "adapter.json")
    weights = fetch_beside(folder, ADAPTER)
    assert place is not None
    assert weights is not None
    content = read_json(place)
    if content["network"] != fingerprint(network):
        raise ValueError(
            f"other must be an adapter of this network, got one of {content['model']!r} with the fingerprint "
            f"{content['network']}, where the network's is {fingerprint(network)}."
        )
    adapted = copy.deepcopy(network)
    add_adapter(adapted, content["rank"])
    set_peft_model_state_dict(adapted, {k.partition(".")[2]: v for k, v in load_file(weights).items()})
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return bare(adapted)
