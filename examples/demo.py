"""The whole job on the model and the images that come with the repository: `make demo`.

1. train a noise-level regressor head on the frozen UNet,
2. measure the noise shift of DDIM and DDPM at 10 and 20 steps,
3. correct it twice: by schedule calibration and by Noise Awareness Guidance,
4. write a report with samples from the same seeds side by side.

Head, calibration and measurement use different images and seeds; table and measurement share the head. For the judgement
of a second, independent regressor see docs/evidence.md.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL, DATA = HERE / "fashion_mnist" / "model", HERE / "fashion_mnist" / "data"


def main() -> None:
    """Runs the demo; a second run uses the head and the tables of the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="folder of the results")
    parser.add_argument("--train_steps", type=int, default=800, help="training steps of the head")
    parser.add_argument("--num_samples", type=int, default=256, help="sampled trajectories per run")
    parser.add_argument("--fresh", action="store_true", help="remove the results of an earlier run first")
    options = parser.parse_args()
    start = time.monotonic()
    print("Loading torch and diffusers ...", flush=True)

    from nag.cli import calibrate, shift
    from nag.finetune import regressor

    out: Path = options.output_dir
    if options.fresh and out.exists():
        for name in ("regressor", "report", "noise_calibration.json"):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    head, table = out / "regressor", out / "noise_calibration.json"

    def stage(number: int, text: str) -> None:
        print(f"\n[{number}/3] {text}  ({time.monotonic() - start:.0f} s)", flush=True)

    stage(1, "Training a noise-level regressor head on the frozen UNet")
    if not (head / "config.json").is_file():
        regressor.run(
            regressor.RegressorOptions(
                pretrained_model_name_or_path=str(MODEL),
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
    shared = {
        "model": str(MODEL),
        "regressor": str(head),
        "schedulers": ("ddim", "ddpm"),
        "steps": (10, 20),
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
    options = shift.ShiftOptions(
        **shared,
        data=DATA / "test.parquet",
        num_images=400,
        seed=2,
        corrections=("calibrated", "nag:scale=0.5"),
        calibration=str(table),
        output_dir=out / "report",
        overwrite=True,
    )
    shift.run(options)
    print(f"\nDone in {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
