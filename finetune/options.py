"""Options that all trainings share: one list of fields serves the command, the checkpoint and the model card.

The text below a field is its help, its class the group; flags bear the names of diffusers' own training scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from nag.shift.data import DataOptions

__all__ = ["TrainingOptions"]


@dataclass(frozen=True, kw_only=True)
class ImageOptions(DataOptions):
    """How images are learned from."""

    max_train_samples: int | None = None
    """Use only the first samples."""
    random_flip: bool = False
    """Mirror half of the images."""
    cache_dir: Path | None = None
    """Where latents and the rows of captions are kept, for several trainings. None: $NAG_CACHE, or nag in the user's cache
    folder."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is trained from, where it goes, and how a run is stopped and gone on with."""

    model: Positional[str | None] = None
    """Pipeline to start from: a folder or a Hub id."""
    revision: str | None = None
    """Revision on the Hub."""
    variant: str | None = None
    """Variant of the weights, such as fp16."""
    output_dir: Path = Path("output")
    """Folder for the result, its checkpoints and logs."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    save_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the saved weights."""
    seed: int = 0
    """Seed of all randomness."""
    checkpointing_steps: int = 500
    """Write checkpoint-STEP every so many steps; 0: only on interruption."""
    checkpoints_total_limit: int | None = 2
    """Keep so many checkpoints."""
    pause_at_step: int | None = None
    """End with a checkpoint after this step; --resume_from_checkpoint latest goes on."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or 'latest'."""
    logging_steps: int = 1
    """Read the loss every so many steps; rarely, a GPU need not wait."""
    report_to: str | None = None
    """Tracker: tensorboard, wandb, ..."""
    logging_dir: str = "logs"
    """Folder of the tracker, inside the output folder."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Steps, rates and averages."""

    train_batch_size: int = 64
    """Batch per process and accumulation step."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    max_train_steps: int = 1000
    """Optimizer steps."""
    learning_rate: float = 0.0001
    """Peak learning rate."""
    lr_scheduler: str = "cosine"
    """linear, cosine, cosine_with_restarts, polynomial, constant(_with_warmup)."""
    lr_warmup_steps: int = 100
    """Steps of linear warm-up."""
    adam_beta1: float = 0.9
    """AdamW beta1."""
    adam_beta2: float = 0.99
    """AdamW beta2."""
    adam_weight_decay: float = 0.0
    """AdamW weight decay."""
    adam_epsilon: float = 1e-08
    """AdamW epsilon."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    use_ema: bool = True
    """Keep, and save, an exponential moving average of the weights."""
    ema_max_decay: float = 0.999
    """Final decay of the average."""
    ema_inv_gamma: float = 1.0
    """Inverse gamma of the average's warm-up."""
    ema_power: float = 0.75
    """Power of the average's warm-up."""


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """What is trained instead of the whole network."""

    lora_rank: int = 0
    """Train a LoRA of this rank, a small file for diffusers' load_lora_weights; 0: the whole network."""


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Time against memory and precision."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast precision."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    compile: bool = False
    """torch.compile the network that is trained."""
    compile_backend: str = "inductor"
    """Backend of --compile."""
    channels_last: bool = False
    """Keep weights in channels-last order, best with --compile."""
    allow_tf32: bool = False
    """Multiply float32 matrices in TF32 (Ampere and later)."""
    use_8bit_adam: bool = False
    """AdamW with moments in 8 bits, by bitsandbytes."""
    fused_optimizer: bool = False
    """AdamW and the moving average in few kernels."""
    draws: Literal["sample", "batch"] = "sample"
    """Random numbers: a generator per sample, the same on one process or several; or one per batch on the
    device, where the images then stay too: faster."""
    dataloader_num_workers: int = 0
    """Worker processes that load images."""


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Uploads."""

    push_to_hub: bool = False
    """Upload the result to the Hub."""
    hub_model_id: str | None = None
    """Name on the Hub. None: the output folder's name."""
    hub_private_repo: bool = False
    """Make the Hub repository private."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(HubOptions, SpeedOptions, OptimizerOptions, RunOptions, ImageOptions):
    """What every training shares; fields stand in groups, as the help shows them."""
