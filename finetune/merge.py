"""A checkpoint between two others, or with an adapter folded in: theta + strength (theta_other - theta).

strength 0 is the first, 1 the other; what is distilled (`nag finetune distill`) is often best half way. Below 0 it goes away
from the other: with the same network fine-tuned on its own samples, -w is what Neon merges.

References:
    Neon: Negative Extrapolation From Self-Training Improves Image Generation, 2025 (strength below 0).
    Efficient Distillation of Classifier-Free Guidance using Adapters, Jensen 2025, arXiv 2503.07274 (an adapter's scale).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MergeOptions", "add_adapter", "merge", "run", "save_adapter"]

ADAPTER = "adapter_model.safetensors"
ADAPTED = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|to_q|to_k|to_v|to_out\.0|proj_in|proj_out|linear_1|linear_2)"
"""Layers of diffusers' blocks that an adapter sits on."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Write a checkpoint between two others: the first, moved towards the second by a strength.

    nag finetune merge MODEL STUDENT --strength 0.5 --output_dir merged
    """

    model: tyro.conf.Positional[str]
    """Pipeline: a folder or a Hub id."""
    other: tyro.conf.Positional[str]
    """A pipeline of the same network, or the folder of an adapter of `nag finetune distill`."""
    strength: float = 0.5
    """How far to go: 0 is MODEL, 1 the other, below 0 away from it."""
    output_dir: Annotated[Path, tyro.conf.arg(help="Folder of the new pipeline.")]
    overwrite: bool = False
    """Write into a folder that is not empty."""


def merge(first: nn.Module, other: nn.Module, strength: float) -> nn.Module:
    """The first network, in place, at theta + strength (theta_other - theta); sums in float64, so that 0 and 1 are exact.

    Raises:
        ValueError: if a weight has another name or shape.
    """
    import torch

    own, others = first.state_dict(), other.state_dict()
    for name in sorted(own.keys() ^ others.keys()):
        raise ValueError(f"other must be of the same architecture, got {name!r} in only one of both.")
    for name, value in own.items():
        if value.shape != others[name].shape:
            raise ValueError(
                f"other must be of the same architecture, got {tuple(others[name].shape)} for {name!r} where the first has "
                f"{tuple(value.shape)}."
            )
        if value.is_floating_point():
            mixed = torch.lerp(value.double(), others[name].double(), strength)
            own[name] = mixed.to(value.dtype)
    first.load_state_dict(own)
    return first


def add_adapter(network: Any, rank: int) -> None:
    """Gives a network a LoRA, and leaves only that to be trained."""
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), network)


def save_adapter(network: Any, folder: Path, model: str) -> None:
    """Writes a network's LoRA as safetensors, with its configuration and the fingerprint of the network that it is for."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from nag.network.regressor import fingerprint

    weights = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
    save_file(weights, folder / ADAPTER)
    (config,) = network.peft_config.values()
    content = {"rank": config.r, "model": model, "network": fingerprint(_bare(network))}
    (folder / "adapter.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _bare(network: Any) -> Any:
    """A copy of a network without its LoRA."""
    bare = type(network).from_config(network.config)
    state = {k.replace(".base_layer", ""): v for k, v in network.state_dict().items() if "lora_" not in k}
    bare.load_state_dict(state)
    return bare


def with_adapter(network: Any, folder: str) -> Any:
    """A copy of a network with a LoRA folded in at its full strength.

    Raises:
        ValueError: if the adapter is for another network.
    """
    import copy

    from peft import set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    from nag.files import fetch_beside, read_json
    from nag.network.regressor import fingerprint

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
    set_peft_model_state_dict(adapted, load_file(weights))
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return _bare(adapted)


def run(options: MergeOptions) -> None:
    """Writes the merged pipeline; the first one's scheduler and other parts stay."""
    from nag.files import fetch_beside, written_whole
    from nag.load import NAGPipeline
    from nag.network.table import load_network

    folder = options.output_dir
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise FileExistsError(f"output_dir must be empty, got {folder}. Pass --overwrite or another folder.")
    pipe = NAGPipeline.from_pretrained(options.model)
    if fetch_beside(options.other, "adapter.json") is not None:
        other = with_adapter(pipe.unet, options.other)
    else:
        other = load_network(options.other)
    merge(pipe.unet, other.to(pipe.unet.dtype), options.strength)
    with written_whole(folder) as part:
        pipe.save_pretrained(part)
    print(f"Written: {folder}")


if __name__ == "__main__":
    run(tyro.cli(MergeOptions, use_underscores=True))
