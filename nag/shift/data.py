"""Which images a command reads, and how: one list of options for training and measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nag.shift.images import ImageTable

__all__ = ["DataOptions"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images, which every command reads alike."""

    data: str
    """Images: a folder of images or parquet files, one parquet file, or the name of a dataset on the Hub."""
    dataset_config_name: str | None = None
    """Configuration of the Hub dataset."""
    split: str | None = None
    """Split of the dataset. None: train; for measurements the first of heldout, validation and test, if there is one."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str = "label"
    """Column of the class labels, numbers or names; used by class-conditional models."""
    caption_column: str | None = None
    """Column of the captions. None: the first of text, caption and prompt that there is."""
    skip_unreadable_images: bool = False
    """Leave unreadable images out instead of refusing the data."""
    resolution: int | None = None
    """Size of images and samples in pixels. None: the model's sample size."""
    center_crop: bool = True
    """Crop the middle square before resizing, else squash."""

    def images(
        self,
        *,
        channels: int,
        resolution: int,
        labels: bool,
        max_samples: int | None = None,
        held_out: bool = False,
    ) -> ImageTable:
        """The images, as `nag.shift.images.load_images` opens and checks them."""
        from nag.shift.images import load_images

        return load_images(
            data=self.data,
            dataset_config_name=self.dataset_config_name,
            split=self.split,
            held_out=held_out,
            channels=channels,
            resolution=resolution,
            image_column=self.image_column,
            label_column=self.label_column if labels else None,
            caption_column=self.caption_column,
            max_samples=max_samples,
            center_crop=self.center_crop,
            skip_unreadable_images=self.skip_unreadable_images,
        )
