"""The noise-level regressor: p(log_snr | x_t) as a Gaussian, read from a denoiser that does not see its level.

A backbone is run at the null level (`nag.network.null`), for a backbone that sees t would let the head read it from there
instead of from x_t. A head turns its features into mean m and variance s^2 of the log-SNR, trained by the Gaussian
likelihood over the training prior of levels (uniform over the timesteps). Its mean is therefore the posterior mean: at
a fixed level it is drawn towards the prior wherever x_t leaves the level open.

What is fitted after training (`fit`), on held-out images, is a function of the predicted mean: m gets the mean residual of the
levels that were predicted so, and s the factor at which 90 % of them fall inside the 90 % interval.

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, section 5.
    What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, Kendall 2017, arXiv 1703.04977, eq. 5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from nag.network.heads import HEADS
from nag.network.null import null_level
from nag.network.swap import Instrument, instrumented
from nag.network.table import architecture_of, unwrap
from nag.noise.checks import require
from nag.noise.discrete import DiscreteVP
from nag.noise.process import Flow, GaussianProcess
from nag.noise.read import read_settings, read_training

__all__ = ["NoiseEstimate", "NoiseLevelRegressor", "fingerprint", "tapped", "whole_fingerprint"]

KINDS = ("frozen", "full", "encoder")
KNOTS = 16
_BETAS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    "rescale_betas_zero_snr",
)
NORMAL_90 = 1.6448536269514722


def fingerprint(model: nn.Module) -> str:
    """A hash of a network's weights, the same in half and full precision."""
    digest = hashlib.sha256()
    for name, value in sorted(unwrap(model).state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def whole_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a network, and of the null adapter beside it, or beside the network that a `frozen` head hears."""
    (heard,) = getattr(model, "_borrowed", ()) or (model,)
    adapter = vars(unwrap(heard)).get("null_adapter")
    return "+".join(fingerprint(part) for part in (model, adapter) if part is not None)


@dataclass(frozen=True)
class NoiseEstimate:
    """The posterior of the log-SNR of some states.

    Args:
        log_snr: `(B,)`, mean.
        variance: `(B,)`.
    """

    log_snr: Tensor
    variance: Tensor

    @property
    def std(self) -> Tensor:
        """`(B,)`, standard deviation of the log-SNR."""
        return self.variance.sqrt()

    def log_density(self, log_snr: Tensor) -> Tensor:
        """Log density per unit of log-SNR at `()` or `(B,)` levels, `(B,)`."""
        return -0.5 * (
            (log_snr - self.log_snr) ** 2 / self.variance + self.variance.log() + math.log(2 * math.pi)
        )


class Tap(Instrument):
    """Keeps the first input of a module, or its output, for everyone who listens."""

    attributes = ("tap_kept", "tap_output")
    tap_kept: tuple[list[Tensor], ...]
    tap_output: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(*args, **kwargs)  # type: ignore[misc]
        for kept in self.tap_kept:
            kept.append(output if self.tap_output else args[0])
        return output


@contextmanager
def tapped(network: nn.Module, *, middle: bool = False) -> Iterator[list[Tensor]]:
    """Within the block, each forward pass of the network appends its last features, or its middle ones, to the list."""
    architecture, kept = architecture_of(network), list[Tensor]()
    module = unwrap(network).get_submodule(str(architecture.middle if middle else architecture.features))
    listening = (*getattr(module, "tap_kept", ()), kept)
    with instrumented(module, Tap, tap_kept=listening, tap_output=middle):
        yield kept


class NoiseLevelRegressor(ModelMixin, ConfigMixin):
    """Estimates the noise level of states in network-input coordinates (what `scheduler.scale_model_input` gives).

    Three kinds: `frozen` is a head alone, on the null pass of the very UNet that samples (`attach_backbone`); `full` owns
    a fine-tuned copy of the UNet; `encoder` owns its first half, which halves the cost and that of the gradient.
    Use `from_unet` to make one.

    Args:
        kind: "frozen", "full" or "encoder".
        backbone_class: class name of the network.
        backbone_config: its configuration, for `full` and `encoder`.
        backbone_fingerprint: hash of the network a `frozen` head belongs to.
        in_channels: channels of the state.
        features: "last" (before the last layer) or "middle".
        feature_channels: channels there.
        head_type: "statistics" or "attention".
        hidden_size: width of the head.
        process: "DiscreteVP" or "Flow", the process of the states.
        alphas: configuration of the DDPM scheduler that makes the process, for "DiscreteVP".
        uses_class: whether the backbone is shown class labels; else it always sees the null class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        kind: str = "frozen",
        backbone_class: str = "",
        backbone_config: dict[str, Any] | None = None,
        backbone_fingerprint: str | None = None,
        in_channels: int = 3,
        features: str = "last",
        feature_channels: int = 128,
        head_type: str = "statistics",
        hidden_size: int = 128,
        process: str = "DiscreteVP",
        alphas: dict[str, Any] | None = None,
        uses_class: bool = False,
    ) -> None:
        super().__init__()
        for name, value, valid in (
            ("kind", kind, KINDS),
            ("head_type", head_type, HEADS),
            ("process", process, ("DiscreteVP", "Flow")),
        ):
            require((name, value, f"be one of {', '.join(valid)}", value in valid))
        self.process = _process(process, alphas)
        ends = self.process.log_snr(
            torch.tensor([self.process.t_max, self.process.t_min], dtype=torch.float64)
        )
        self.log_snr_range: tuple[float, float] = (ends[0].item(), ends[1].item())
        self.backbone: nn.Module | None = None
        if kind != "frozen":
            import diffusers

            cls = getattr(diffusers, backbone_class)
            self.backbone = cls.from_config(backbone_config)
            if kind == "encoder":
                architecture_of(self.backbone).trim(self.backbone)  # type: ignore[misc]
        self.head = HEADS[head_type](feature_channels, hidden_size)
        knots = torch.linspace(*self.log_snr_range, KNOTS)
        self.register_buffer("calibration_knots", knots)
        self.register_buffer("calibration_bias", torch.zeros(KNOTS))
        self.register_buffer("calibration_log_scale", torch.zeros(KNOTS))
        self._borrowed: tuple[nn.Module, ...] = ()

    @classmethod
    def from_unet(
        cls,
        unet: nn.Module,
        scheduler: Any,
        *,
        kind: str = "frozen",
        features: str = "last",
        head_type: str = "statistics",
        hidden_size: int = 128,
    ) -> NoiseLevelRegressor:
        """An untrained regressor for a network: borrows it (`frozen`) or starts from a copy of its weights."""
        model, architecture = unwrap(unet), architecture_of(unet)
        process = read_training(scheduler)
        if kind == "encoder":
            features = "middle"
        layer = {"last": architecture.features, "middle": architecture.middle}.get(features)
        must = f"be a layer of {architecture.name}, last or middle, with a row for each sample"
        require(("features", features, must, layer is not None))
        regressor = cls(
            kind=kind,
            backbone_class=architecture.name,
            backbone_config=None
            if kind == "frozen"
            else {k: v for k, v in model.config.items() if not k.startswith("_")},
            backbone_fingerprint=fingerprint(model) if kind == "frozen" else None,
            in_channels=model.config.get("in_channels") or 0,
            features=features,
            feature_channels=(architecture.channels if features == "last" else architecture.middle_channels)(
                model
            ),
            head_type=head_type,
            hidden_size=hidden_size,
            process=type(process).__name__,
            alphas={k: v for k, v in read_settings(scheduler).items() if k in _BETAS}
            if isinstance(process, DiscreteVP)
            else None,
            uses_class=kind == "frozen" and architecture.null_class(model) is not None,
        )
        if kind == "frozen":
            regressor.attach_backbone(model)
        else:
            assert regressor.backbone is not None
            own = regressor.backbone.state_dict()
            regressor.backbone.load_state_dict({k: v for k, v in model.state_dict().items() if k in own})
        return regressor

    def attach_backbone(self, unet: nn.Module) -> None:
        """Gives a `frozen` head the network it belongs to; the network is used, never changed or saved."""
        model = unwrap(unet)
        found = fingerprint(model)
        if found != self.config.backbone_fingerprint:
            raise ValueError(
                f"unet must be the one that the head was trained on ({self.config.backbone_fingerprint}), got {found}. "
                "Train a regressor for it with `nag finetune regressor`."
            )
        self._borrowed = (model,)

    @property
    def network(self) -> nn.Module:
        """The backbone, own or borrowed."""
        if self.backbone is not None:
            return self.backbone
        if not self._borrowed:
            raise RuntimeError(
                "regressor must be given its UNet first, got a frozen head alone. Call attach_backbone(unet)."
            )
        return self._borrowed[0]

    @contextmanager
    def tapped(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """Within the block, each forward pass of the network appends its features `(B, C, H, W)` to the list.

        With a `frozen` head, guidance takes the null prediction and the estimate from one pass this way.
        """
        with tapped(network, middle=self.config.features == "middle") as kept:
            yield kept

    def estimate_from_features(self, features: Tensor) -> NoiseEstimate:
        """The posterior from features of a null-level pass, `(B, C, H, W)` or `(B, L, C)`."""
        if features.ndim == 3:
            features = features.transpose(1, 2)[..., None]
        dtype = next(self.head.parameters()).dtype
        with torch.autocast(features.device.type, enabled=False):
            raw = self.head(features.to(dtype)).float()
        low, high = self.log_snr_range
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        mean = middle + half * raw[:, 0]
        log_variance = 2 * math.log(half) + raw[:, 1].clamp(-14, 3)
        bias, scale = self._fitted(mean)
        return NoiseEstimate(log_snr=mean + bias, variance=(log_variance + 2 * scale).exp())

    def _fitted(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Bias and log scale at a raw mean, linear between the knots."""
        knots = self.calibration_knots.float()
        low = (torch.searchsorted(knots, mean.detach().contiguous()) - 1).clamp(0, KNOTS - 2)
        share = ((mean - knots[low]) / (knots[low + 1] - knots[low])).clamp(0, 1)
        bias, scale = self.calibration_bias.float(), self.calibration_log_scale.float()
        return (torch.lerp(bias[low], bias[low + 1], share), torch.lerp(scale[low], scale[low + 1], share))

    def estimate(self, x: Tensor, class_labels: Tensor | None = None, **conditioning: Any) -> NoiseEstimate:
        """The posterior of the log-SNR of states in network-input coordinates, differentiable in x.

        Labels None stand for the null class; a head that was trained without labels is never shown any.
        """
        network = self.network
        conditioning |= self.class_conditioning(len(x), class_labels, x.device)
        dtype = next(network.parameters()).dtype
        timestep = torch.zeros(len(x), device=x.device)
        with null_level(network), self.tapped(network) as kept:
            network(x.to(dtype), **{architecture_of(network).timestep: timestep}, **conditioning)
        return self.estimate_from_features(kept[-1])

    def class_conditioning(
        self, batch: int, class_labels: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The keyword that shows the network a class, or the null class, or nothing."""
        null_class = architecture_of(self.network).null_class(unwrap(self.network))
        if null_class is None:
            return {}
        if class_labels is None or not self.config.uses_class:
            class_labels = torch.full((batch,), null_class, device=device)
        return {"class_labels": class_labels}

    def forward(self, x: Tensor, class_labels: Tensor | None = None, **conditioning: Any) -> NoiseEstimate:
        """As `estimate`."""
        return self.estimate(x, class_labels, **conditioning)

    def log_posterior(
        self, x: Tensor, log_snr: Tensor, class_labels: Tensor | None = None, **conditioning: Any
    ) -> Tensor:
        """log p(log_snr | x), a density per unit of log-SNR, `(B,)`, differentiable in x."""
        return self.estimate(x, class_labels, **conditioning).log_density(log_snr)

    def posterior_moment(self, state: Tensor | NoiseEstimate, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E[function(log_snr) | x] by Gauss-Hermite quadrature with 16 nodes, levels clamped to the process.

        Args:
            state: `(B, C, H, W)` states, or an estimate.
            function: acts elementwise on log-SNR, for example `lambda l: torch.rsqrt(torch.sigmoid(-l))` for E[1/sigma | x].

        Returns:
            `(B,)`.
        """
        estimate = state if isinstance(state, NoiseEstimate) else self.estimate(state)
        rule = np.polynomial.hermite_e.hermegauss(16)
        nodes, weights = (torch.as_tensor(v, device=estimate.log_snr.device).float() for v in rule)
        levels = estimate.log_snr[:, None] + estimate.std[:, None] * nodes
        return (function(levels.clamp(*self.log_snr_range)) * weights).sum(dim=1) / weights.sum()

    def fit(self, mean: Tensor, std: Tensor, truth: Tensor) -> None:
        """Fits bias and spread to held-out predictions of the raw head; levels drawn from the training prior.

        Args:
            mean: `(N,)`, predicted log-SNR.
            std: `(N,)`, predicted standard deviation.
            truth: `(N,)`, the true log-SNR.
        """
        if len(mean) < 20 * KNOTS:
            raise ValueError(
                f"mean must have at least {20 * KNOTS} states, got {len(mean)}. Give more held-out images."
            )
        mean, std, truth = (v.double().cpu() for v in (mean, std, truth))
        order = mean.argsort()
        knots, bias, log_scale = [], [], []
        for part in order.tensor_split(KNOTS):
            residual = truth[part] - mean[part]
            knots.append(mean[part].median())
            bias.append(residual.mean())
            score = (residual - residual.mean()).abs() / std[part]
            log_scale.append((score.quantile(0.9) / NORMAL_90).log())
        spread = torch.stack(knots)
        for k in range(1, KNOTS):
            spread[k] = torch.maximum(spread[k], spread[k - 1] + 1e-4)
        self.calibration_knots.copy_(spread)
        self.calibration_bias.copy_(torch.stack(bias))
        self.calibration_log_scale.copy_(torch.stack(log_scale))


def _process(name: str, alphas: dict[str, Any] | None) -> GaussianProcess:
    if name == "Flow":
        return Flow()
    from diffusers import DDPMScheduler

    return DiscreteVP.from_alphas_cumprod(DDPMScheduler(**(alphas or {})).alphas_cumprod)
