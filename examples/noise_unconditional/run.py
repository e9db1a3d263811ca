"""Samples every model of train.py with and without its noise level; a stop loses at most one row.

    python examples/noise_unconditional/run.py --models outputs/noise_unconditional/models --data_dir data
    python examples/noise_unconditional/run.py ... quality stochasticity       # only these tables
    python examples/noise_unconditional/draw.py                                # docs/noise_unconditional.md

Rows are in rows.py. The Frechet distance is on the 64 features of the embedded classifier against the test images. Samples
with and without the level start from the same noise, so that the error of their difference is that of pairs.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from rows import ROWS, TABLES, Row, load  # noqa: E402

from nag.files import written_file  # noqa: E402

RESULTS = ROOT / "docs" / "noise_unconditional"
CLASSIFIER = ROOT / "examples" / "fashion_mnist" / "model" / "classifier"


WITHIN = {"resampled_within_classes": True}  # errors of older rows are not


def _shown(measured: Any) -> dict[str, Any]:
    return {"value": measured.value, "standard_error": measured.standard_error}


def measure(row: Row, models: Path, network: Any, reference: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: quality with the level (if there is such a network), without it, and their difference."""
    import torch

    from nag.pipelines import NoiseUnconditionalPipeline
    from nag.quality.measures import frechet_difference, measure_quality
    from nag.quality.sampling import sample_features
    from nag.shift.forward import Diverged

    count = settings["num_samples"]
    labels = torch.arange(count) % 10
    found: dict[str, Any] = {"method": row.method, "sampler": row.sampler, "steps": row.steps}
    features = {}
    for told, name in zip(("with", "without"), row.models, strict=True):
        if name is None:
            continue
        pipe = load(models, name, row)
        arguments = {"num_inference_steps": row.steps, **row.arguments}
        if isinstance(pipe, NoiseUnconditionalPipeline):
            arguments["noise_condition"] = told == "with"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a threshold that is not met is in the table
                sampled = sample_features(
                    pipe,
                    network,
                    num_samples=count,
                    seed=settings["seed"],
                    arguments=arguments,
                    batch_size=settings["batch_size"],
                    each={"class_labels": labels},
                    mixed_precision="no" if row.precise else "bf16",
                )
        except Diverged:
            found[told] = {"diverged": True}
            continue
        quality = measure_quality(
            sampled.features,
            reference,
            predicted_classes=sampled.predicted_classes,
            class_labels=labels,
            resamples=settings["resamples"],
        )
        features[told] = sampled.features
        found[told] = {
            "frechet": _shown(quality.frechet) | WITHIN,
            "recall": _shown(quality.recall),
            "class_accuracy": _shown(quality.class_accuracy),
            "evaluations": sampled.passes,
        }
        if "gradient_norm_threshold" in arguments:  # of the last batch
            found[told]["updates"] = float(pipe.scheduler.steps_taken.double().mean())
            found[told]["never_stopped"] = float(pipe.scheduler.moving.double().mean())
    if len(features) == 2:
        apart = frechet_difference(
            features["with"],
            features["without"],
            reference,
            resamples=settings["resamples"],
            class_labels=labels,
        )
        found["difference"] = _shown(apart) | WITHIN
    return found


def main(
    tables: Annotated[Positional[tuple[str, ...]], arg(help=f"Of {', '.join(TABLES)}; default: all.")] = (),
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    num_samples: Annotated[int, arg(help="Samples per cell.")] = 1000,
    seed: Annotated[int, arg(help="Of the samples.")] = 101,
) -> None:
    """Sample the models of docs/noise_unconditional.md."""
    from tqdm.auto import tqdm

    from nag.quality.feature_network import load_feature_network
    from nag.quality.reference import reference_features
    from nag.shift.images import load_images

    unknown = sorted(set(tables or []) - set(TABLES))
    if unknown:
        raise SystemExit(f"tables must be among {', '.join(TABLES)}, got {', '.join(unknown)}.")
    settings = {"num_samples": num_samples, "seed": seed, "resamples": 30, "batch_size": 250}
    network = load_feature_network(CLASSIFIER)
    images = load_images(
        data=data_dir / "fashion_mnist_16" / "test.parquet",
        channels=1,
        resolution=16,
        label_column="label",
    )
    reference = reference_features(images.tensor(), network)
    wanted = [row for row in ROWS if row.table in (tables or TABLES)]
    for row in tqdm(wanted, desc="rows"):
        target = RESULTS / f"{row.table}.json"
        kept = json.loads(target.read_text()) if target.exists() else {"settings": settings, "rows": {}}
        if kept["settings"] != settings:
            raise SystemExit(f"{target} holds rows of other settings: {kept['settings']}. Move it away.")
        if row.name in kept["rows"]:
            continue
        if not all((models / name / "model_index.json").is_file() for name in row.models if name):
            tqdm.write(f"{row.name}: no model, not run")
            continue
        kept["rows"][row.name] = measure(row, models, network, reference, settings)
        with written_file(target) as part:
            part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        tqdm.write(f"{row.name}: {json.dumps(kept['rows'][row.name])}")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
