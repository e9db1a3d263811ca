"""The whole job on the model and the images that come with the repository: `make demo`.

1. train a noise-level regressor head on the frozen UNet,
2. measure the noise shift where there is one: DDIM with 10 steps and diffusers' default settings (leading, clipped),
3. correct it, by a calibrated schedule and by Noise Awareness Guidance,
4. compare quality at the same cost, 20 evaluations, with settings that have no shift; also of a student of guidance by a
   smaller network, which needs one pass,
5. draw both halves on one picture, demo.png.

Head, calibration and measurement use different images and seeds; table and measurement share the head. For the judgement
of a second, independent regressor see docs/evidence.md; for more samples and seeds docs/one_pass.md.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL, DATA = HERE / "fashion_mnist" / "model", HERE / "fashion_mnist" / "data"
STUDENT = f"merged:network={MODEL / 'student'},strength=0.5"
NAMES = {"plain": "plain", "calibrated": "calibrated", "nag": "noise guidance", "merged": "student, one pass"}


def name_of(text: str) -> str:
    """How a method is called on the picture."""
    return next((shown for word, shown in NAMES.items() if word in text), "plain")


def picture(shifts: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """The shift step by step on the left, quality at equal cost on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = dict(zip(NAMES.values(), ("#555555", "#1f77b4", "#d95f02", "#1b9e77"), strict=True))
    for text, shift in shifts.items():
        name, steps = name_of(text), [step for step in shift.steps if step.shift is not None]
        levels, values = [step.log_snr for step in steps], [step.shift for step in steps]
        errors = [2 * step.standard_error for step in steps]
        left.errorbar(levels, values, errors, marker="o", capsize=2, color=colours[name], label=name)
    left.axhline(0, color="black", linewidth=0.8)
    left.set(
        xlabel="nominal log-SNR (noise on the left)",
        ylabel="shift in log(sigma/alpha); above 0: noisier",
        title="DDIM, 10 steps, diffusers' default settings",
    )
    left.legend()
    for i, row in enumerate(rows):
        name, frechet = name_of(row["chosen"]), row["frechet"]
        right.barh(i, frechet["value"], xerr=2 * frechet["standard_error"], color=colours[name], capsize=3)
    right.set_yticks(range(len(rows)), [name_of(row["chosen"]) for row in rows])
    right.invert_yaxis()
    right.set(
        xlabel="Fréchet distance, lower is better (64 features)",
        title=f"DDIM, {rows[0]['budget']} network evaluations per sample",
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the demo; a second run uses the head and the tables of the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="folder of the results")
    parser.add_argument("--train_steps", type=int, default=400, help="training steps of the head")
    parser.add_argument("--num_samples", type=int, default=256, help="sampled trajectories per run")
    parser.add_argument("--num_compared", type=int, default=1100, help="samples per method of the comparison")
    parser.add_argument("--fresh", action="store_true", help="remove the results of an earlier run first")
    options = parser.parse_args()
    start = time.monotonic()
    print("Loading torch and diffusers ...", flush=True)

    from nag.cli import calibrate, compare, shift
    from nag.files import read_json
    from nag.finetune import regressor

    out: Path = options.output_dir
    if options.fresh and out.exists():
        for name in ("regressor", "report", "compare", "noise_calibration.json"):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    head, table = out / "regressor", out / "noise_calibration.json"

    def stage(number: int, text: str) -> None:
        print(f"\n[{number}/4] {text}  ({time.monotonic() - start:.0f} s)", flush=True)

    stage(1, "Training a noise-level regressor head on the frozen UNet")
    if not (head / "config.json").is_file():
        regressor.run(
            regressor.RegressorOptions(
                model=str(MODEL),
                kind="frozen",
                data=DATA / "head.parquet",
                held_out_data=DATA / "calibration.parquet",
                output_dir=head,
                train_batch_size=128,
                max_train_steps=options.train_steps,
                learning_rate=3e-3,
                lr_warmup_steps=50,
                ema_max_decay=0.99,
                checkpointing_steps=200,
                checkpoints_total_limit=1,
                resume_from_checkpoint="latest",
            )
        )
    shared: dict[str, Any] = {
        "model": str(MODEL),
        "regressor": str(head),
        "schedulers": ("ddim",),
        "steps": (10,),
        "scheduler_config": ("timestep_spacing=leading", "clip_sample=true"),
        "num_samples": options.num_samples,
        "batch_size": 128,
    }
    stage(2, "Measuring, step after step, at which level the states really are")
    if not table.is_file():
        calibrate.run(
            calibrate.CalibrateOptions(
                **shared, data=DATA / "calibration.parquet", num_images=400, seed=1, output_dir=out
            )
        )
    stage(3, "Measuring the shift: plain, calibrated, and with Noise Awareness Guidance")
    shifts = shift.run(
        shift.ShiftOptions(
            **shared,
            data=DATA / "test.parquet",
            num_images=400,
            seed=2,
            corrections=("calibrated", "nag:scale=0.5"),
            calibration=str(table),
            output_dir=out / "report",
            overwrite=True,
        )
    )
    stage(4, "Comparing quality at equal cost, with settings that have no shift")
    compare.run(
        compare.CompareOptions(
            model=str(MODEL),
            data=str(DATA / "calibration.parquet"),
            reference=str(DATA / "test.parquet"),
            schedulers=("ddim",),
            evaluations=(20,),
            scheduler_config=("timestep_spacing=trailing", "clip_sample=false"),
            corrections=("plain", "calibrated", "nag:scale=2,interval=-2.5..4", STUDENT),
            regressor=str(head),
            num_images=200,
            calibration_samples=256,
            num_samples=options.num_compared,
            seeds=(101,),
            mixed_precision="bf16",
            shift=False,
            output_dir=out / "compare",
        )
    )
    rows = [row for row in read_json(out / "compare" / "compare.json")["rows"] if row["refused"] is None]
    picture(shifts, rows, out / "demo.png")
    print(f"Picture: {out / 'demo.png'}\nComparison: {out / 'compare' / 'compare.html'}")
    print(f"\nDone in {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
