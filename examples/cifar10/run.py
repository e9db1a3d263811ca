"""Train a UNet on CIFAR-10, fine-tune it with level dropout for 1 % of the training, and compare samplers' corrections.

    python examples/cifar10/run.py --data DIR --output_dir OUT --features inception.pt    # a GPU, the real thing
    python examples/cifar10/run.py --data DIR --output_dir OUT --scale cpu                # minutes on a CPU, 16x16

DIR holds CIFAR-10 as `cifar10_data.py` says. Add --class_conditional, and another OUT, for the class-conditional model. All
that is done are commands of `nag`, which are printed; stages that are done are not done again, and one that was stopped
goes on where it stopped. `--stage NAME` does one stage, so that each can be a job of its own; no stage runs longer than
`--minutes` (8), after which the same command goes on.

    prepare        data/{train,heldout,test}.parquet
    features       (cpu) classifier/: a small feature network; on a GPU --features names FID's Inception network
    train-1, -2    base/: the denoiser, without level dropout
    dropout        model/: the same, fine-tuned with level dropout
    regressor      model/regressor/: a head on the frozen denoiser that reads the noise level
    calibrate      model/noise_calibration.json
    compare-1, -2  compare/: compare.html, compare.md, compare.json

Sizes and flags are in `scales.py`; what is measured, and what is only estimated, is in the README beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import tyro
from cifar10_data import write_splits
from scales import SCALES, Scale
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
STOPPED = 130
TRAIN = (
    "finetune denoiser --model_config {out}/unet.json --data {out}/data --output_dir {out}/base "
    "--resume_from_checkpoint latest --random_flip --level_dropout 0 --no_clip_sample --timestep_spacing trailing "
)
DROPOUT = (
    "finetune denoiser {out}/base --data {out}/data --output_dir {out}/model "
    "--resume_from_checkpoint latest --random_flip --level_dropout 0.2 "
)
REGRESSOR = (
    "finetune regressor {out}/model --data {out}/data "
    "--held_out_data {out}/data/heldout.parquet --output_dir {out}/model/regressor --kind frozen "
    "--resume_from_checkpoint latest "
)
CALIBRATE = "calibrate {out}/model --data {out}/data/heldout.parquet --scheduler ddim --overwrite "
COMPARE = (
    "compare {out}/model --data {out}/data/test.parquet --reference {out}/data/train.parquet --features {features} "
    "--output_dir {out}/compare --scheduler ddim "
)


class ScaleName(StrEnum):
    """The forms of the example."""

    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the example.

    Attributes:
        data: Folder with CIFAR-10.
        output: Folder of the results.
        scale: Sizes.
        class_conditional: Whether the denoiser knows the classes.
        features: TorchScript file of the feature network, or None for one that is trained here.
    """

    data: Path
    output: Path
    scale: Scale
    class_conditional: bool
    features: Path | None

    def stages(self) -> dict[str, list[str]]:
        """The stages in their order: words of a command of `nag`, none where it is done here."""
        scale = self.scale
        stages: dict[str, list[str]] = {"prepare": []}
        if scale.classifier_epochs is not None:
            stages["features"] = []
        for part in range(1, scale.parts + 1):
            pause = "" if part == scale.parts else f" --pause_at_step {self.step_after(part)}"
            stages[f"train-{part}"] = self._words(
                f"{TRAIN} --max_train_steps {scale.train_steps}{pause} {scale.train}"
            )
        steps = max(1, round(scale.dropout * scale.train_steps))
        stages["dropout"] = self._words(f"{DROPOUT} --max_train_steps {steps} {scale.tune}")
        stages["regressor"] = self._words(REGRESSOR + scale.regressor)
        stages["calibrate"] = self._words(CALIBRATE + scale.calibrate)
        for number, methods in enumerate(scale.compare_methods, 1):
            words = self._words(COMPARE + scale.compare)
            stages[f"compare-{number}"] = [*words, "--corrections", *methods]
        return stages

    def _words(self, command: str) -> list[str]:
        """The words of a command, its folders put in."""
        features = self.features or self.output / "classifier"
        return [word.format(out=self.output, features=features) for word in command.split()]

    def step_after(self, part: int) -> int:
        """The step at which a stage of the training ends."""
        return self.scale.train_steps * part // self.scale.parts

    def marker(self, stage: str) -> Path:
        """The file that says that a stage is done, and how long it took."""
        return self.output / "stages" / f"{stage}.json"

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON keeps it."""
        values = asdict(self.scale) | {"class_conditional": self.class_conditional}
        settings: dict[str, Any] = json.loads(json.dumps(values))
        return settings


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def prepare(run: Run) -> None:
    """Write the images and the configuration of the network."""
    scale = run.scale
    counts = write_splits(
        run.data,
        run.output / "data",
        size=scale.size,
        train_images=scale.train_images,
        heldout_images=scale.heldout_images,
    )
    unet = {"_class_name": "UNet2DModel", "sample_size": scale.size, "in_channels": 3, "out_channels": 3}
    unet |= scale.unet | ({"num_class_embeds": 11} if run.class_conditional else {})
    write_json(run.output / "unet.json", unet)
    print(", ".join(f"{name}: {count} images" for name, count in counts.items()))


def train_features(run: Run) -> None:
    """Train the small feature network with the script of the Fashion-MNIST example."""
    path = HERE.parent / "fashion_mnist" / "train_classifier.py"
    spec = importlib.util.spec_from_file_location("train_classifier", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(
        run.output / "data",
        run.output / "classifier",
        data_name="CIFAR-10",
        data_source=f"CIFAR-10 at {run.scale.size}x{run.scale.size}",
        num_train_epochs=run.scale.classifier_epochs,
    )


@contextmanager
def limited(minutes: float) -> Iterator[None]:
    """Interrupts what runs within, as Ctrl-C would, when the time is over."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def do(run: Run, stage: str, minutes: float) -> int:
    """One stage that is not done yet.

    Returns:
        0, or the exit code of its command: 130 if it was stopped and can go on.
    """
    from nag.cli.main import main as nag

    words = run.stages()[stage]
    print(f"\n[{stage}] {shlex.join(['nag', *words]) if words else ''}", flush=True)
    spent = run.marker(f"{stage}.part")
    before = json.loads(spent.read_text())["seconds"] if spent.exists() else 0.0
    start, code = time.monotonic(), 0
    try:
        with limited(minutes):
            if words:
                nag(words)
            else:
                {"prepare": prepare, "features": train_features}[stage](run)
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt:
        code = STOPPED
    seconds = round(before + time.monotonic() - start, 1)
    write_json(spent if code else run.marker(stage), {"seconds": seconds, "command": words})
    if code == 0:
        spent.unlink(missing_ok=True)
        print(f"[{stage}] done in {seconds:.0f} s", flush=True)
    return code


def check(run: Run, stage: str | None) -> list[str]:
    """Refuse what cannot work before anything is done; returns the stages to do.

    Raises:
        ValueError: If the stage is unknown, the feature network is missing, or the folder holds another run.
        RuntimeError: If an earlier stage is not done yet.
    """
    names = list(run.stages())
    if stage is not None and stage not in names:
        raise ValueError(f"stage must be one of {', '.join(names)}, got {stage!r}. Check the spelling.")
    if run.scale.classifier_epochs is None and (run.features is None or not run.features.is_file()):
        raise ValueError(
            f"features must be the TorchScript file of FID's Inception network, got {run.features}. "
            "Name it, or use --scale cpu."
        )
    path = run.output / "settings.json"
    if path.exists() and json.loads(path.read_text()) != run.settings():
        raise ValueError(
            f"output_dir must hold a run of the same settings, got another in {run.output}. Name another folder."
        )
    if stage is not None:
        missing = [name for name in names[: names.index(stage)] if not run.marker(name).exists()]
        if missing:
            raise RuntimeError(
                f"stage must come after {missing[0]}, got {stage!r} before it. Run --stage {missing[0]} first."
            )
        names = [stage]
    return [name for name in names if not run.marker(name).exists()]


def main(
    data: Annotated[Path, arg(help="Folder with CIFAR-10: tiles or parquet files.")],
    output_dir: Annotated[Path, arg(help="Folder of the results.")],
    scale: Annotated[ScaleName, arg(help="The form of the example.")] = ScaleName.GPU,
    stage: Annotated[str | None, arg(help="Do this stage only.")] = None,
    class_conditional: Annotated[bool, arg(help="Train a class-conditional denoiser.")] = False,
    features: Annotated[Path | None, arg(help="TorchScript file of FID's Inception network.")] = None,
    minutes: Annotated[float, arg(help="Stop a stage after so many minutes; the next call goes on.")] = 8.0,
) -> None:
    """Train on CIFAR-10, fine-tune with level dropout, and compare."""
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}. The default is 8.")
    run = Run(
        data=data,
        output=output_dir,
        scale=SCALES[scale],
        class_conditional=class_conditional,
        features=features,
    )
    todo = check(run, stage)
    write_json(output_dir / "settings.json", run.settings())
    for name in todo:
        code = do(run, name, minutes)
        if code:
            print(f"[{name}] {'stopped; the same command goes on' if code == STOPPED else 'failed'}")
            sys.exit(code)
    done = [name for name in run.stages() if run.marker(name).exists()]
    seconds = {name: json.loads(run.marker(name).read_text())["seconds"] for name in done}
    shown = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{shown}; {sum(seconds.values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True, config=(tyro.conf.EnumChoicesFromValues,))
