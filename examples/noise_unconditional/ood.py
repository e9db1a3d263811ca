r"""How unusual an image is to a model, and how well that tells another kind of images apart. Higher is more unusual.

    energy          E(x) of an EqM-E model (`EqMPipeline.energy`)
    gradient_norm   |f(x)| of any EqM model: data are where its field vanishes
    surprise        -log N(m(x); mu, s^2) of a noise-level regressor

All are taken at the image itself, data fraction 1, unless a level is named for `surprise`. For that one m(x) is the log-SNR
that the regressor estimates, and mu and s^2 are mean and variance of m over reference images of the data: the *forward response*
at that level. An image that looks noisier or cleaner than images of the data do, at the same true level, is unusual. (One
statistic and its density in place of a likelihood, which is known to prefer smooth images of other data.)

    AUROC = P(score of an outside image > score of an inside one) + P(equal) / 2,

1/2 for a useless score, below 1/2 for one that prefers the other images. Its standard error is DeLong's: with the share psi_j of
inside images that an outside image j exceeds, and phi_i of outside images that exceed an inside image i,

    SE^2 = var_j(psi) / (number outside) + var_i(phi) / (number inside).

References:
    Equilibrium Matching, Wang 2025, arXiv 2510.02300 (energy as a score).
    Density of States Estimation for Out-of-Distribution Detection, Morningstar 2021, arXiv 2006.09273 (density of statistics).
    Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves, DeLong 1988, Biometrics 44.
    Do Deep Generative Models Know What They Don't Know?, Nalisnick 2019, arXiv 1810.09136 (likelihoods fail).
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from nag.network.regressor import NoiseLevelRegressor
from nag.network.table import architecture_of, unwrap
from nag.noise.measured import Measured

__all__ = ["OOD_SCORES", "auroc", "ood_scores", "other_images", "shifted_sets"]

OOD_SCORES = ("energy", "gradient_norm", "surprise")


def ood_scores(
    model: Any,
    images: Float[Tensor, "images channels height width"],
    score: str,
    *,
    reference: Float[Tensor, "references channels height width"] | None = None,
    log_snr: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = False,
) -> Float[Tensor, " images"]:
    """A score for each image, float64 on the CPU, higher for more unusual ones.

    A class-conditional model is asked without a class.

    Args:
        model: an `EqMPipeline` for "energy" and "gradient_norm", a `NoiseLevelRegressor` for "surprise".
        images: `(N, C, H, W)` in [-1, 1].
        score: one of `OOD_SCORES`.
        reference: `(M, C, H, W)`, images of the data that are not judged; "surprise" only.
        log_snr: "surprise" only: noise images and reference to this level first; None takes them as they are.
        seed: of that noise; the two get noise of their own.
        batch_size: images per call of the network.
        progress: show a bar.

    Raises:
        TypeError: if the model does not have that score.
        ValueError: if the score is unknown, there are no images, the model is implicit and has no energy, or "surprise" lacks a
            reference of at least two images or is asked for a level outside of the regressor's.
        FloatingPointError: if a score is not finite.
    """
    if score not in OOD_SCORES:
        raise ValueError(f"score must be one of {', '.join(OOD_SCORES)}, got {score!r}.")
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none.")
    if score == "surprise":
        found = _surprise(model, images, reference, log_snr, seed, batch_size, progress)
    else:
        found = _field_scores(model, images, score, batch_size, progress)
    bad = int((~found.isfinite()).sum())
    if bad:
        raise FloatingPointError(
            f"scores must be finite, got {bad} of {len(found)} that are not. Run the model in float32."
        )
    return found


def _field_scores(model: Any, images: Tensor, score: str, batch_size: int, progress: bool) -> Tensor:
    if not callable(getattr(model, score if score == "energy" else "field", None)):
        raise TypeError(
            f"model must be an EqMPipeline for the score {score!r}, got {type(model).__name__}. Load one with "
            "EqMPipeline.from_pretrained."
        )
    network = unwrap(model.unet)
    null_class = architecture_of(network).null_class(network)

    def of(part: Tensor) -> Tensor:
        labels = None if null_class is None else [null_class] * len(part)
        if score == "energy":
            return model.energy(part, labels)
        return model.field(part, labels).flatten(1).norm(dim=1)

    return _batched(of, images.to(network.dtype), batch_size, progress)


def _surprise(
    model: Any,
    images: Tensor,
    reference: Tensor | None,
    log_snr: float | None,
    seed: int,
    batch_size: int,
    progress: bool,
) -> Tensor:
    if not isinstance(model, NoiseLevelRegressor):
        raise TypeError(
            f"model must be a NoiseLevelRegressor for the score 'surprise', got {type(model).__name__}. Train one with "
            "`nag finetune regressor`."
        )
    if reference is None or len(reference) < 2:
        raise ValueError(
            f"reference must hold at least 2 images of the data, got {0 if reference is None else len(reference)}. Give "
            "some hundreds that are not judged."
        )
    low, high = model.log_snr_range
    if log_snr is not None and not low <= log_snr <= high:
        raise ValueError(
            f"log_snr must lie within the regressor's [{low:.4g}, {high:.4g}], got {log_snr}. None takes images as they are."
        )
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)

    def at_level(clean: Tensor) -> Tensor:
        if log_snr is None:
            return clean.float()
        alpha, sigma = model.process.alpha_sigma(torch.tensor(log_snr, dtype=torch.float64))
        eps = torch.randn(clean.shape, generator=generator).to(clean.device)
        return float(alpha) * clean.float() + float(sigma) * eps

    def estimate(part: Tensor) -> Tensor:
        return model.estimate(part.to(device)).log_snr

    expected = _batched(estimate, at_level(reference), batch_size, progress)
    mean, variance = expected.mean(), expected.var()
    if float(variance) == 0:
        raise ValueError(
            "reference must hold images that the regressor tells apart, got one estimate for all of them."
        )
    estimates = _batched(estimate, at_level(images), batch_size, progress)
    return 0.5 * ((estimates - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))


@torch.no_grad()
def _batched(function: Any, images: Tensor, batch_size: int, progress: bool) -> Tensor:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    parts = tqdm(images.split(batch_size), desc="Scores", unit="batch", disable=not progress, leave=False)
    return torch.cat([function(part).double().cpu() for part in parts])


def auroc(inside: Float[Tensor, " inside"], outside: Float[Tensor, " outside"]) -> Measured:
    """Area under the ROC curve of telling outside images by their higher score, with DeLong's standard error.

    Args:
        inside: `(M,)`, scores of images of the data.
        outside: `(N,)`, scores of others.

    Raises:
        ValueError: if there are fewer than two of either, or a score is not finite.

    Example:
        >>> round(auroc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])).value, 4)
        0.8333
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    for name, scores in (("inside", inside), ("outside", outside)):
        if len(scores) < 2 or not bool(scores.isfinite().all()):
            raise ValueError(
                f"{name} must hold at least 2 finite scores, got {len(scores)}, {int((~scores.isfinite()).sum())} of them not "
                "finite. Score some hundreds of images."
            )
    low, high = (scores.double().cpu().numpy() for scores in (inside, outside))
    both = np.concatenate([low, high])
    truth = np.repeat([0, 1], [len(low), len(high)])
    rank = rankdata(both)
    exceeded = (rank[len(low) :] - rankdata(high)) / len(low)  # inside scores below each outside one
    exceeding = 1 - (rank[: len(low)] - rankdata(low)) / len(high)
    error = math.sqrt(exceeded.var(ddof=1) / len(high) + exceeding.var(ddof=1) / len(low))
    return Measured(value=float(roc_auc_score(truth, both)), standard_error=error)


# Images that are not of the data


def shifted_sets(
    images: Float[Tensor, "images channels height width"], *, seed: int = 0
) -> dict[str, Float[Tensor, "images channels height width"]]:
    """Images of the data made unusual, as many as there are.

    "noise" is uniform in [-1, 1]; "inverted" is -x; "permuted" has the pixels of all images in one random order, all channels of
    a pixel together.

    Args:
        images: `(N, C, H, W)` in [-1, 1].
        seed: of noise and order.

    Example:
        >>> sets = shifted_sets(torch.zeros(2, 1, 4, 4))
        >>> list(sets)
        ['noise', 'inverted', 'permuted']
    """
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(images.shape, generator=generator) - 1
    order = torch.randperm(images.shape[2] * images.shape[3], generator=generator).to(images.device)
    return {
        "noise": noise.to(images),
        "inverted": -images,
        "permuted": images.flatten(2)[..., order].reshape(images.shape),
    }


def other_images(
    data: str | os.PathLike[str],
    like: Float[Tensor, "images channels height width"],
    *,
    num_images: int | None = None,
    split: str = "train",
) -> Float[Tensor, "others channels height width"]:
    """Images of another data set with the channels and size of some, `(N, C, H, W)` in [-1, 1].

    Args:
        data: folder or parquet file.
        like: says channels and size.
        num_images: how many, at most.
        split: in a folder of parquet files, which of them.

    Raises:
        ValueError: if `like` is not square, or the images cannot be read.
        FileNotFoundError: if there is no such folder or file.
    """
    from nag.shift.images import load_images

    if like.shape[2] != like.shape[3]:
        raise ValueError(
            f"like must hold square images, got {tuple(like.shape)}. Images are resized to squares."
        )
    table = load_images(
        data=os.fspath(data),
        split=split,
        channels=like.shape[1],
        resolution=like.shape[2],
        max_samples=num_images,
        progress=False,
    )
    return table.tensor()
