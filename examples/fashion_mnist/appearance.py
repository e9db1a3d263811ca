"""How large a noise shift do images show that only look a little different? Measured on the embedded model's regressors.

    python examples/fashion_mnist/appearance.py

Held-out images with 5 % more or less contrast (about the mean grey), or blurred by a Gaussian, are corrupted to the levels of
DDIM with 20 steps, with the same noise as the images themselves. Their level is exact, so whatever shift is read off is made
by their looks. Means over the steps with log-SNR from -2.5 up, errors over images (pairs).

Expected from `judge`: contrast x 1.05 +0.0006 ± 0.0001, contrast / 1.05 +0.0095 ± 0.0002, blur of 0.3 pixels -0.0006 ± 0.0000,
blur of 0.5 pixels -0.0087 ± 0.0005.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent


def main(
    num_images: Annotated[int, arg(help="Held-out images.")] = 500,
    seed: Annotated[int, arg(help="Of the noise.")] = 0,
    regressors: Annotated[tuple[str, ...], arg(aliases=["--regressor"], help="Of full, judge.")] = (
        "judge",
        "full",
    ),
) -> None:
    """Measure the shift that another contrast or a slight blur makes."""
    import torch
    from diffusers import DDIMScheduler
    from torch.nn.functional import conv2d, pad

    from nag.network.regressor import NoiseLevelRegressor
    from nag.noise.read import read_levels
    from nag.shift import forward_reference
    from nag.shift.images import load_images
    from nag.shift.response import ResponseCurve

    loaded = load_images(data=HERE / "data" / "test.parquet", channels=1, resolution=16, label_column="label")
    images = loaded.tensor()[:num_images]

    def blurred(width: float) -> torch.Tensor:
        taps = torch.tensor([math.exp(-((k / width) ** 2) / 2) for k in (-2, -1, 0, 1, 2)])
        kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
        return conv2d(pad(images, (2, 2, 2, 2), mode="replicate"), kernel)

    looks = {
        "contrast x 1.05": ((images - images.mean()) * 1.05 + images.mean()).clamp(-1, 1),
        "contrast / 1.05": (images - images.mean()) / 1.05 + images.mean(),
        "blur of 0.3 pixels": blurred(0.3),
        "blur of 0.5 pixels": blurred(0.5),
    }
    scheduler = DDIMScheduler.from_pretrained(
        HERE / "model", subfolder="scheduler", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    levels = [level for level in read_levels(scheduler).log_snr.tolist() if level >= -2.5]
    for name in regressors:
        regressor = NoiseLevelRegressor.from_pretrained(HERE / "regressors" / name).float().eval()
        options = {"seed": seed, "batch_size": 250, "progress": False}
        plain = forward_reference(images, regressor, levels, **options)
        slope = ResponseCurve(plain).slope(plain.log_snr)
        rows = [plain.row(level) for level in levels]
        for look, changed in looks.items():
            other = forward_reference(changed, regressor, levels, **options)
            apart = -0.5 * ((other.estimate - plain.estimate) / slope[:, None])[rows].mean(0)
            error = apart.std(ddof=1) / math.sqrt(len(apart))
            print(f"{name}, {look}: {apart.mean():+.4f} ± {error:.4f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
