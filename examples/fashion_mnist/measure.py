"""Measures on the embedded model what plain sampling, Noise Awareness Guidance and schedule calibration do.

    python examples/fashion_mnist/prepare.py SOURCE data/fashion_mnist_16
    python examples/fashion_mnist/measure.py --output_dir outputs/evidence

Weights and calibration tables are chosen on seeds 1 and 2 with one regressor and the calibration images: the weight that
leaves the smallest mean |shift| where plain DDIM has a shift (above three standard errors), else the one with the smallest
Frechet distance of 500 samples. Everything that is reported comes from seeds 100 (shift, 512 samples, float32) and
101, 102 (samples, bfloat16 autocast, 8 bit), the test images and a second regressor that was trained on its own. One
JSON file per cell: a stop loses at most one cell, and `--shard 0/2` and `--shard 1/2` share the work between two
processes. `evidence.py` draws tables and picture from what is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
MODEL, DATA = HERE / "model", HERE / "data"
PLAIN = {"clip_sample": False, "timestep_spacing": "trailing"}
SETTINGS: dict[str, dict[str, Any]] = {
    "ddim 10": {"scheduler": "ddim", "steps": 10},
    "ddim 20": {"scheduler": "ddim", "steps": 20},
    "ddpm 10": {"scheduler": "ddpm", "steps": 10, "tuned_on": "ddim 10"},
    "ddpm 20": {"scheduler": "ddpm", "steps": 20, "tuned_on": "ddim 20"},
    "dpm++ 20": {"scheduler": "dpm++", "steps": 20, "tuned_on": "ddim 20"},
    "ddim 10, linspace": {"scheduler": "ddim", "steps": 10, "config": {"timestep_spacing": "linspace"}},
    "ddim 10, leading, clipped": {
        "scheduler": "ddim",
        "steps": 10,
        "config": {"timestep_spacing": "leading", "clip_sample": True},
    },
    "ddim 10, class guidance 3": {"scheduler": "ddim", "steps": 10, "arguments": {"guidance_scale": 3.0}},
    "ddim 50": {"scheduler": "ddim", "steps": 50},
    "ddpm 50": {"scheduler": "ddpm", "steps": 50, "tuned_on": "ddim 50"},
    "euler 20": {"scheduler": "euler", "steps": 20, "tuned_on": "ddim 20"},
}
METHODS = ("plain", "calibrated", "nag", "plain, twice the steps")
WEIGHTS, START = (0.25, 0.5, 1.0, 2.0), -2.5
TUNE_SEED, TABLE_SEED, SHIFT_SEED, SAMPLE_SEEDS = 1, 2, 100, (101, 102)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


class Bench:
    """The model, the regressors and the images, loaded once."""

    def __init__(
        self, regressor: Path, judge: Path, frozen: Path, reference_data: Path, output: Path
    ) -> None:
        import torch

        from nag.load import NAGPipeline
        from nag.network.regressor import NoiseLevelRegressor
        from nag.quality.feature_network import SmallClassifier, extract_features
        from nag.shift.images import load_images

        self.output = output
        self.pipe = NAGPipeline.from_pretrained(MODEL, regressor=False)
        self.pipe.unet.float().eval()
        self.pipe.set_progress_bar_config(disable=True)
        self.base = self.pipe.scheduler
        self.regressor = NoiseLevelRegressor.from_pretrained(regressor).float().eval()
        self.judge = NoiseLevelRegressor.from_pretrained(judge).float().eval()
        self.frozen = NoiseLevelRegressor.from_pretrained(frozen).float().eval()
        self.frozen.attach_backbone(self.pipe.unet)
        images = {
            name: load_images(
                data=DATA / f"{name}.parquet", channels=1, resolution=16, progress=False
            ).tensor()
            for name in ("calibration", "test")
        }
        self.calibration_images, self.test_images = images["calibration"], images["test"]
        self.classifier = SmallClassifier.from_pretrained(MODEL / "classifier").float().eval()
        cache = output / "reference_features.pt.npy"
        if not cache.exists():
            import numpy as np

            real = load_images(data=reference_data, channels=1, resolution=16, progress=False).tensor()
            part = cache.with_name(f".{os.getpid()}.npy")
            np.save(part, extract_features(self.classifier, real).numpy())
            os.replace(part, cache)
        import numpy as np

        self.reference = torch.from_numpy(np.load(cache))
        self.references: dict[str, Any] = {}

    def use(self, name: str) -> None:
        """Puts a fresh scheduler of a setting into the pipeline."""
        from nag.noise.named import make_scheduler

        setting = SETTINGS[name]
        base = type(self.base).from_config({**self.base.config, **PLAIN, **setting.get("config", {})})
        self.pipe.scheduler = make_scheduler(setting["scheduler"], base)

    def shift(self, name: str, steps: int, seed: int, samples: int, judge: bool, **arguments: Any) -> Any:
        """The noise shift of one run, by the judge on the test images or by the regressor on the calibration images."""
        from nag.shift import forward_reference, measure_shift, record
        from nag.shift.calls import balanced_labels

        estimator = self.judge if judge else self.regressor
        images = self.test_images if judge else self.calibration_images
        self.use(name)
        trajectory = record(
            self.pipe,
            estimator,
            num_samples=samples,
            batch_size=256,
            num_inference_steps=steps,
            seed=seed,
            class_labels=balanced_labels(10, samples),
            keep_images=0,
            progress=False,
            **SETTINGS[name].get("arguments", {}),
            **arguments,
        )
        key = f"{name}-{steps}-{judge}"
        if key not in self.references:
            self.references[key] = forward_reference(
                images[:500], estimator, trajectory, seed=seed + 1, batch_size=250, progress=False
            )
        return measure_shift(trajectory, self.references[key])

    def samples(self, name: str, steps: int, seed: int, count: int, **arguments: Any) -> Any:
        """Features of `count` samples, `(count, F)`."""
        import torch

        from nag.quality.feature_network import extract_features
        from nag.shift.calls import balanced_labels, sample_generators

        self.use(name)
        labels, found = balanced_labels(10, count), []
        for start in range(0, count, 250):
            stop = min(start + 250, count)
            with torch.autocast("cpu", torch.bfloat16):
                images = self.pipe(
                    class_labels=labels[start:stop],
                    num_inference_steps=steps,
                    generator=sample_generators(seed, start, stop),
                    output_type="pt",
                    **SETTINGS[name].get("arguments", {}),
                    **arguments,
                ).images.float()
            images = (images * 255).round() / 255  # as a PNG would: the reference is 8 bit
            found.append(extract_features(self.classifier, images * 2 - 1, progress=False))
        return torch.cat(found)


def tune(bench: Bench, name: str) -> float:
    """The weight for a setting, chosen on the tuning seed; see the module's text."""
    from nag.quality.distances import frechet_distance

    name = SETTINGS[name].get("tuned_on", name)
    path = bench.output / f"tune-{file_name(name)}.json"
    if path.exists():
        return float(json.loads(path.read_text())["weight"])
    steps, rows = SETTINGS[name]["steps"], []

    def measure(weight: float) -> None:
        arguments = {"noise_guidance_scale": weight, "noise_guidance_interval": (START, None)}
        shift = bench.shift(name, steps, TUNE_SEED, 256, judge=False, **arguments)
        features = bench.samples(name, steps, TUNE_SEED, 500, **arguments)
        rows.append(
            {
                "weight": weight,
                "mean_abs_shift": shift.mean_abs_shift,
                "standard_error": shift.mean_abs_shift_standard_error,
                "frechet": float(frechet_distance(features, bench.reference)),
            }
        )
        print(f"tuning {name}", rows[-1], flush=True)

    for weight in (0.0, *WEIGHTS):
        measure(weight)
    shifted = rows[0]["mean_abs_shift"] > 3 * rows[0]["standard_error"]
    judged_by = "mean_abs_shift" if shifted else "frechet"
    best = min(rows[1:], key=lambda row: row[judged_by])
    while best is rows[-1] and best["weight"] < 16:  # the largest is the best: look further
        measure(2 * best["weight"])
        best = min(rows[1:], key=lambda row: row[judged_by])
    write_json(path, {"weight": best["weight"], "by": "shift" if shifted else "frechet", "rows": rows})
    return float(best["weight"])


def file_name(name: str) -> str:
    """A setting or method as part of a file's name."""
    return name.replace(", ", "-").replace(" ", "_")


def calibration_table(bench: Bench, name: str, steps: int) -> Path:
    """The file that holds the calibration of a sampler, measured once on the table's seed."""
    from nag.shift.calibrate import calibrate
    from nag.shift.calls import balanced_labels

    path = bench.output / f"calibration-{file_name(name)}.json"
    if not path.exists():
        bench.use(name)
        calibrate(
            bench.pipe,
            bench.regressor,
            bench.calibration_images[:500],
            num_inference_steps=steps,
            num_samples=512,
            batch_size=512,
            seed=TABLE_SEED,
            class_labels=balanced_labels(10, 512),
            progress=False,
            **SETTINGS[name].get("arguments", {}),
        ).save(path)
    return path


def arguments_of(bench: Bench, name: str, steps: int, method: str) -> tuple[int, dict[str, Any]]:
    """Number of steps and arguments of the pipeline for a method."""
    if method == "calibrated":
        return steps, {"noise_calibration": str(calibration_table(bench, name, steps))}
    if method == "nag":
        return steps, {"noise_guidance_scale": tune(bench, name), "noise_guidance_interval": (START, None)}
    return steps * (2 if method.endswith("twice the steps") else 1), {}


def evaluations(bench: Bench, name: str, steps: int, arguments: dict[str, Any]) -> int:
    """Network evaluations per sample."""
    from nag.noise.read import read_levels

    bench.use(name)
    bench.pipe.scheduler.set_timesteps(steps)
    levels = read_levels(bench.pipe.scheduler)
    each = 2 if "guidance_scale" in SETTINGS[name].get("arguments", {}) else 1
    extra = int((levels.log_snr >= START).sum()) if "noise_guidance_scale" in arguments else 0
    return each * len(levels) + extra


def run_cell(bench: Bench, name: str, method: str, count: int) -> None:
    """Measures one cell and writes it."""
    from nag.quality.distances import frechet_distance, manifolds

    path = bench.output / f"cell-{file_name(name)}-{file_name(method)}.json"
    if path.exists():
        return
    taken, arguments = arguments_of(bench, name, SETTINGS[name]["steps"], method)
    shift = bench.shift(name, taken, SHIFT_SEED, 512, judge=True, **arguments)
    rows = []
    for seed in SAMPLE_SEEDS:
        features = bench.samples(name, taken, seed, count, **arguments)
        found = manifolds(features, bench.reference[:count])
        rows.append(
            {
                "seed": seed,
                "frechet": float(frechet_distance(features, bench.reference)),
                "precision": float(found.precision),
                "recall": float(found.recall),
            }
        )
    cell = {
        "setting": name,
        "method": method,
        "steps_taken": taken,
        "evaluations": evaluations(bench, name, taken, arguments),
        "arguments": {k: v if not isinstance(v, str) else Path(v).name for k, v in arguments.items()},
        "mean_shift": shift.mean_shift,
        "mean_shift_standard_error": shift.mean_shift_standard_error,
        "mean_abs_shift": shift.mean_abs_shift,
        "mean_abs_shift_standard_error": shift.mean_abs_shift_standard_error,
        "steps_measured": f"{shift.num_measured}/{shift.num_steps}",
        "per_step": [
            {"log_snr": s.log_snr, "shift": s.shift, "standard_error": s.standard_error} for s in shift.steps
        ],
        "samples_per_seed": count,
        "seeds": rows,
    }
    write_json(path, cell)
    print(json.dumps({k: v for k, v in cell.items() if k not in ("per_step", "arguments")}), flush=True)


def run_gradient(bench: Bench) -> None:
    """The gradient form at DDIM 20: shift with each regressor, raw and projected."""
    from nag.corrections import NoiseGuidance

    for which in ("frozen", "full"):
        for project in (False, True):
            for weight in (0.25, 1.0):
                path = bench.output / f"gradient-{which}-{'projected' if project else 'raw'}-{weight}.json"
                if path.exists():
                    continue
                bench.pipe.regressor = bench.frozen if which == "frozen" else bench.regressor
                guidance = NoiseGuidance(
                    scale=weight, mode="gradient", project=project, max_norm=0.25 if project else None
                )
                shift = bench.shift("ddim 20", 20, SHIFT_SEED, 512, judge=True, noise_guidance=guidance)
                cell = {
                    "regressor": which,
                    "project": project,
                    "weight": weight,
                    "mean_shift": shift.mean_shift,
                    "mean_shift_standard_error": shift.mean_shift_standard_error,
                    "mean_abs_shift": shift.mean_abs_shift,
                    "mean_abs_shift_standard_error": shift.mean_abs_shift_standard_error,
                }
                write_json(path, cell)
                print(json.dumps(cell), flush=True)


def main(
    regressor: Annotated[Path, arg(help="Regressor that tunes and calibrates.")] = HERE
    / "regressors"
    / "full",
    judge: Annotated[Path, arg(help="Regressor that judges.")] = HERE / "regressors" / "judge",
    frozen: Annotated[Path, arg(help="Frozen head, for the gradient form.")] = HERE / "regressors" / "frozen",
    reference_data: Annotated[Path, arg(help="test.parquet at 16x16, 10,000 images.")] = Path(
        "data/fashion_mnist_16/test.parquet"
    ),
    output_dir: Annotated[Path, arg(help="Folder of the cells.")] = Path("outputs/evidence"),
    num_samples: Annotated[int, arg(help="Samples per seed.")] = 2500,
    shard: Annotated[str, arg(help="k/n: do every n-th cell, starting with the k-th.")] = "0/1",
) -> None:
    """Measure the embedded model."""
    output_dir.mkdir(parents=True, exist_ok=True)
    k, n = (int(part) for part in shard.split("/"))
    bench = Bench(regressor, judge, frozen, reference_data, output_dir)
    if k == n - 1:
        run_gradient(bench)
    longest = max(setting["steps"] for setting in SETTINGS.values())
    for last in (False, True):  # twice the longest runs come last
        for index, name in enumerate(SETTINGS):
            for method in METHODS:
                late = method == METHODS[-1] and SETTINGS[name]["steps"] == longest
                if index % n == k and late == last:
                    run_cell(bench, name, method, num_samples)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
