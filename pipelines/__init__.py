"""One diffusers pipeline class per file, for what diffusers lacks; there is no guidance in them."""

from nag.pipelines.equilibrium_matching import EqMPipeline
from nag.pipelines.noise_unconditional import NoiseUnconditionalPipeline
from nag.pipelines.unet2d import UNet2DPipeline

__all__ = ["EqMPipeline", "NoiseUnconditionalPipeline", "UNet2DPipeline"]
