"""One diffusers pipeline class per file, and the way in that chooses among them: `NAGPipeline.from_pretrained`."""

from nag.pipelines.auto import NAGPipeline
from nag.pipelines.equilibrium_matching import EqMPipeline
from nag.pipelines.noise_unconditional import NoiseUnconditionalPipeline
from nag.pipelines.unet2d import NAGUNet2DPipeline

__all__ = ["EqMPipeline", "NAGPipeline", "NAGUNet2DPipeline", "NoiseUnconditionalPipeline"]
