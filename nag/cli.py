"""The command `nag`. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nag.finetune.options import DenoiserOptions, RegressorOptions, command
from nag.named_schedulers import SCHEDULERS

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


finetune.command("denoiser")(
    command(DenoiserOptions, _run_denoiser, "Train or fine-tune a denoiser with noise-level dropout.")
)
finetune.command("regressor")(
    command(RegressorOptions, _run_regressor, "Train a noise-level regressor for a denoiser.")
)

Model = Annotated[str, typer.Argument(help="Pipeline: a folder or a Hub id.", show_default=False)]
Data = Annotated[
    Path, typer.Option("--data", help="Held-out images: a folder, or a parquet file.", show_default=False)
]
Regressor = Annotated[
    str | None,
    typer.Option("--regressor", help="Regressor: a folder or a Hub id; default: beside the model."),
]
Schedulers = Annotated[
    list[str] | None,
    typer.Option(
        "--scheduler", help=f"{', '.join(SCHEDULERS)}; default: the model's. May be given several times."
    ),
]
Steps = Annotated[list[int], typer.Option("--steps", help="Sampling steps. May be given several times.")]
Scale = Annotated[
    float, typer.Option("--noise_guidance_scale", help="Also run with Noise Awareness Guidance.")
]
Mode = Annotated[str, typer.Option("--noise_guidance_mode", help="classifier_free, corrected or gradient.")]
Interval = Annotated[
    tuple[float, float],
    typer.Option("--noise_guidance_interval", help="Log-SNR, noisy end first; inf leaves a side open."),
]
ClassScale = Annotated[float, typer.Option("--guidance_scale", help="Class guidance; 1 is off.")]
Eta = Annotated[float, typer.Option("--eta", help="Stochasticity of DDIM.")]
Samples = Annotated[int, typer.Option("--num_samples", help="Sampled trajectories.")]
Images = Annotated[int, typer.Option("--num_images", help="Held-out images.")]
Batch = Annotated[int, typer.Option("--batch_size", help="Samples per batch.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
Device = Annotated[str | None, typer.Option("--device", help="Default: cuda where there is one, else cpu.")]
Output = Annotated[Path, typer.Option("--output_dir", help="Folder of the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files of a folder that is in use.")]


@app.command()
def shift(
    model: Model,
    data: Data,
    scheduler: Schedulers = None,
    steps: Steps = [20],  # noqa: B006
    regressor: Regressor = None,
    guidance_scale: ClassScale = 1.0,
    eta: Eta = 0.0,
    noise_guidance_scale: Scale = 0.0,
    noise_guidance_mode: Mode = "classifier_free",
    noise_guidance_interval: Interval = (-2.5, float("inf")),
    noise_calibration: Annotated[
        str | None,
        typer.Option("--noise_calibration", help="Also run calibrated: 'auto' (beside the model) or a file."),
    ] = None,
    num_samples: Samples = 256,
    num_images: Images = 500,
    batch_size: Batch = 64,
    seed: Seed = 0,
    device: Device = None,
    output_dir: Output = Path("outputs/shift"),
    overwrite: Overwrite = False,
) -> None:
    """Measure the noise shift of samplers and write report.html, shift.png and shift.json."""
    from nag.jobs import Setting, shift_job

    settings = Setting(
        model=model,
        data=data,
        schedulers=tuple(scheduler or [None]),
        steps=tuple(steps),
        regressor=regressor,
        guidance_scale=guidance_scale,
        eta=eta,
        noise_guidance_scale=noise_guidance_scale,
        noise_guidance_mode=noise_guidance_mode,
        noise_guidance_interval=noise_guidance_interval,
        noise_calibration=noise_calibration,
        num_samples=num_samples,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    shift_job(settings, output_dir, overwrite=overwrite)


@app.command()
def calibrate(
    model: Model,
    data: Data,
    scheduler: Schedulers = None,
    steps: Steps = [20],  # noqa: B006
    regressor: Regressor = None,
    guidance_scale: ClassScale = 1.0,
    eta: Eta = 0.0,
    noise_guidance_scale: Scale = 0.0,
    noise_guidance_mode: Mode = "classifier_free",
    noise_guidance_interval: Interval = (-2.5, float("inf")),
    num_samples: Samples = 512,
    num_images: Images = 500,
    batch_size: Batch = 256,
    seed: Seed = 0,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File; default: noise_calibration.json in the model's folder."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table of the same scheduler and steps.")
    ] = False,
) -> None:
    """Measure where the states of a sampler really are, step after step, and save the table beside the model."""
    from nag.jobs import Setting, calibrate_job

    settings = Setting(
        model=model,
        data=data,
        schedulers=tuple(scheduler or [None]),
        steps=tuple(steps),
        regressor=regressor,
        guidance_scale=guidance_scale,
        eta=eta,
        noise_guidance_scale=noise_guidance_scale,
        noise_guidance_mode=noise_guidance_mode,
        noise_guidance_interval=noise_guidance_interval,
        noise_calibration=None,
        num_samples=num_samples,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    calibrate_job(settings, output, overwrite=overwrite)


@app.command()
def accuracy(
    model: Model,
    data: Data,
    regressor: Annotated[
        list[str] | None,
        typer.Option("--regressor", help="Regressor folders; default: beside the model. Several times."),
    ] = None,
    num_images: Images = 1000,
    batch_size: Batch = 250,
    seed: Seed = 0,
    device: Device = None,
    output_dir: Output = Path("outputs/accuracy"),
    overwrite: Overwrite = False,
) -> None:
    """Measure a regressor's error per noise level against the Fisher floor: accuracy.json and accuracy.png."""
    from nag.jobs import accuracy_job

    accuracy_job(
        model,
        data,
        tuple(regressor or [None]),
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
        output_dir=output_dir,
        overwrite=overwrite,
    )


def main() -> None:
    """Runs `nag`; bad input ends with a message and exit code 2, an interruption with 130."""
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        typer.secho(f"Interrupted: {error}" if str(error) else "Interrupted.", err=True)
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
