"""`nag accuracy`: regressors against the Fisher floor."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from nag.cli.options import ModelOptions, free_for

__all__ = ["AccuracyOptions", "run"]

FILES = ("accuracy.json", "accuracy.png")


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(ModelOptions):
    """Measure a regressor's error per noise level against the Fisher floor: accuracy.json and accuracy.png.

    nag accuracy MODEL --data IMAGES --regressors frozen full
    """

    regressors: Annotated[tuple[str, ...], arg(aliases=["--regressor"])] = ()
    """Regressors: folders or Hub ids. Empty: the one beside the model."""
    num_images: int = 1000
    batch_size: int = 250
    """Images per batch."""
    output_dir: Path = Path("outputs/accuracy")
    """Folder of the result."""
    overwrite: bool = False
    """Replace the files of a folder that is in use."""


def run(options: AccuracyOptions) -> None:
    """Measures regressors against the Fisher floor; writes accuracy.json and accuracy.png."""
    from nag.files import written_file
    from nag.quality.bench import held_out_images, needed, open_bench, open_regressor
    from nag.shift.accuracy import measure_accuracy, plot_accuracy

    model, output_dir = options.model, options.output_dir
    num_images, seed, batch_size = options.num_images, options.seed, options.batch_size
    free_for(output_dir, FILES, overwrite=options.overwrite)
    targets = [output_dir / name for name in FILES]
    bench = open_bench(
        model,
        options,
        num_images=num_images,
        regressor=(options.regressors or (None,))[0],
        device=options.device,
    )
    named = {Path(one).name: open_regressor(bench.pipeline, one) for one in options.regressors} or {
        "regressor": needed(bench.regressor, model)
    }
    with_labels = any(one.config.uses_class for one in named.values())
    bench = bench.holding(held_out_images(bench.pipeline, options, num_images, with_labels=with_labels))
    results = {}
    for name, regressor in named.items():
        judged = replace(bench, regressor=regressor)
        results[name] = measure_accuracy(
            regressor,
            bench.images,
            class_labels=judged.labels(),
            told=judged.told(),
            seed=seed,
            batch_size=batch_size,
        )
        found = results[name]
        print(
            f"{name} ({regressor.config.kind})\n{'log-SNR':>8} {'RMSE':>8} {'floor':>8} {'ratio':>6} {'bias':>8}"
        )
        for row in zip(found.log_snr, found.rmse, found.floor, found.ratio, found.bias, strict=True):
            print(f"{row[0]:8.1f} {row[1]:8.4f} {row[2]:8.4f} {row[3]:6.2f} {row[4]:+8.4f}")
        print(
            f"90 % interval covers {100 * found.coverage_90:.1f} ± {100 * found.coverage_standard_error:.1f} %"
        )
    settings = {"model": model, "data": options.data, "images": bench.note, "seed": seed}
    text = json.dumps(
        {"settings": settings, "regressors": {k: v.to_dict() for k, v in results.items()}}, indent=1
    )
    for target, write in (
        (targets[0], lambda path: path.write_text(text + "\n")),
        (targets[1], lambda path: plot_accuracy(results, path)),
    ):
        with written_file(target) as part:
            write(part)
    print(f"Written: {targets[0]}, {targets[1]}")
