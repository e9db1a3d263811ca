"""Command-line options as frozen dataclasses: one list serves the command, the checkpoint and the model card.

Flags bear the names of diffusers' own training scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nag.cli.options import command, option

__all__ = ["DenoiserOptions", "RegressorOptions", "TrainingOptions", "command", "option"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What both trainings share."""

    output_dir: Path = option(Path("output"), "Folder for the result, its checkpoints and logs.")
    overwrite_output_dir: bool = option(False, "Write into a folder that is not empty.")
    dataset_name: str | None = option(None, "Dataset on the Hub, or a local dataset folder.")
    dataset_config_name: str | None = option(None, "Configuration of the Hub dataset.")
    train_data_dir: Path | None = option(None, "Folder of images or parquet files, or one parquet file.")
    split: str = option("train", "Split of the dataset.")
    image_column: str = option("image", "Column of the images.")
    label_column: str = option("label", "Column of the class labels; used by class-conditional models.")
    max_train_samples: int | None = option(None, "Use only the first samples.")
    skip_unreadable_images: bool = option(False, "Leave unreadable images out instead of refusing the data.")
    resolution: int | None = option(None, "Image size in pixels; default: the model's sample size.")
    center_crop: bool = option(True, "Crop the middle square after resizing the short side, else squash.")
    random_flip: bool = option(False, "Mirror half of the images.")
    train_batch_size: int = option(64, "Batch per process and accumulation step.")
    gradient_accumulation_steps: int = option(1, "Batches per optimizer step.")
    dataloader_num_workers: int = option(0, "Worker processes that load images.")
    max_train_steps: int = option(1000, "Optimizer steps.")
    learning_rate: float = option(1e-4, "Peak learning rate.")
    lr_scheduler: str = option(
        "cosine", "linear, cosine, cosine_with_restarts, polynomial, constant(_with_warmup)."
    )
    lr_warmup_steps: int = option(100, "Steps of linear warm-up.")
    adam_beta1: float = option(0.9, "AdamW beta1.")
    adam_beta2: float = option(0.99, "AdamW beta2.")
    adam_weight_decay: float = option(0.0, "AdamW weight decay.")
    adam_epsilon: float = option(1e-8, "AdamW epsilon.")
    max_grad_norm: float = option(1.0, "Gradient clipping.")
    use_ema: bool = option(True, "Keep, and save, an exponential moving average of the weights.")
    ema_max_decay: float = option(0.999, "Final decay of the average.")
    ema_inv_gamma: float = option(1.0, "Inverse gamma of the average's warm-up.")
    ema_power: float = option(0.75, "Power of the average's warm-up.")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "Autocast precision.")
    gradient_checkpointing: bool = option(False, "Trade time for memory.")
    compile: bool = option(False, "torch.compile the network that is trained.")
    compile_backend: str = option("inductor", "Backend of --compile.")
    channels_last: bool = option(False, "Keep weights in channels-last order, best with --compile.")
    allow_tf32: bool = option(False, "Multiply float32 matrices in TF32 (Ampere and later).")
    fused_optimizer: bool = option(False, "AdamW and the moving average in few kernels.")
    draws: Literal["sample", "batch"] = option(
        "sample",
        "Random numbers: a generator per sample, the same on one process or several; or one per batch on the "
        "device, where the images then stay too: faster.",
    )
    logging_steps: int = option(1, "Read the loss every so many steps; rarely, a GPU need not wait.")
    checkpointing_steps: int = option(
        500, "Write checkpoint-STEP every so many steps; 0: only on interruption."
    )
    checkpoints_total_limit: int | None = option(2, "Keep so many checkpoints.")
    pause_at_step: int | None = option(
        None, "End with a checkpoint after this step; --resume_from_checkpoint latest goes on."
    )
    resume_from_checkpoint: str | None = option(None, "A checkpoint folder, or 'latest'.")
    seed: int = option(0, "Seed of all randomness.")
    report_to: str | None = option(None, "Tracker: tensorboard, wandb, ...")
    logging_dir: str = option("logs", "Folder of the tracker, inside the output folder.")
    push_to_hub: bool = option(False, "Upload the result to the Hub.")
    hub_model_id: str | None = option(None, "Name on the Hub; default: the output folder's name.")
    hub_private_repo: bool = option(False, "Make the Hub repository private.")
    save_dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "Precision of the saved weights.")


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions(TrainingOptions):
    """Options of `nag finetune denoiser`."""

    pretrained_model_name_or_path: str | None = option(None, "Pipeline to start from: a folder or a Hub id.")
    revision: str | None = option(None, "Revision on the Hub.")
    variant: str | None = option(None, "Variant of the weights, such as fp16.")
    model_config_name_or_path: str | None = option(
        None, "From scratch: UNet2DModel config (JSON file, folder, Hub id)."
    )
    objective: Literal["ddpm", "adm", "flow", "edm", "uedm", "ict", "ecm", "eqm"] | None = option(
        None,
        "What is trained: ddpm, adm (learned variance), flow, edm, uedm, the consistency models ict and ecm, or eqm "
        "(Equilibrium Matching); default: as the pretrained pipeline, or by --prediction_type.",
    )
    sigma_data: float = option(0.5, "edm, uedm, ict, ecm: standard deviation of the data.")
    uedm_weight: Literal["edm", "uniform"] = option(
        "edm", "uedm: loss weight of a level, Karras' or 1. It decides what a blind network averages to."
    )
    eqm_decay: Literal["constant", "linear", "truncated", "piecewise"] = option(
        "truncated", "eqm: how the target falls to 0 at the data."
    )
    eqm_interpolation: float = option(0.8, "eqm: the data's share from which truncated and piecewise fall.")
    eqm_start: float = option(1.0, "eqm: piecewise starts at this height.")
    eqm_multiplier: float = option(4.0, "eqm: factor of the target.")
    energy: Literal["dot", "squared_norm"] | None = option(
        None, "eqm: train the gradient of an explicit energy: <x, f> or |f|^2 / 2; default: f itself."
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_prediction"] | None = option(
        None, "What the network predicts; default: as the pretrained pipeline, or epsilon."
    )
    ddpm_num_steps: int = option(1000, "From scratch: timesteps of the process.")
    ddpm_beta_schedule: str = option("linear", "From scratch: linear, scaled_linear, squaredcos_cap_v2.")
    clip_sample: bool = option(True, "From scratch: clip the predicted clean image in the saved scheduler.")
    timestep_spacing: str = option(
        "leading", "From scratch: spacing in the saved scheduler: leading, trailing, linspace."
    )
    level_dropout: float = option(0.1, "Share of samples whose noise level is hidden.")
    class_dropout: float = option(
        0.1, "Share of samples whose class becomes the null class (the last embedding)."
    )
    null_loss_weight: Literal["uniform", "1/sigma"] = option(
        "uniform",
        "Loss weight of samples with hidden level; 1/sigma makes the corrected guidance of an eps target exact.",
    )
    validation_steps: int = option(0, "Write a grid of samples every so many steps; 0: only at the end.")
    num_validation_images: int = option(16, "Images in the grid; 0: none.")
    validation_inference_steps: int = option(50, "Sampling steps of the grid.")


@dataclass(frozen=True, kw_only=True)
class RegressorOptions(TrainingOptions):
    """Options of `nag finetune regressor`."""

    pretrained_model_name_or_path: str = option("", "Pipeline whose UNet is used: a folder or a Hub id.")
    revision: str | None = option(None, "Revision on the Hub.")
    variant: str | None = option(None, "Variant of the weights, such as fp16.")
    kind: Literal["frozen", "full", "encoder"] = option(
        "frozen",
        "frozen: a head on the pipeline's own UNet; full: a fine-tuned copy; encoder: its first half.",
    )
    features: Literal["last", "middle"] = option("last", "Layer that the head reads; encoder: always middle.")
    head_type: Literal["statistics", "attention"] = option("statistics", "How the head pools over positions.")
    hidden_size: int = option(128, "Width of the head.")
    calibration_data_dir: Path | None = option(
        None,
        "Held-out images for the calibration; default: the last calibration_samples of the training data.",
    )
    calibration_samples: int = option(1000, "Held-out images used to calibrate mean and variance.")
    head_learning_rate: float | None = option(None, "Learning rate of the head; default: as learning_rate.")
