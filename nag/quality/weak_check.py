r"""Which weaker model is worth guiding by, judged before anything is sampled.

With f the network, r its target, and d = f - f_weak for a weak model, over held-out images at one level,

    w*   = E<d, r - f> / E|d|^2                          the weight that takes most off the loss |r - f - w d|^2
    gain = E<d, r - f>^2 / (E|d|^2 E|r - f|^2)           the share of the loss that it takes off

Both need no optimum: r - E[r | u] has mean 0 given the state u. Where w* is near 0 no error of f shows in this weak model, and
guidance has nothing to repair there. It is asked on forward states, alpha x_0 + sigma eps of images, and on states that the
sampler reached from them in `ahead` steps: w* large there and small on forward states means that guidance repairs drift.

This is a screen: a distance of distributions rewards more than the squared error does, so the best weight by distance is larger.

References:
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507 (weak models).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nag.corrections import At, Correction, WeakModel
from nag.files import read_json
from nag.noise.measured import Measured
from nag.seams.run import corrected
from nag.shift.calls import batch_of, silent

__all__ = ["Asked", "LevelScreen", "draw", "rank_correlation", "screen", "shares"]

FORWARD, REACHED = "forward", "reached"


@dataclass(frozen=True, kw_only=True)
class LevelScreen:
    """What one weak model could take off the loss at one level.

    Args:
        weak: name of the weak model.
        states: "forward" or "reached".
        log_snr: the level.
        weight: w*.
        gain: share of the loss.
        size: |d| / |r - f|, root mean squares.
    """

    weak: str
    states: str
    log_snr: float
    weight: Measured
    gain: Measured
    size: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked(Correction):
    """Asks weak models about images at the level of every step; samples stay as they are.

    Args:
        weak: weak models by name.
        x_0: `(B, *shape)`, images as states of the pipeline.
        eps: `(B, *shape)`, their noise.
        ahead: steps of the sampler before a reached state; 0 leaves these out.
        found: by name, kind of state and level: `(3, B)`, <d, r - f>, |d|^2 and |r - f|^2 of each image.
    """

    watches = True
    weak: Mapping[str, WeakModel]
    x_0: Tensor
    eps: Tensor
    ahead: int = 3
    found: dict[tuple[str, str, float], Tensor] = field(default_factory=dict)

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction itself."""
        if at.pure_noise:
            return value
        level, x_0 = at.nominal, self.x_0.to(at.u)
        alpha, sigma = float(at.levels.network_alpha[at.i]), float(at.levels.network_sigma[at.i])
        told = self._measured(at, FORWARD, level, alpha * x_0 + sigma * self.eps.to(x_0), x_0, alpha, sigma)
        chains = [
            (age + 1, alpha * clean + sigma * noise) for age, clean, noise in at.memory.get("chains", ())
        ]
        at.memory["chains"] = [(0, *told)] if self.ahead else []
        for age, u in chains:
            if age == self.ahead:
                self._measured(at, REACHED, level, u, x_0, alpha, sigma)
            else:
                at.memory["chains"].append((age, *at.levels.x_0_and_eps(at.ask(u=u), u, log_snr=level)))
        return value

    def _measured(
        self, at: At, states: str, level: float, u: Tensor, x_0: Tensor, alpha: float, sigma: float
    ) -> tuple[Tensor, Tensor]:
        """Asks all weak models about states of known images; the clean images and the noise that the network sees in them."""
        told = at.ask(u=u)
        target = at.levels.prediction_from(x_0, (u - alpha * x_0) / sigma, at.i).to(told)
        rest = (target - told).flatten(1).double()
        for name, one in self.weak.items():
            change = (told - one.weak(at, u=u)).flatten(1).double()
            sums = torch.stack([(change * rest).sum(1), change.square().sum(1), rest.square().sum(1)]).cpu()
            key = (name, states, level)
            self.found[key] = torch.cat([self.found[key], sums], dim=1) if key in self.found else sums
        return at.levels.x_0_and_eps(told, u, log_snr=level)


def screen(
    pipe: Any,
    images: Tensor,
    weak: Mapping[str, WeakModel],
    *,
    conditions: Mapping[str, Any] | None = None,
    num_inference_steps: int = 20,
    ahead: int = 3,
    seed: int = 0,
    resamples: int = 50,
    batch_size: int = 64,
) -> list[LevelScreen]:
    """w* and gain of weak models at every level of the pipeline's sampler.

    Args:
        pipe: any pipeline that `nag.corrected` takes.
        images: `(M, *shape)`, held-out images as states of the pipeline.
        weak: weak models by name.
        conditions: arguments of the pipeline's call: of class_labels or prompt one entry for each image; height and width.
        num_inference_steps: of the sampler, whose levels are asked about.
        ahead: steps before a reached state.
        seed: of the noise.
        resamples: of the images, behind the errors.
        batch_size: images per call.
    """
    found: dict[tuple[str, str, float], Tensor] = {}
    draws = torch.Generator().manual_seed(seed)
    eps = torch.randn(images.shape, generator=draws)
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        asked = Asked(weak=weak, x_0=images[start:stop], eps=eps[start:stop], ahead=ahead)
        arguments = {
            **(conditions or {}),
            "num_inference_steps": num_inference_steps,
            "output_type": "latent",
        }
        call = batch_of(pipe, arguments, start, stop, num_samples=len(images), seed=seed)
        with silent(pipe), corrected(pipe, asked):
            pipe(**call)
        for key, sums in asked.found.items():
            found[key] = torch.cat([found[key], sums], dim=1) if key in found else sums
    return [_summed(key, sums, resamples, draws) for key, sums in found.items()]


def _summed(key: tuple[str, str, float], sums: Tensor, resamples: int, draws: torch.Generator) -> LevelScreen:
    def of(rows: Tensor) -> tuple[float, float]:
        shared, change, rest = (float(part) for part in rows.sum(dim=1))
        return shared / change, shared**2 / (change * rest)

    count = sums.shape[1]
    drawn = [of(sums[:, torch.randint(count, (count,), generator=draws)]) for _ in range(resamples)]
    spread = torch.tensor(drawn, dtype=torch.float64).std(dim=0).tolist()
    weight, gain = (Measured(value=v, standard_error=e) for v, e in zip(of(sums), spread, strict=True))
    name, states, level = key
    size = float((sums[1].sum() / sums[2].sum()).sqrt())
    return LevelScreen(weak=name, states=states, log_snr=level, weight=weight, gain=gain, size=size)


def shares(rows: list[LevelScreen]) -> dict[str, dict[str, float]]:
    """The share of the loss that guidance by each weak model could take off, averaged over levels, by kind of state.

    Guidance has no weight below 0: a level whose w* is negative counts as nothing.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        gain = row.gain.value if row.weight.value > 0 else 0.0
        found.setdefault(row.weak, {}).setdefault(row.states, []).append(gain)
    return {name: {k: sum(v) / len(v) for k, v in kinds.items()} for name, kinds in found.items()}


def rank_correlation(found: dict[str, dict[str, float]], comparison: str | os.PathLike[str]) -> float:
    """Spearman's between the share of the loss (on reached states, if there are some) and how good the samples are.

    Args:
        found: of `shares`.
        comparison: compare.json, whose methods begin with the names of the weak models.
    """
    from scipy.stats import spearmanr

    rows = [row for row in read_json(comparison)["rows"] if row["frechet"] is not None]
    pairs = []
    for name, kinds in found.items():
        distances = [row["frechet"]["value"] for row in rows if row["method"].startswith(name)]
        if distances:
            pairs.append((kinds.get(REACHED, kinds[FORWARD]), -min(distances)))
    if len(pairs) < 3:
        raise ValueError(
            f"comparison must hold at least 3 of the weak models {', '.join(found)}, got {len(pairs)} in {comparison}."
        )
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def draw(rows: list[LevelScreen], path: str | os.PathLike[str]) -> None:
    """w* and the share of the loss against the level, one line per weak model and kind of state, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = len({row.weak for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(10, 4 + 0.12 * names), layout="constrained")
    colours = {name: f"C{k % 10}" for k, name in enumerate(dict.fromkeys(row.weak for row in rows))}
    for name, colour in colours.items():
        for states, style in ((FORWARD, "-"), (REACHED, "--")):
            own = sorted((r for r in rows if r.weak == name and r.states == states), key=lambda r: r.log_snr)
            for axis, of in zip(axes, ("weight", "gain"), strict=True):
                found = [getattr(row, of) for row in own]
                axis.errorbar(
                    [row.log_snr for row in own],
                    [one.value for one in found],
                    [one.standard_error for one in found],
                    ls=style,
                    color=colour,
                    marker="o",
                    ms=3,
                    label=name if states == FORWARD and axis is axes[0] else None,
                )
    axes[0].set(xlabel="log-SNR (right: cleaner)", ylabel="best weight w* by squared error")
    axes[1].set(xlabel="log-SNR (right: cleaner)", ylabel="share of the loss it takes off", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].axhline(0, color="k", lw=0.5)
    figure.legend(
        loc="outside lower center", ncols=2, fontsize=8, title="full: forward states; dashed: states reached"
    )
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
