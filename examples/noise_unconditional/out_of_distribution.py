"""Tells Fashion-MNIST from other images by three scores: AUROC, with its standard error.

    python examples/noise_unconditional/out_of_distribution.py --models outputs/noise_unconditional/models --data_dir data

1,000 test images against as many of MNIST, of noise, inverted and with permuted pixels. Energy of the EqM-E models,
gradient norm of the EqM models, surprise of the embedded regressor (ood.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FASHION = ROOT / "examples" / "fashion_mnist"
FIELDS = ("eqm_truncated", "eqm_linear", "eqm_piecewise", "eqm_dot", "eqm_squared_norm")
ENERGIES = ("eqm_dot", "eqm_squared_norm")


def main(
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16 and mnist_16.")] = Path("data"),
    count: Annotated[int, arg(help="Images of each kind.")] = 1000,
    output: Annotated[Path, arg(help="Result.")] = ROOT
    / "docs"
    / "noise_unconditional"
    / "out_of_distribution.json",
) -> None:
    """AUROC of energy, gradient norm and surprise."""
    from ood import auroc, ood_scores, other_images, shifted_sets

    from nag.files import written_file
    from nag.load import NAGPipeline
    from nag.pipelines import EqMPipeline
    from nag.shift.images import load_images

    def images(split: str, number: int) -> Any:
        path = data_dir / "fashion_mnist_16" / f"{split}.parquet"
        return load_images(data=path, channels=1, resolution=16, max_samples=number).tensor()

    inside, reference = images("test", count), images("heldout", count)
    outside = shifted_sets(inside) | {
        "MNIST": other_images(data_dir / "mnist_16" / "test.parquet", inside, num_images=count)
    }
    pipe = NAGPipeline.from_pretrained(FASHION / "model", regressor=FASHION / "regressors" / "full")
    asked: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "surprise of the regressor": (pipe.regressor.eval(), "surprise", {"reference": reference}),
        "surprise at log-SNR 2": (pipe.regressor, "surprise", {"reference": reference, "log_snr": 2.0}),
    }
    for score, names in (("gradient_norm", FIELDS), ("energy", ENERGIES)):
        for name in names:
            if (models / name / "model_index.json").is_file():
                model = EqMPipeline.from_pretrained(models / name)
                model.unet.eval()
                asked[f"{score.replace('_', ' ')}, {name}"] = (model, score, {})
    rows: dict[str, dict[str, Any]] = {}
    for name, (model, score, more) in asked.items():
        base = ood_scores(model, inside, score, **more)
        rows[name] = {}
        for kind, others in outside.items():
            found = auroc(base, ood_scores(model, others, score, **more))
            rows[name][kind] = {"value": found.value, "standard_error": found.standard_error}
        print(name, {kind: round(value["value"], 3) for kind, value in rows[name].items()})
    with written_file(output) as part:
        part.write_text(json.dumps({"count": count, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(tyro.cli(main, use_underscores=True))
