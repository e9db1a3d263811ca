"""A direction head: what guidance adds to a prediction, read from features that the prediction's own pass has anyway.

A weak model f_weak costs a second pass. A few convolutions on the features z of the pass that sampling makes, the input of the
network's last layer, regress the difference instead, for about a fiftieth of a pass:

    h(z, t) = size conv3x3[ SiLU( (1 + scale) conv3x3[z] + shift ) ]   ~   f - f_weak,        0 before training.

size is the root mean square of f - f_weak. scale and shift are a small perceptron of the level, cos(pi k s) for k < 8 with
s = sigmoid(log_snr / 4), and of the mean of z over the image: how far a state looks from its level is no local matter, and without
the mean a third to a half of what the head explains is lost. Tokens `(B, L, C)` are normalised and laid out as
an image `(B, C, H/p, W/p)`, and what comes out is shuffled to pixels; a state that is a sequence itself is an image one row high.

An *exit head* is a weak model of its own instead, h(z, u, t) ~ f, of the features z after the middle block, brought to the size of
the state u and laid beside it: a middle of a few pixels knows nothing of the noise, which most predictions have to repeat.

References:
    On Distillation of Guided Diffusion Models, Meng 2023, arXiv 2210.03142 (guidance in one pass).
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507 (the weak model).
    Guiding a Diffusion Transformer with the Internal Dynamics of Itself, Zhou 2025, arXiv 2512.24176 (exit heads).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nag.files import safely
from nag.network.regressor import fingerprint
from nag.network.table import architecture_of, unwrap

__all__ = ["DIRECTION_FOLDER", "DirectionHead"]

DIRECTION_FOLDER = "direction"
WAVES = 8


class DirectionHead(ModelMixin, ConfigMixin):
    """Regresses f - f_weak from the last features of the pass that gives f, or f from its middle. Use `of` to make one.

    Args:
        feature_channels: channels of the features.
        channels: of the state.
        patch: pixels along the side of a token.
        hidden: width.
        network: fingerprint of the network that it belongs to.
        weak: "null" (that network without its level), "class" (without its class), "block_drop" or "perturbed_attention", the
            fingerprint of another, or "exit": the head itself, from the middle.
        scale: w that guidance takes if nobody says another.
        interval: log-SNR within which it was trained, noisy end first; None for an open side.
        steps: how long it was trained.
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        channels: int,
        patch: int = 1,
        hidden: int = 16,
        network: str = "",
        weak: str = "null",
        scale: float = 2.0,
        interval: Sequence[float | None] = (None, None),
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(feature_channels, hidden, 3, padding=1)
        wide = nn.Linear(WAVES + feature_channels, 64)
        self.level = nn.Sequential(wide, nn.SiLU(), nn.Linear(64, 2 * hidden))
        self.last = nn.Conv2d(hidden, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.register_buffer("size", torch.ones(()))
        self._seen: Any = None

    @property
    def layer(self) -> str:
        """Whose features it reads."""
        return "middle" if self.config.weak == "exit" else "last"

    @classmethod
    def of(cls, network: nn.Module, weak: str = "null", **settings: Any) -> Self:
        """An untrained head for a network."""
        model, architecture = unwrap(network), architecture_of(network)
        patch, known = model.config.get("patch_size", 1), model.config.get("in_channels")
        place = architecture.middle if weak == "exit" else architecture.features
        if place is None or not isinstance(patch, int) or known is None:
            raise ValueError(
                f"network must have features of its image alone for a direction head, got {architecture.name}. Distil it with "
                "`nag finetune distill` instead."
            )
        channels = min(known, model.config.get("out_channels") or known)
        beside = weak == "exit"  # the state, which its features do not know
        width = (architecture.middle_channels if beside else architecture.channels)(model)
        return cls(
            feature_channels=width + channels * patch**2 * beside,
            channels=channels,
            weak=weak,
            patch=patch,
            network=fingerprint(model),
            **settings,
        )

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> Self:
        """The head in a folder or Hub repository."""
        options: dict[str, Any] = {}
        head: Self = safely(str(place), options, lambda: cls.from_pretrained(place, **options))
        return head.eval().requires_grad_(False)

    def require(self, network: nn.Module) -> None:
        """Refuses another network than the one that it was trained on; weights that it has seen are not read again."""
        model = unwrap(network)
        seen = (id(model), [(p.data_ptr(), p._version) for p in model.parameters()])
        if seen == self._seen:
            return
        found = fingerprint(model)
        if found != self.config.network:
            raise ValueError(
                f"head must be one of the network that samples, {found}, got one of {self.config.network}. Train one with "
                "`nag finetune direction`."
            )
        self._seen = seen

    def forward(self, features: Tensor, log_snr: Tensor, u: Tensor) -> Tensor:
        """f - f_weak, or f at an exit, of the shape of the states u `(B, C, H, W)` or `(B, L, C)`, at levels `(B,)`."""
        state = u.transpose(1, 2).unsqueeze(2) if u.ndim == 3 else u
        patch, grid = self.config.patch, [size // self.config.patch for size in state.shape[2:]]
        features = features.to(self.dtype)
        if self.layer == "middle":
            own = functional.pixel_unshuffle(state[:, : self.config.channels].to(features), patch)
            features = torch.cat([functional.interpolate(features, grid), own], dim=1)
        if features.ndim == 3 and len(grid) == 2 and features.shape[1] == grid[0] * grid[1]:
            features = functional.layer_norm(features, features.shape[2:])
            features = features.transpose(1, 2).unflatten(2, grid)
        if list(features.shape[2:]) != grid:
            raise ValueError(
                f"features must lie as the state {tuple(u.shape)} does, got {tuple(features.shape)}. A direction head cannot be "
                "had for this network."
            )
        waves = torch.pi * torch.arange(WAVES, device=features.device)
        place = torch.sigmoid(log_snr.to(features.device, torch.float32) / 4)[:, None]
        known = torch.cat([(waves * place).cos().to(features), features.mean(dim=(2, 3))], dim=1)
        shift, scale = self.level(known)[..., None, None].chunk(2, dim=1)
        value = self.last(functional.silu((1 + scale) * self.first(features) + shift))
        found: Tensor = functional.pixel_shuffle(value * self.size, patch)
        return found if u.ndim > 3 else found.squeeze(2).transpose(1, 2)
