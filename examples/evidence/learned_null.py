"""A learned null embedding against zeros: fine-tunes with one, and measures both at equal cost.

    python examples/evidence/learned_null.py --models outputs/models --data_dir data --output_dir outputs/evidence

Fine-tunes `small_base` as train.py fine-tunes `small_ft_10_800`, with the same options, images and random numbers, but with
a trained vector in the place of the zeros (`learn_null_embedding`). Then both are measured as in the study
`dropout_10_800` of run.py, from the same noise: plain, noise guidance with the weight chosen for zeros, and with its own
where that is another. Zeros trained once more with another seed say how much two trainings differ anyway. Beside that, the
loss of both on held-out images with the level hidden and told, with the same noise.

A stop loses at most 100 training steps or one row; results go to docs/evidence/learned_null.json.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from run import COMMON as SHARED  # noqa: E402
from run import RESULTS, STUDIES  # noqa: E402
from train import COMMON, MODELS, call  # noqa: E402

if TYPE_CHECKING:
    from nag.finetune.denoiser import DenoiserOptions
    from nag.quality.comparison import Cell

STUDY, ZERO = "dropout_10_800", "small_ft_10_800"
LEARNED, AGAIN = f"{ZERO}_learned", f"{ZERO}_seed_1"
AGAIN_NAME = "zeros, training seed 1"
FOLDERS = {"zeros": ZERO, "learned": LEARNED, AGAIN_NAME: AGAIN}
NULL_FILE = "null_embedding.safetensors"
GUIDED = "nag:scale={},interval=-2.5..4"
HELD_OUT_SEED = 5


def learn_null_embedding(unet: Any) -> list[Any]:
    """Gives each level module a trained vector, `null_embedding`, for the place of the zeros of a hidden level.

    It is zero at first, which changes nothing, and part of the state dict from then on. A module that has one keeps it.
    """
    from torch import nn

    from nag.network.table import level_modules

    modules: list[Any] = level_modules(unet)
    for module in modules:
        if not hasattr(module, "null_embedding"):
            last = [part.weight for part in module.modules() if hasattr(part, "weight")][-1]
            module.null_embedding = nn.Parameter(last.new_zeros(len(last)))
    return [module.null_embedding for module in modules]


def save(unet: Any, scheduler: Any, folder: Path) -> None:
    """A plain diffusers pipeline, and the null embeddings beside it, which plain diffusers does not know."""
    from diffusers import DDIMPipeline
    from safetensors.torch import save_file

    from nag.files import written_whole

    state = unet.state_dict()
    null = {name: value.contiguous() for name, value in state.items() if name.endswith("null_embedding")}
    plain = type(unet).from_config(unet.config)
    plain.load_state_dict({name: value for name, value in state.items() if name not in null})
    with written_whole(folder) as part:
        DDIMPipeline(unet=plain, scheduler=scheduler).save_pretrained(part)
        save_file(null, part / NULL_FILE)


def restore(unet: Any, folder: Path) -> None:
    """Gives a UNet of a folder that `save` wrote its null embeddings."""
    from safetensors.torch import load_file

    learn_null_embedding(unet)
    unet.load_state_dict(unet.state_dict() | load_file(folder / NULL_FILE))


def flags_of(models: Path, data: Path) -> dict[str, Any]:
    """Those that `small_ft_10_800` was trained with."""
    name, flags = MODELS[ZERO]
    places = {
        "model": str(models / "small_base"),
        "data": data / f"{name}_16",
    }
    return COMMON | flags | places | {"checkpointing_steps": 100}


def options_of(models: Path, data: Path, **changes: Any) -> DenoiserOptions:
    """The same as options, for another folder."""
    from nag.finetune.denoiser import DenoiserOptions

    return DenoiserOptions(**(flags_of(models, data) | {"output_dir": models / LEARNED} | changes))


def train_model(models: Path, data: Path) -> None:
    """Fine-tunes with a learned null embedding; returns at once if that was done."""
    from nag.finetune.denoiser import DenoiserTask
    from nag.finetune.loop import check_output_dir, train
    from nag.finetune.subject import Subject
    from nag.load import NAGPipeline
    from nag.shift.images import load_images

    if (models / LEARNED / "model_index.json").exists():
        return

    class Task(DenoiserTask):
        def save(self, folder: Path) -> None:
            save(self.model, self.scheduler, folder)

    options = options_of(models, data)
    checkpoint = check_output_dir(options)
    pipe = NAGPipeline.from_pretrained(str(options.model), regressor=False)
    unet = pipe.unet.float()
    learn_null_embedding(unet)
    task = Task(Subject.of_unet(unet, pipe.scheduler), options)
    table = load_images(
        data=options.data,
        channels=unet.config.in_channels,
        resolution=unet.config.sample_size,
        label_column=options.label_column,
    )
    task.check_labels(table.labels)
    print(LEARNED, train(task, table, options, checkpoint), flush=True)


def held_out(pipes: dict[str, Any], models: Path, data: Path) -> dict[str, Any]:
    """Loss on the held-out images with the level hidden and told, the same noise for both; and how far the null moved."""
    import torch

    from nag.finetune.denoiser import DenoiserTask
    from nag.finetune.stream import Draws
    from nag.finetune.subject import Subject
    from nag.shift.images import load_images

    unet = pipes["learned"].unet
    table = load_images(
        data=data / "fashion_mnist_16" / "heldout.parquet",
        channels=unet.config.in_channels,
        resolution=unet.config.sample_size,
        label_column="label",
        progress=False,
    )
    images, labels = table.tensor(), torch.as_tensor(table.labels)

    def measured(values: torch.Tensor) -> dict[str, float]:
        return {
            "value": float(values.mean()),
            "standard_error": float(values.std()) / math.sqrt(len(values)),
        }

    found: dict[str, Any] = {"num_images": len(images), "seed": HELD_OUT_SEED}
    for kind, share in (("hidden", 1.0), ("told", 0.0)):
        losses = {}
        for name, pipe in pipes.items():
            options = options_of(models, data, level_dropout=share, class_dropout=0.0)
            task = DenoiserTask(Subject.of_unet(pipe.unet, pipe.scheduler), options)
            with torch.no_grad():
                parts = [
                    task.loss(
                        pipe.unet, images[i : i + 500], labels[i : i + 500], Draws(HELD_OUT_SEED, places)
                    )
                    for i in range(0, len(images), 500)
                    if (places := range(i, min(i + 500, len(images))))
                ]
            losses[name] = torch.cat(parts).double()
        found[kind] = {name: measured(value) for name, value in losses.items()}
        found[kind]["learned_minus_zeros"] = measured(losses["learned"] - losses["zeros"])
    with torch.no_grad():
        levels = unet.time_embedding(unet.time_proj(torch.arange(1000)))
    found["norm_of_null_embedding"] = float(unet.time_embedding.null_embedding.norm())
    found["mean_norm_of_level_embeddings"] = float(levels.norm(dim=1).mean())
    return found


def stage_of(name: str, models: Path, data: Path, output: Path) -> Any:
    """What `nag compare` loads for the study, on one of the models."""
    from nag.cli.compare import CompareOptions, load
    from nag.corrections.text import parse_methods

    setting = {key: value for key, value in (SHARED | STUDIES[STUDY]).items() if value is not None}
    for key in ("data", "features"):
        setting[key] = ROOT / setting[key]
    changes = {
        "model": str(models / FOLDERS[name]),
        "features": str(setting["features"]),
        "reference": Path(setting["reference"].format(data=data)),
        "output_dir": output,
    }
    setting = {key: tuple(value) if isinstance(value, list) else value for key, value in setting.items()}
    options = CompareOptions(**(setting | changes))
    methods = parse_methods(["plain", GUIDED.format("1|2|3|4"), *(GUIDED.format(w) for w in (1, 2, 3, 4))])
    stage, _ = load(options, methods, None)
    if name == "learned":
        restore(stage.judging.pipeline.unet, models / LEARNED)
    return stage


def measured_cell(stage: Any, method: str, folder: Path) -> Cell:
    """One row, read if it was measured before."""
    from nag.corrections.text import parse_method
    from nag.quality.comparison import cell_name, load_cell, save_cell

    path = folder / f"{cell_name('ddim', 50, method)}.json"
    if path.exists():
        return load_cell(path)
    cell = stage.cell("ddim", 50, parse_method(method))
    if cell.refused is not None:
        raise RuntimeError(f"{method} must be measurable on {folder.name}, got: {cell.refused}")
    save_cell(path, cell)
    print(folder.name, cell.chosen, cell.frechet, flush=True)
    return cell


def row(null: str, cell: Cell, plain: Cell, zeros: Cell) -> dict[str, Any]:
    """What is published of a cell, with its own model's plain cell and that of zeros to compare with."""
    from dataclasses import asdict

    from nag.quality.comparison import difference

    def minus(other: Cell) -> dict[str, float] | None:
        if other is cell:
            return None
        found = asdict(difference(cell, other))
        return {key: found[key] for key in ("value", "standard_error")} | {"resampled_within_classes": True}

    recall = cell.metric("recall")
    return {
        "null": null,
        "method": cell.chosen,
        "tuning": [{key: one[key] for key in ("method", "frechet")} for one in cell.tuning],
        "steps": cell.steps,
        "evaluations": cell.evaluations,
        "frechet": asdict(cell.frechet) | {"resampled_within_classes": True},
        "recall": None if recall is None else asdict(recall),
        "minus_plain": minus(plain),
        "minus_zeros": minus(zeros),
    }


def main(
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path("outputs/models"),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="Folder of the rows.")] = Path("outputs/evidence"),
) -> None:
    """Compare a learned null embedding with zeros."""
    import torch

    from nag.files import written_file

    train_model(models, data_dir)
    call("denoiser", models / AGAIN, flags_of(models, data_dir) | {"seed": 1})
    folders = {name: output_dir / "learned_null" / models_name for name, models_name in FOLDERS.items()}
    stages = {name: stage_of(name, models, data_dir, folder) for name, folder in folders.items()}

    def cell(name: str, method: str) -> Cell:
        return measured_cell(stages[name], method, folders[name])

    plain = {name: cell(name, "plain") for name in stages}
    best, own = (cell(name, GUIDED.format("1|2|3|4")) for name in ("zeros", "learned"))
    chosen = str(best.chosen)
    guided = {"zeros": best, "learned": own if own.chosen == chosen else cell("learned", chosen)}
    guided[AGAIN_NAME] = cell(AGAIN_NAME, chosen)
    rows = [
        row(name, group[name], plain[name], group["zeros"]) for group in (plain, guided) for name in stages
    ]
    if own.chosen != chosen:
        rows.append(row("learned", own, plain["learned"], best))
    with torch.no_grad():
        losses = held_out({name: stages[name].pipe for name in ("zeros", "learned")}, models, data_dir)
    options = stages["zeros"].options
    settings = {
        name: getattr(options, name) for name in ("num_samples", "seeds", "mixed_precision", "resamples")
    }
    found = {"study": STUDY, "settings": settings, "rows": rows, "held_out_loss": losses}
    with written_file(RESULTS / "learned_null.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
