"""The command `nag`. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer

from nag.cli.blind_check_options import BlindCheckOptions
from nag.cli.measuring import AccuracyOptions, CalibrateOptions, CompareOptions, ShiftOptions
from nag.cli.options import add_command
from nag.cli.tune_options import TuneOptions
from nag.finetune.options import DenoiserOptions, RegressorOptions

__all__ = ["app", "main"]

app = typer.Typer(
    name="nag",
    help="Noise Awareness Guidance for diffusers: measure and correct the noise shift of diffusion samplers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
finetune = typer.Typer(
    no_args_is_help=True, help="Train a noise-level regressor, or a denoiser with level dropout."
)
app.add_typer(finetune, name="finetune")


def _run_denoiser(options: DenoiserOptions) -> None:
    from nag.finetune import denoiser

    typer.echo(f"{options.output_dir}: {_figures(denoiser.run(options))}")


def _run_regressor(options: RegressorOptions) -> None:
    from nag.finetune import regressor

    typer.echo(f"{options.output_dir}: {_figures(regressor.run(options))}")


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


add_command(
    finetune,
    "denoiser",
    DenoiserOptions,
    _run_denoiser,
    "Train or fine-tune a denoiser with noise-level dropout.",
)
add_command(
    finetune, "regressor", RegressorOptions, _run_regressor, "Train a noise-level regressor for a denoiser."
)


def _job(name: str) -> Callable[[Any], object]:
    """The function `run` of a module of nag.cli, imported when it is called."""
    return lambda options: importlib.import_module(f"nag.cli.{name}").run(options)


for _name, _options, _help in (
    (
        "shift",
        ShiftOptions,
        "Measure the noise shift of samplers and write report.html, shift.png and shift.json.",
    ),
    (
        "calibrate",
        CalibrateOptions,
        "Measure where the states of a sampler really are, step after step, and save the table beside the model.",
    ),
    (
        "compare",
        CompareOptions,
        "Compare methods at equal cost, in every scheduler and budget: compare.html, compare.md and compare.json.",
    ),
    (
        "tune",
        TuneOptions,
        "Find weight, interval and form of noise guidance for one sampler, or that none helps; saved beside the model.",
    ),
    (
        "accuracy",
        AccuracyOptions,
        "Measure a regressor's error per noise level against the Fisher floor: accuracy.json and accuracy.png.",
    ),
    (
        "blind-check",
        BlindCheckOptions,
        "Say whether a model needs to be told the noise level, and where its null branch can be trusted.",
    ),
):
    add_command(app, _name, _options, _job(_name.replace("-", "_")), _help)


def main() -> None:
    """Runs `nag`; bad input ends with a message and exit code 2, an interruption with 130."""
    app()


if __name__ == "__main__":
    main()
