"""One diffusers pipeline class per file, and the way in that chooses among them: `NAGPipeline.from_pretrained`."""

from nag.pipelines.auto import NAGPipeline
from nag.pipelines.unet2d import NAGUNet2DPipeline

__all__ = ["NAGPipeline", "NAGUNet2DPipeline"]
