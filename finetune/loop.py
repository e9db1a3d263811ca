"""The training loop: resumable bit for bit, and the same on one process or several.

Nothing random depends on what ran before (`finetune.stream`), so a resumed run continues exactly. What only buys speed
is off by default: compiling, channels-last weights, TF32, fused updates, random numbers made on the device.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nag.files import cache_folder, read_json
from nag.finetune.checkpoints import find_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from nag.finetune.model_card import repository
from nag.finetune.options import TrainingOptions
from nag.finetune.stream import Draws, batches, mix
from nag.finetune.subject import Subject
from nag.noise.checks import require
from nag.shift.images import ImageTable

__all__ = ["Task", "check_output_dir", "examples_of", "pretrained", "saved_copy", "train", "weight_dtype"]


def examples_of(options: TrainingOptions, subject: Subject) -> tuple[Subject, Any]:
    """What is learned from, as states of a subject, and that subject, which now knows its conditions."""
    channels, size = subject.image_size
    known = options.resolution is not None or isinstance(size, int)
    require(("resolution", size, "be given for a model without a square sample size", known))
    table = options.images(
        channels=channels,
        resolution=options.resolution or size,
        labels=subject.null is not None and not subject.reads_captions,
        max_samples=options.max_train_samples,
    )
    if subject.pipeline is None:
        return subject, table
    from nag.finetune.cache import encoded_images

    still = "be left out for latents, which are encoded once"
    require(("random_flip", options.random_flip, still, not options.random_flip))
    folder = cache_folder(options.cache_dir) or options.output_dir / "cache"
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject.pipeline.to(on)
    if subject.reads_captions:
        subject, table.labels = with_captions(subject, table.captions, folder, options.resolution)
    latents = encoded_images(subject, table, folder)
    subject.pipeline.to("cpu")
    return subject, latents


def with_captions(
    subject: Subject, captions: Sequence[str] | None, folder: Path, resolution: int | None
) -> tuple[Subject, Tensor]:
    """A subject that knows some captions, and the number of each image's."""
    from nag.finetune.cache import encoded_captions

    require(
        ("captions", captions, "be a column of the data; name it with --caption_column", captions is not None)
    )
    assert captions is not None
    missing = [i for i, caption in enumerate(captions) if not caption.strip()]
    if missing:
        raise ValueError(
            f"captions must be given for every image, got {len(missing)} of {len(captions)} empty: rows "
            f"{', '.join(map(str, missing[:5]))}{' ...' if len(missing) > 5 else ''}. Fill them in or leave the images out."
        )
    place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    found = encoded_captions(subject, list(place), folder, resolution=resolution)
    return found, torch.tensor([place[caption] for caption in captions])


def pretrained(options: TrainingOptions) -> Subject:
    """The denoiser of the pipeline that the options start from, without the regressor beside it, in evaluation mode."""
    from nag.load import NAGPipeline

    pipe = NAGPipeline.from_pretrained(
        str(options.model), regressor=False, revision=options.revision, variant=options.variant
    )
    return Subject.of(pipe, options.resolution)


def weight_dtype(options: TrainingOptions) -> torch.dtype:
    """The precision that `--save_dtype` names."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.save_dtype]


def saved_copy(model: Any, options: TrainingOptions) -> Any:
    """A copy of a diffusers network, in the precision that is asked for."""
    copy = type(model).from_config(model.config)
    copy.load_state_dict(model.state_dict())
    return nn.Module.to(copy, weight_dtype(options))


class Task(Protocol):
    """What is trained."""

    model: nn.Module

    def parameter_groups(self, options: Any) -> list[dict[str, Any]]:
        """Groups for AdamW."""

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Loss per sample, `(B,)`, from images `(B, C, H, W)` in [-1, 1] and labels `(B,)`."""

    def validate(self, step: int, folder: Path) -> None:
        """Shows what the current (averaged) weights do."""

    def save(self, folder: Path) -> None:
        """Writes the result with the (averaged) weights that `model` now holds."""


def check_output_dir(options: TrainingOptions) -> Path | None:
    """The checkpoint to resume from, looked for before anything is loaded; a folder in use or a closed Hub is refused."""
    folder, checkpoint = options.output_dir, None
    if options.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(folder, options.resume_from_checkpoint)
    elif folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise FileExistsError(
            f"output_dir must be empty, got {folder}, which is in use. "
            "Pass --resume_from_checkpoint latest, --overwrite or another folder."
        )
    repository(options)
    return checkpoint


def _check(options: TrainingOptions) -> None:
    counts = "train_batch_size gradient_accumulation_steps max_train_steps logging_steps pause_at_step"
    for name in counts.split():
        value = getattr(options, name)
        require((name, value, "be at least 1", value is None or value >= 1))
    require(("learning_rate", options.learning_rate, "be positive", options.learning_rate > 0))


def train(task: Task, table: ImageTable, options: TrainingOptions, checkpoint: Path | None) -> dict[str, Any]:
    """Trains, checkpoints, and saves the result into `options.output_dir`; leaves torch's precision as it was.

    SIGINT and SIGTERM end the run after the current step with a checkpoint. The figures are step and loss; after
    `pause_at_step` only the step.
    """
    precision = torch.get_float32_matmul_precision()
    if options.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        return _train(task, table, options, checkpoint)
    finally:
        torch.set_float32_matmul_precision(precision)


def adam_of(options: TrainingOptions) -> Any:
    """AdamW, or that of bitsandbytes with moments in 8 bits."""
    if not options.use_8bit_adam:
        return torch.optim.AdamW
    from importlib import import_module

    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(
            "use_8bit_adam must be off without bitsandbytes, got True. Install it: pip install bitsandbytes."
        ) from error


def _train(
    task: Task, table: ImageTable, options: TrainingOptions, checkpoint: Path | None
) -> dict[str, Any]:
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    _check(options)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.report_to,
        project_dir=str(options.output_dir / options.logging_dir),
    )
    folder, world = options.output_dir, accelerator.num_processes
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    model = task.model
    if options.gradient_checkpointing:
        model.enable_gradient_checkpointing()  # type: ignore[operator]
    model.to(accelerator.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = {} if options.use_8bit_adam else {"fused": True if options.fused_optimizer else None}
    optimizer = adam_of(options)(
        task.parameter_groups(options),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
        eps=options.adam_epsilon,
        **fused,
    )
    lr_lambda = get_scheduler(
        options.lr_scheduler,
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0),
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=options.max_train_steps,
    ).lr_lambdas[0]
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained = [p for p in model.parameters() if p.requires_grad]
    ema = None
    if options.use_ema:
        ema = EMAModel(
            trained,
            decay=options.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=options.ema_inv_gamma,
            power=options.ema_power,
            foreach=options.fused_optimizer,
        )
    signature = {
        "draws": options.draws,
        "seed": options.seed,
        "images": len(table),
        "global_batch": options.train_batch_size * options.gradient_accumulation_steps * world,
    }
    if options.draws == "batch":
        signature["processes"] = world
    signature |= getattr(task, "signature", {})
    start = 0
    if checkpoint is not None:
        saved = {"draws": "sample"} | getattr(task, "signature", {}) | read_json(checkpoint / "state.json")
        for key, value in signature.items():
            if saved.get(key) != value:
                raise ValueError(
                    f"resume_from_checkpoint must belong to this run, got {key} {saved.get(key)} there and {value} here. "
                    "Resume with the settings of the checkpoint."
                )
        start = load_checkpoint(checkpoint, model, ema, optimizer)["step"]
        if accelerator.scaler is not None and saved.get("scaler"):
            accelerator.scaler.load_state_dict(saved["scaler"])
    wrapped = accelerator.prepare_model(model)
    prepared = accelerator.prepare_optimizer(optimizer)
    if options.compile:
        wrapped = torch.compile(wrapped, backend=options.compile_backend, dynamic=False)
    loader = batches(
        table,
        options,
        start,
        rank=accelerator.process_index,
        world=world,
        device=accelerator.device,
    )
    if options.report_to is not None:
        plain = {
            k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in asdict(options).items()
        }
        accelerator.init_trackers("nag", config=plain)

    def keep(step: int) -> None:
        if accelerator.is_main_process:
            state = dict(signature)
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            save_checkpoint(folder, step, model, ema, optimizer, state)
            prune_checkpoints(folder, options.checkpoints_total_limit)
        accelerator.wait_for_everyone()

    stop_asked: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _: stop_asked.append(number))
        for s in (signal.SIGINT, signal.SIGTERM)
    }
    bar = tqdm(
        total=options.max_train_steps, initial=start, desc="training", disable=not accelerator.is_main_process
    )
    step, running = start, float("nan")
    validation_steps = getattr(options, "validation_steps", 0)
    try:
        wrapped.train()
        for images, labels, draws in loader:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_lambda(step)
            draws.step = step
            torch.manual_seed(mix(options.seed, "model", step, accelerator.process_index))
            if options.random_flip:
                flip = draws.uniform() < 0.5
                images = torch.where(flip[:, None, None, None], images.flip(-1), images)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    loss = task.loss(wrapped, images, labels, draws).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, options.max_grad_norm)
                prepared.step()
                prepared.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            if ema is not None:
                ema.step(trained)
            bar.update()
            if step % options.logging_steps == 0:
                value = accelerator.reduce(loss.detach(), reduction="mean").item()
                running = value if running != running else 0.98 * running + 0.02 * value
                bar.set_postfix(loss=f"{running:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.1e}")
                accelerator.log({"loss": value, "lr": optimizer.param_groups[0]["lr"]}, step=step)
            stopped = bool(stop_asked)
            if world > 1:
                asked = torch.tensor(float(stopped), device=accelerator.device)
                stopped = accelerator.reduce(asked).item() > 0
            paused = step == options.pause_at_step and step < options.max_train_steps
            due = options.checkpointing_steps and step % options.checkpointing_steps == 0
            if due or paused or (stopped and step < options.max_train_steps):
                keep(step)
            if stopped and step < options.max_train_steps:
                bar.close()
                raise KeyboardInterrupt(
                    f"stopped after step {step}; continue with --resume_from_checkpoint latest"
                )
            if paused:
                accelerator.end_training()
                return _told(folder, {"step": step})
            if step in getattr(task, "milestones", ()):
                _with_average(task, ema, trained, accelerator, lambda: task.snapshot(step, folder))  # type: ignore[attr-defined]  # noqa: B023
            if validation_steps and step % validation_steps == 0 and step < options.max_train_steps:
                _with_average(task, ema, trained, accelerator, lambda: task.validate(step, folder))  # noqa: B023
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bar.close()

    figures: dict[str, Any] = {"step": step} | ({} if running != running else {"loss": running})

    def finish() -> None:
        task.validate(step, folder)
        task.save(folder)

    _with_average(task, ema, trained, accelerator, finish)
    accelerator.log({k: v for k, v in figures.items() if isinstance(v, float)}, step=step)
    accelerator.end_training()
    return _told(folder, figures)


def _told(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, printed."""
    words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    print(f"{folder}: {', '.join(words)}")
    return figures


def _with_average(task: Task, ema: Any, trained: list[nn.Parameter], accelerator: Any, act: Any) -> None:
    """Runs `act` on the main process while the model holds the averaged weights."""
    if accelerator.is_main_process:
        if ema is not None:
            ema.store(trained)
            ema.copy_to(trained)
        task.model.eval()
        try:
            act()
        finally:
            task.model.train()
            if ema is not None:
                ema.restore(trained)
    accelerator.wait_for_everyone()
