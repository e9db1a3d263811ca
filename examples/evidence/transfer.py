"""How well does a calibration table carry over? Measured on the embedded model with DDIM, 20 steps.

    python examples/evidence/transfer.py --output docs/evidence/transfer.json --reference data/fashion_mnist_16/test.parquet

Tables are measured with few and many samples, on two seeds, on other classes and at another class guidance than they are
then used with (which `NoiseCalibration` itself refuses; here their levels are passed by hand). Every row is compared with
plain sampling from the same noise. A stop loses at most one row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
FASHION = HERE.parent / "fashion_mnist"
STEPS = 20

# name: (what the table is measured with, what it is used with); classes 0..9 unless named
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        f"{count} samples, seed {seed}": ({"num_samples": count, "seed": seed}, {})
        for count in (16, 64, 256, 1024)
        for seed in (2, 3)
    },
    "regressor frozen": ({"regressor": "frozen"}, {}),
    "regressor judge": ({"regressor": "judge"}, {}),
    "classes 0-4 on 0-4": ({"classes": range(5)}, {"classes": range(5)}),
    "classes 5-9 on 0-4": ({"classes": range(5, 10)}, {"classes": range(5)}),
    "guidance 2 on 2": ({"guidance_scale": 2.0}, {"guidance_scale": 2.0}),
    "guidance 1 on 2": ({}, {"guidance_scale": 2.0}),
    "20 steps on 40, interpolated": ({}, {"steps": 40}),
    "40 steps on 40": ({"steps": 40}, {"steps": 40}),
}


def main(
    output: Annotated[Path, arg(help="JSON file of the rows.")],
    reference: Annotated[Path, arg(help="Images the distances are taken to.")],
    num_samples: Annotated[int, arg(help="Samples per seed.")] = 1000,
    seeds: Annotated[tuple[int, ...], arg(help="Seeds of the samples.")] = (101,),
) -> None:
    """Measure how calibration tables carry over."""
    import numpy as np
    import torch

    from nag.files import written_file
    from nag.load import NAGPipeline
    from nag.network.regressor import NoiseLevelRegressor
    from nag.noise.named import make_scheduler
    from nag.quality.distances import frechet_distance
    from nag.quality.feature_network import extract_features, load_feature_network
    from nag.quality.resampling import bootstrap_difference
    from nag.quality.sampling import sample_features
    from nag.shift.calibrate import calibrate
    from nag.shift.images import load_images

    pipe = NAGPipeline.from_pretrained(FASHION / "model", regressor=False)
    pipe.unet.float().eval()
    pipe.scheduler = make_scheduler(
        "ddim",
        type(pipe.scheduler).from_config(
            {**pipe.scheduler.config, "clip_sample": False, "timestep_spacing": "trailing"}
        ),
    )
    regressors = {}
    for name in ("full", "frozen", "judge"):
        regressors[name] = NoiseLevelRegressor.from_pretrained(FASHION / "regressors" / name).float().eval()
    regressors["frozen"].attach_backbone(pipe.unet)
    network = load_feature_network(str(FASHION / "model" / "classifier"))

    def images(path: Path) -> Any:
        return load_images(data=path, channels=1, resolution=16, label_column="label", progress=False)

    held_out = images(FASHION / "data" / "calibration.parquet").tensor()[:500]
    real = images(reference)
    features, classes = extract_features(network, real.tensor(), progress=False), torch.as_tensor(real.labels)

    def labels(count: int, chosen: Any) -> torch.Tensor:
        return torch.tensor(list(chosen))[torch.arange(count) % len(chosen)]

    def table(settings: dict[str, Any]) -> Any:
        count = settings.get("num_samples", 512)
        return calibrate(
            pipe,
            regressors[settings.get("regressor", "full")],
            held_out,
            num_inference_steps=settings.get("steps", STEPS),
            num_samples=count,
            batch_size=min(count, 512),
            seed=settings.get("seed", 2),
            class_labels=labels(count, settings.get("classes", range(10))),
            guidance_scale=settings.get("guidance_scale", 1.0),
            progress=False,
        )

    def sampled(seed: int, use: dict[str, Any], levels: Any = None) -> torch.Tensor:
        arguments = {
            "num_inference_steps": use.get("steps", STEPS),
            "guidance_scale": use.get("guidance_scale", 1.0),
            "noise_calibration": levels,
        }
        return sample_features(
            pipe,
            network,
            num_samples=num_samples,
            seed=seed,
            arguments=arguments,
            each={"class_labels": labels(num_samples, use.get("classes", range(10)))},
            keep_images=0,
            mixed_precision="bf16",
            progress=False,
        ).features

    before = json.loads(output.read_text()) if output.exists() else {"rows": {}}
    if before["rows"] and (before["num_samples"], before["seeds"]) != (num_samples, list(seeds)):
        raise SystemExit(
            f"output must have been measured with {num_samples} samples of the seeds {seeds}, got {output} with "
            f"{before['num_samples']} of {before['seeds']}. Name another file."
        )
    rows = before["rows"]
    plain: dict[str, torch.Tensor] = {}
    for name, (measured, used) in ROWS.items():
        if name in rows:
            continue
        key = repr(used)
        if key not in plain:
            plain[key] = torch.cat([sampled(seed, used) for seed in seeds])
        found = table(measured)
        shift, steps = np.array(found.shift), used.get("steps", STEPS)
        if steps != measured.get("steps", STEPS):
            nominal = np.array(found.nominal_log_snr)
            pipe.scheduler.set_timesteps(steps)
            from nag.noise.read import read_levels

            wanted = read_levels(pipe.scheduler).log_snr.numpy()
            shift = np.interp(wanted, nominal, shift)
            levels = (wanted - 2 * shift).tolist()
        else:
            levels = list(found.log_snr)
        corrected = torch.cat([sampled(seed, used, levels) for seed in seeds])
        chosen = torch.isin(classes, torch.tensor(list(used.get("classes", range(10)))))
        target = features[chosen]
        difference = bootstrap_difference(
            frechet_distance,
            plain[key],
            corrected,
            target,
            resamples=30,
            generator=torch.Generator().manual_seed(0),
            class_labels=labels(num_samples, used.get("classes", range(10))).repeat(len(seeds)),
        )
        rows[name] = {
            "plain": frechet_distance(plain[key], target),
            "calibrated": frechet_distance(corrected, target),
            "difference": difference.value,
            "standard_error": difference.standard_error,
            "resampled_within_classes": True,
            "mean_shift_of_table": float(np.mean(shift[shift != 0])) if bool((shift != 0).any()) else 0.0,
            "steps": steps,
        }
        print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
        with written_file(output) as part:
            part.write_text(
                json.dumps({"num_samples": num_samples, "seeds": seeds, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
