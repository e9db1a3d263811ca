"""The measurements behind `BlindCheck`, on a network and the images it was not trained on.

Per level, on the same states: what the network says when it is told its level and when it is not, and what the exact optima of
the data say. And walks from the same noise, told and blind, in the first-order form of the sampler on its own levels,

    x' = kappa x + eta f + zeta noise        (`nag.blind.objectives.affine_update`; DDIM, DDPM, Euler),

in the coordinates of the network's input, without clipping, with the accumulated error bound of `nag.theory.bound`; and the
pipeline's own samples, with its scheduler's clipping and all.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.blind.objectives import affine_update, posterior_std
from nag.corrections import Blind
from nag.network.null import null_level
from nag.network.regressor import NoiseLevelRegressor
from nag.network.table import split_output, unwrap
from nag.noise.discrete import DiscreteVP
from nag.noise.levels import SchedulerLevels
from nag.noise.measured import Measured
from nag.noise.read import read_levels
from nag.noise.target import Target
from nag.quality.blind_check import LevelRow, Walk
from nag.quality.blind_exact import Knowledge
from nag.quality.distances import frechet_distance
from nag.quality.feature_network import extract_features
from nag.quality.resampling import bootstrap, bootstrap_difference
from nag.seams.run import Diverged
from nag.shift.calls import batch_of, silent
from nag.theory.bound import accumulated_bound
from nag.theory.levelwise import fisher_information, posterior_width

__all__ = ["Ends", "Network", "level_rows", "own_walk", "walk"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A denoiser that can be asked with its level and without, in the coordinates of its input."""

    unet: nn.Module  # a network of `nag.network.table`, in evaluation mode
    levels: SchedulerLevels  # of its scheduler

    @torch.no_grad()
    def ask(
        self, x: Float[Tensor, "batch *shape"], label: Tensor | float, classes: Tensor | None, *, blind: bool
    ) -> Float[Tensor, "batch *shape"]:
        """What it predicts, of `levels.prediction`, in x's precision.

        Args:
            x: `(B, *shape)`, states.
            label: `()`, what it is told.
            classes: `(B,)`, or None.
            blind: hide the level.
        """
        network: Any = unwrap(self.unet)
        told = torch.as_tensor(label, dtype=torch.float32, device=network.device)
        classes = None if classes is None else classes.to(network.device)
        mask = torch.full((len(x),), blind, device=network.device)
        with null_level(self.unet, mask):
            output = self.unet(x.to(network.device, network.dtype), told, class_labels=classes).sample
        value = split_output(output, x.shape[1])[0].to(x)
        return value / self.levels.prediction_scale


def level_rows(
    network: Network,
    known: Knowledge,
    x_0: Float[Tensor, "states *shape"],
    classes: Int[Tensor, " states"] | None,
    eps: Float[Tensor, "states *shape"],
    t: Float[Tensor, " levels"],
    *,
    regressor: NoiseLevelRegressor | None = None,
    progress: bool = False,
) -> list[LevelRow]:
    """What the data know about each level, and how far the null branch is from the conditional one.

    Args:
        network: the denoiser.
        known: exact posteriors in the network's process.
        x_0: `(B, *shape)`, images that they know, float64.
        classes: `(B,)`, their classes, or None.
        eps: `(B, *shape)`, noise, the same for all levels.
        t: `(L,)`, levels, noisy end first.
        regressor: whose own width is to stand beside.
        progress: show a bar.
    """
    process, target = known.process, network.levels.prediction
    size, squared = x_0[0].numel(), x_0.flatten(1).square().sum(1)
    rows = []
    for level in tqdm(t, desc="Levels", unit="level", disable=not progress):
        log_snr = process.log_snr(level)
        x = process.corrupt(x_0, level, eps)
        exact = known.at(x, classes, level, (target,))
        label = network.levels.timestep_of(log_snr)
        label = label.round() if isinstance(process, DiscreteVP) else label
        told = network.ask(x, label, classes, blind=False).flatten(1)
        apart = network.ask(x, label, classes, blind=True).flatten(1) - told
        wanted = exact.difference[target]
        null, best = apart.square().sum(1) / size, wanted.square().sum(1) / size
        information = fisher_information(process, level, size, squared)
        width = None
        if regressor is not None:
            device = next(regressor.parameters()).device
            with torch.no_grad():
                shown = None if classes is None else classes.to(device)
                width = float(regressor.estimate(x.to(device, torch.float32), shown).std.mean())
        rows.append(
            LevelRow(
                t=float(level),
                log_snr=float(log_snr),
                width=float(exact.variance_log_snr.mean().sqrt()),
                width_law=float(posterior_width(process, level, size, squared).square().mean().sqrt()),
                width_regressor=width,
                variance=Measured.of(exact.variance_t),
                variance_law=float((1 / information).mean()),
                variance_law_noise=float(1 / fisher_information(process, level, size)),
                square=float(told.square().mean()),
                null_error=Measured.of(null),
                exact_error=Measured.of(best),
                explained=_share(best, null),
                alignment=Measured.of(nn.functional.cosine_similarity(apart, wanted, dim=1, eps=1e-12)),
            )
        )
    return rows


def _share(part: Tensor, whole: Tensor) -> Measured:
    """mean(part) / mean(whole), at most 1, with the standard error of a ratio of paired means."""
    total = float(whole.mean())
    if total == 0:
        return Measured(value=1.0, standard_error=0.0)
    ratio = float(part.mean()) / total
    error = float((part - ratio * whole).std()) / math.sqrt(len(part)) / total
    return Measured(value=min(1.0, ratio), standard_error=error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ends:
    """Where the two walks ended."""

    told: Float[Tensor, "samples *shape"]  # `(B, *shape)`, samples of the network that was told its level
    blind: Float[Tensor, "samples *shape"]  # `(B, *shape)`, those of the network that was not

    def sheet(self, name: str, count: int = 16) -> UInt8[np.ndarray, "kept height width channels"]:
        """The first samples as pictures."""
        images = (127.5 * (getattr(self, name)[:count] + 1)).clamp(0, 255).round()
        return images.to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()


def _steps(levels: SchedulerLevels, stochasticity: float) -> tuple[Tensor, ...]:
    """Rows of the sampler's levels that lead on, and kappa, eta, zeta of the steps between them and to the data."""
    log_snr = levels.log_snr
    before = torch.cat([torch.full_like(log_snr[:1], -torch.inf), log_snr.cummax(0).values[:-1]])
    rows = (log_snr > before).nonzero().flatten()
    alpha, sigma = levels.network_alpha[rows], levels.network_sigma[rows]
    trained = levels.training.target(levels.prediction, levels.training.t_from_log_snr(log_snr[rows]))
    target = Target(alpha, sigma, trained.c, trained.d)
    alpha_next = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
    sigma_next = torch.cat([sigma[1:], torch.zeros_like(sigma[:1])])
    noise = posterior_std(alpha, sigma, alpha_next, sigma_next, stochasticity)
    return rows, *affine_update(target, alpha_next, sigma_next, noise)


def walk(
    network: Network,
    noise: Float[Tensor, "samples *shape"],
    classes: Int[Tensor, " samples"] | None,
    *,
    stochasticity: float,
    seed: int,
    init_noise_sigma: float,
    batch_size: int = 64,
    features: Any = None,
    reference: Float[Tensor, "images features"] | None = None,
    resamples: int = 50,
    progress: bool = False,
) -> tuple[Walk, Ends | None]:
    """Samples told the level and blind from the same noise, the bound on their distance, and their quality.

    Args:
        network: the denoiser and its sampler's levels.
        noise: `(B, *shape)`, standard normal.
        classes: `(B,)`, dealt out in fixed numbers, or None.
        stochasticity: 0 for the probability flow, 1 for ancestral noise.
        seed: of the noise of the steps.
        init_noise_sigma: standard deviation of the first state, in the scheduler's coordinates.
        batch_size: samples that walk together.
        features: a feature network on the network's device, or None.
        reference: `(M, F)`, features of held-out images.
        resamples: bootstrap resamples behind the errors.
        progress: show bars.

    Returns:
        The numbers, and the samples; None for these if the states diverged.
    """
    levels, generator = network.levels, torch.Generator().manual_seed(seed)
    rows, kappa, eta, zeta = _steps(levels, stochasticity)
    log_snr = tuple(levels.log_snr[rows].tolist())
    start = init_noise_sigma * float(levels.input_scale[0]) * noise.double()
    found = []
    for first in range(0, len(noise), batch_size):
        part = slice(first, first + batch_size)
        shown = None if classes is None else classes[part]

        def told(x: Tensor, i: int, shown: Tensor | None = shown) -> Tensor:
            return network.ask(x, levels.timesteps[rows[i]], shown, blind=False)

        def blind(x: Tensor, shown: Tensor | None = shown) -> Tensor:
            return network.ask(x, 0.0, shown, blind=True)

        try:
            found.append(
                accumulated_bound(
                    start[part], kappa, eta, zeta, told, blind, generator=generator, progress=progress
                )
            )
        except FloatingPointError:
            return Walk(stochasticity=stochasticity, log_snr=log_snr, diverged=True), None
    ends = Ends(told=torch.cat([one.told for one in found]), blind=torch.cat([one.blind for one in found]))
    distance = torch.cat([one.distance for one in found])
    numbers: dict[str, Any] = {
        name: tuple(torch.cat([getattr(one, name) for one in found]).median(0).values.tolist())
        for name in ("amplification", "injection", "lipschitz", "distances")
    }
    numbers |= _quality(
        ends, classes, features, reference, resamples=resamples, seed=seed, batch_size=batch_size
    )
    return Walk(
        stochasticity=stochasticity,
        log_snr=log_snr,
        bound=float(torch.cat([one.bound for one in found]).median()),
        distance=float(distance.median()),
        relative_distance=Measured.of(distance / ends.told.flatten(1).norm(dim=1)),
        **numbers,
    ), ends


def own_walk(
    pipe: Any,
    classes: Int[Tensor, " samples"] | None,
    *,
    steps: int,
    num_samples: int,
    seed: int,
    batch_size: int = 64,
    features: Any = None,
    reference: Float[Tensor, "images features"] | None = None,
    resamples: int = 50,
) -> tuple[Walk, Ends | None]:
    """Samples of the pipeline itself, told the level and blind from the same noise, and their quality; arguments as of `walk`.

    Args:
        pipe: attached, with the scheduler that samples, its clipping and spacing.
        steps: sampling steps.
        num_samples: how many samples.
    """
    given = {"class_labels": classes, "num_inference_steps": steps, "output_type": "latent"}
    found: dict[str, list[Tensor]] = {"told": [], "blind": []}
    levels = None
    for start in range(0, num_samples, batch_size):
        for name, acting in (("told", ()), ("blind", (Blind(),))):
            stop = min(start + batch_size, num_samples)
            call = batch_of(pipe, given, start, stop, num_samples=num_samples, seed=seed)
            with silent(pipe), suppress(Diverged):
                found[name].append(pipe(corrections=acting, **call).images.double().cpu())
        levels = levels or read_levels(pipe.scheduler)
    assert levels is not None
    name = type(pipe.scheduler).__name__
    described: dict[str, Any] = {
        "stochasticity": 0.0,
        "log_snr": tuple(levels.log_snr.tolist()),
        "sampler": name,
    }
    parts = [*found["told"], *found["blind"]]
    if len(found["told"]) != len(found["blind"]) or not all(bool(part.isfinite().all()) for part in parts):
        return Walk(diverged=True, **described), None
    ends = Ends(told=torch.cat(found["told"]), blind=torch.cat(found["blind"]))
    distance = (ends.blind - ends.told).flatten(1).norm(dim=1)
    return Walk(
        distance=float(distance.median()),
        relative_distance=Measured.of(distance / ends.told.flatten(1).norm(dim=1)),
        **described,
        **_quality(ends, classes, features, reference, resamples=resamples, seed=seed, batch_size=batch_size),
    ), ends


def _quality(
    ends: Ends,
    classes: Tensor | None,
    features: Any,
    reference: Tensor | None,
    *,
    resamples: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Frechet distances of both samples and their difference; nothing without a feature network."""
    if features is None or reference is None:
        return {}
    device = next((p.device for p in getattr(features, "parameters", lambda: iter(()))()), "cpu")
    pictures = (((x.float() + 1) * 127.5).clamp(0, 255).round() / 127.5 - 1 for x in (ends.told, ends.blind))
    own, other = (extract_features(features, part, batch_size=batch_size, device=device) for part in pictures)
    draws = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"resamples": resamples, "generator": draws, "class_labels": classes}
    return {
        "frechet_told": bootstrap(frechet_distance, own, reference, **options),
        "frechet_blind": bootstrap(frechet_distance, other, reference, **options),
        "frechet_difference": bootstrap_difference(frechet_distance, own, other, reference, **options),
    }
