"""The scripts of the Fashion-MNIST example, on small synthetic files."""

import gzip
import importlib.util
from pathlib import Path

import datasets
import numpy as np
import pytest

from nag.quality.feature_network import SmallClassifier, extract_features, load_feature_network

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist"


def script(name):
    spec = importlib.util.spec_from_file_location(f"fashion_mnist_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepare():
    module = script("prepare")
    module.HELD_OUT = 30  # of the 32 synthetic images
    return module


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The four original files with 32 + 5 random images."""
    folder, random = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for name, count in (("train", 32), ("t10k", 5)):
        write_idx(
            folder / f"{name}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        )
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", random.integers(0, 10, count).astype(np.uint8))
    return folder


def test_halving_is_the_mean_of_2x2_blocks(prepare):
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    small = prepare.halve(images)
    assert small.shape == (3, 16, 16)
    assert not small[:, [0, -1]].any()  # the padding
    assert not small[:, :, [0, -1]].any()
    for i in range(14):
        for j in range(14):
            block = images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(3, 4).sum(1, dtype=int)
            np.testing.assert_array_equal(small[:, 1 + i, 1 + j], (block + 2) // 4)


def test_prepare_from_the_original_files_and_from_parquet(prepare, source, tmp_path):
    prepare.main(source, tmp_path / "a")
    images, labels = prepare.read_split(source, "train")
    parts = {
        name: datasets.Dataset.from_parquet(str(tmp_path / "a" / f"{name}.parquet"))
        for name in ("train", "heldout", "test")
    }
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "heldout": 30, "test": 5}
    for part, start in (("train", 0), ("heldout", 2)):
        np.testing.assert_array_equal(
            np.asarray(parts[part][1]["image"]), prepare.halve(images[start + 1 :][:1])[0]
        )
        assert parts[part]["label"][:] == labels[start:][: len(parts[part])].tolist()
    assert parts["test"].features["label"].names[9] == "Ankle boot"

    big = tmp_path / "parquet"
    big.mkdir()
    for split in ("train", "test"):
        prepare.as_dataset(*prepare.read_split(source, split)).to_parquet(big / f"{split}.parquet")
    prepare.main(big, tmp_path / "b")
    for name in parts:
        a, b = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in "ab")
        assert a == b


def test_prepare_refuses_other_sources(prepare, tmp_path):
    with pytest.raises(
        ValueError, match=r"SOURCE must hold train-images-idx3-ubyte.gz or train\*.parquet, got"
    ):
        prepare.main(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x0d\x01abcd"))
    with pytest.raises(
        ValueError, match="train-images-idx3-ubyte.gz must be a gzipped idx file of unsigned bytes"
    ):
        prepare.main(tmp_path, tmp_path / "out")
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((2, 14, 14), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(2, np.uint8))
    with pytest.raises(
        ValueError, match=r"SOURCE must hold 28x28 images with a label each, got \(2, 14, 14\) and \(2,\)"
    ):
        prepare.main(tmp_path, tmp_path / "out")


def test_classifier_is_trained_and_saved_with_its_card(prepare, tmp_path):
    random = np.random.default_rng(2)
    images, labels = random.integers(0, 256, (200, 16, 16)).astype(np.uint8), random.integers(0, 10, 200)
    for name in ("train", "heldout", "test"):
        prepare.as_dataset(images, labels).to_parquet(tmp_path / f"{name}.parquet")
    train = script("train_classifier")
    train.main(tmp_path, tmp_path / "out", num_train_epochs=2, train_batch_size=50)
    features = extract_features(
        load_feature_network(tmp_path / "out"), train.read(tmp_path / "test.parquet")[0]
    )
    assert features.shape == (200, 64)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Frechet distance, 200 held-out images against the 200 test images | 0.000 |" in card


def test_the_shipped_classifier_has_the_parameters_of_its_card():
    card = (EXAMPLE / "model" / "classifier" / "README.md").read_text()
    model = SmallClassifier.from_pretrained(EXAMPLE / "model" / "classifier")
    assert f"{model.num_parameters():,} parameters" in card
    assert model.config.sample_size == 16
