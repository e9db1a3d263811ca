"""The two forms of the CIFAR-10 example: what a GPU does in 25 minutes, and the same in small on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SCALES", "Scale"]

FAST = "--compile --channels_last --allow_tf32 --fused_optimizer --draws batch --logging_steps 50"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of one form of the example; what is a text are further flags of the stage's command.

    Attributes:
        size: Height and width of the images.
        train_images: How many training images; None all.
        heldout_images: Images that calibrate the regressor and the schedule.
        unet: Configuration of the UNet2DModel, less what follows from the data.
        train_steps: Steps of the training, split evenly over the stages train-1, ...
        parts: How many stages the training has.
        dropout: Share of the training that the fine-tuning with level dropout lasts.
        classifier_epochs: Epochs of the feature network that is trained here; None: --features must name one.
        compare_methods: Methods of the stages compare-1, ...
    """

    size: int
    train_images: int | None
    heldout_images: int
    unet: dict[str, Any]
    train_steps: int
    parts: int = 2
    dropout: float = 0.01
    classifier_epochs: int | None
    train: str
    tune: str
    regressor: str
    calibrate: str
    compare: str
    compare_methods: tuple[tuple[str, ...], ...]


SCALES = {
    "gpu": Scale(
        size=32,
        train_images=None,
        heldout_images=1000,
        unet={
            "layers_per_block": 2,
            "block_out_channels": [128, 128, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 64,
            "norm_num_groups": 32,
        },
        train_steps=10_000,
        classifier_epochs=None,
        train="--train_batch_size 256 --learning_rate 4e-4 --lr_warmup_steps 500 --ema_max_decay 0.9995 "
        f"--checkpointing_steps 1000 --mixed_precision bf16 {FAST}",
        tune="--train_batch_size 256 --learning_rate 1e-4 --lr_warmup_steps 10 --mixed_precision bf16 "
        "--allow_tf32 --fused_optimizer --draws batch",
        regressor="--max_train_steps 1500 --train_batch_size 256 --learning_rate 1e-3 --mixed_precision bf16 "
        "--allow_tf32 --fused_optimizer --draws batch --logging_steps 50",
        calibrate="--steps 20 --num_samples 1024 --batch_size 512 --num_images 1000",
        compare="--evaluations 20 --num_samples 50000 --seeds 101 --tune_samples 2500 --batch_size 1000 --resamples 10 "
        "--feature_size 299 --feature_channels 3 --mixed_precision bf16",
        compare_methods=(
            ("nag:scale=0.5|1|2",),
            ("calibrated", "epsilon_scaling:scale=1.002|1.005|1.01"),
        ),
    ),
    "cpu": Scale(
        size=16,
        train_images=10_000,
        heldout_images=500,
        unet={
            "layers_per_block": 1,
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            "attention_head_dim": 32,
            "norm_num_groups": 8,
        },
        train_steps=600,
        dropout=0.1,
        classifier_epochs=4,
        train="--train_batch_size 64 --learning_rate 1e-3 --checkpointing_steps 100 --draws batch",
        tune="--train_batch_size 64 --learning_rate 4e-4 --lr_warmup_steps 10",
        regressor="--max_train_steps 300 --train_batch_size 64 --learning_rate 1e-3",
        calibrate="--steps 10 --num_samples 128 --batch_size 128 --num_images 200",
        compare="--evaluations 10 --num_samples 500 --seeds 101 --tune_samples 200 --batch_size 100 --num_images 300 "
        "--calibration_samples 128 --shift_samples 128",
        compare_methods=(("nag:scale=0.5|1",), ("calibrated",)),
    ),
}
