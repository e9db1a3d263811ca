"""Trains a noise-level regressor for a denoiser, by Gaussian likelihood of the log-SNR; bias and spread are fitted afterwards.

    nag finetune regressor --help
    accelerate launch finetune/regressor.py --help

Loss per sample: -log N(log_snr_t; m(x_t), s^2(x_t)), levels drawn from the denoiser's training prior (uniform over the
timesteps). Afterwards mean and variance are fitted to held-out images (`NoiseLevelRegressor.fit`).

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import Positional

from nag.finetune.options import TrainingOptions
from nag.noise.checks import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nag.finetune.stream import Draws
    from nag.finetune.subject import Subject
    from nag.shift.forward import Estimate
    from nag.shift.images import ImageTable

__all__ = ["RegressorOptions", "RegressorTask", "fit", "run"]


@dataclass(frozen=True, kw_only=True)
class RegressorOptions(TrainingOptions):
    """Train a noise-level regressor for a denoiser.

    nag finetune regressor MODEL --data IMAGES --output_dir MODEL/regressor
    """

    model: Positional[str] = field()
    """Pipeline whose UNet is used: a folder or a Hub id."""
    kind: Literal["frozen", "full", "encoder"] = "frozen"
    """frozen: a head on the pipeline's own UNet; full: a fine-tuned copy; encoder: its first half."""
    features: Literal["last", "middle"] = "last"
    """Layer that the head reads; encoder: always middle."""
    head_type: Literal["statistics", "attention"] = "statistics"
    """How the head pools over positions."""
    hidden_size: int = 128
    """Width of the head."""
    held_out_data: Path | None = None
    """Held-out images that bias and spread are fitted to. None: the last held_out_samples of the training data."""
    held_out_samples: int = 1000
    """Held-out images, half of them to fit bias and spread, half to test."""
    head_learning_rate: float | None = None
    """Learning rate of the head. None: as learning_rate."""


class RegressorTask:
    """A regressor that is trained in place, and held-out images for what is fitted afterwards and for the figures.

    Args:
        regressor: trained.
        subject: its network, and how that is asked.
        heldout: held-out images, or their latents.
        known: the subject that knows their conditions.
        options: see `RegressorOptions`.
    """

    def __init__(
        self, regressor: Any, subject: Subject, heldout: ImageTable, known: Subject, options: RegressorOptions
    ) -> None:
        self.model, self.subject, self.options = regressor, subject, options
        self.heldout, self.known = heldout, known

    def parameter_groups(self, options: RegressorOptions) -> list[dict[str, Any]]:
        head = list(self.model.head.parameters())
        own = {id(p) for p in head}
        body = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        groups = [{"params": head, "lr": options.head_learning_rate or options.learning_rate}]
        return groups + ([{"params": body, "lr": options.learning_rate}] if body else [])

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        from nag.blind.objectives import uniform_level

        process = self.model.process
        if self.model.config.kind == "frozen":
            self.model.network.to(images.device)  # it is borrowed, so nobody else moves it
        eps = draws.normal(images.shape[1:])
        t = uniform_level(process, draws.uniform())
        hide = draws.uniform() < 0.5
        shown = conditions_of(self.subject, self.subject.dropped(labels, hide | (labels < 0)))
        estimate = model(process.corrupt(images, t, eps), **shown)
        return -estimate.log_density(process.log_snr(t).float())

    def validate(self, step: int, folder: Path) -> None:
        """The figures are those of the end."""

    def save(self, folder: Path) -> None:
        """Fits to the held-out images, writes the regressor with a model card and its figures, and uploads it if asked."""
        import torch

        from nag.files import written_whole
        from nag.finetune.loop import weight_dtype
        from nag.finetune.model_card import upload, write_model_card
        from nag.shift.accuracy import measure_accuracy

        half = len(self.heldout) // 2
        fit(self.model, self.heldout.subset(range(half)), self.known, seed=self.options.seed + 1)
        test = self.heldout.subset(range(half, len(self.heldout)))
        told = None if self.known.pipeline is None else told_by(self.known, self.model, test.labels)
        accuracy = measure_accuracy(self.model.eval(), test.tensor(), told=told, seed=self.options.seed + 2)
        dtype = weight_dtype(self.options)
        with written_whole(folder) as part:
            before = self.model.dtype
            torch.nn.Module.to(self.model, dtype).save_pretrained(part)
            torch.nn.Module.to(self.model, before)
            write_model_card(
                part,
                "regressor",
                self.options,
                title=f"Noise-level regressor ({self.model.config.kind})",
                text="Estimates the log-SNR of a noisy state: mean and variance, fitted to held-out images.",
                figures={
                    "held-out images (half to fit, half to test)": len(self.heldout),
                    "RMSE / Fisher floor, worst over log-SNR in [0, 3]": accuracy.worst_ratio(0, 3),
                    "RMSE / Fisher floor, worst over log-SNR in [-1, 5]": accuracy.worst_ratio(-1, 5),
                    "coverage of the 90 % interval": accuracy.coverage_90,
                    "its standard error": accuracy.coverage_standard_error,
                },
            )
        upload(folder, self.options)


def conditions_of(subject: Subject, labels: Tensor) -> dict[str, Any]:
    """What a regressor is told besides the states: everything that its network is, but the level."""
    from nag.finetune.subject import merged

    return merged(subject.shared, subject.conditions(labels), labels.device)


def told_by(subject: Subject, regressor: Any, labels: Tensor) -> Callable[[int, int], Estimate]:
    """Estimates under the conditions `(N,)` of some images, for `nag.shift.accuracy`."""

    def told(start: int, stop: int) -> Estimate:
        chosen = labels[start:stop].to(regressor.device)
        return lambda x, _: regressor.estimate(x, **conditions_of(subject, chosen))

    return told


def fit(
    regressor: Any,
    heldout: ImageTable,
    subject: Subject,
    *,
    seed: int,
    passes: int = 16,
    batch_size: int = 250,
) -> None:
    """Fits the regressor's bias and spread to held-out images, each at `passes` levels of the training prior."""
    import torch

    from nag.blind.objectives import uniform_level

    generator = torch.Generator().manual_seed(seed)
    regressor.eval()
    regressor.calibration_bias.zero_()
    regressor.calibration_log_scale.zero_()
    device, process = regressor.calibration_bias.device, regressor.process
    means, stds, truths = [], [], []
    with torch.no_grad():
        for start in list(range(0, len(heldout), batch_size)) * passes:
            chosen = range(start, min(start + batch_size, len(heldout)))
            x_0 = heldout.tensor(chosen)
            t = uniform_level(process, torch.rand(len(x_0), generator=generator))
            x_t = process.corrupt(x_0, t, torch.randn(x_0.shape, generator=generator))
            labels = heldout.labels[chosen.start : chosen.stop].to(device)
            known = subject.dropped(labels, (labels < 0).any().expand(len(labels)))
            estimate = regressor.estimate(x_t.to(device), **conditions_of(subject, known))
            means.append(estimate.log_snr.cpu())
            stds.append(estimate.std.cpu())
            truths.append(process.log_snr(t))
    regressor.fit(torch.cat(means), torch.cat(stds), torch.cat(truths))


def run(options: RegressorOptions) -> dict[str, Any]:
    """Trains a regressor and saves it; the figures of the run."""
    import torch

    from nag.finetune.loop import check_output_dir, examples_of, pretrained, train
    from nag.finetune.stream import mix
    from nag.network.regressor import NoiseLevelRegressor

    least = 40  # so that half of them, at 16 levels each, tell bias and spread at all knots
    require(
        (
            "held_out_samples",
            options.held_out_samples,
            f"be at least {least}",
            options.held_out_samples >= least,
        )
    )
    checkpoint = check_output_dir(options)
    subject = pretrained(options)
    subject.network.float().eval().requires_grad_(False)
    torch.manual_seed(mix(options.seed, "init") % 2**63)
    regressor = NoiseLevelRegressor.from_unet(
        subject.network,
        subject.scheduler,
        kind=options.kind,
        features=options.features,
        head_type=options.head_type,
        hidden_size=options.hidden_size,
    )
    regressor.requires_grad_(True)
    freeze_unused(regressor)
    if not regressor.config.uses_class and not subject.reads_captions:
        subject = replace(subject, null=None)  # it is always asked without a class
    known, table = examples_of(options, subject)
    count = options.held_out_samples
    if options.held_out_data is not None:
        held_out = replace(options, data=str(options.held_out_data), max_train_samples=count)
        others, heldout = examples_of(held_out, subject)
    else:
        must = f"be between 1 and {len(table) - 1}, which are held out of the training data, or --held_out_data given"
        require(("held_out_samples", count, must, 0 < count < len(table)))
        others, heldout = known, table.subset(range(len(table) - count, len(table)))
        table = table.subset(range(len(table) - count))
    return train(RegressorTask(regressor, known, heldout, others, options), table, options, checkpoint)


def freeze_unused(regressor: Any) -> None:
    """Parameters that the loss cannot reach: the level embedding, hidden by the null level, and the last layer."""
    from nag.network.table import architecture_of, level_modules

    if regressor.backbone is None:
        return
    for module in level_modules(regressor.backbone):
        module.requires_grad_(False)
    regressor.backbone.get_submodule(architecture_of(regressor.backbone).features).requires_grad_(False)


if __name__ == "__main__":
    run(tyro.cli(RegressorOptions, use_underscores=True))
