"""The data sets of the evidence, on small packages of the same form as the real ones."""

import gzip
import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def script(folder, name):
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", EXAMPLES / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepare(monkeypatch):
    module = script("evidence", "prepare")
    monkeypatch.setattr(module, "HELD_OUT", 20)
    monkeypatch.setattr(module, "TEST_PER_CLASS", 3)
    return module


def read(folder):
    parts = {}
    for name in ("train", "heldout", "test"):
        table = datasets.Dataset.from_parquet(str(folder / f"{name}.parquet")).with_format("numpy")
        parts[name] = np.stack(list(table["image"])), np.asarray(table["label"][:])
    return parts


def digits(count, seed=0):
    """Random images (10, count, 28, 28), no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (10, count, 28, 28)).astype(np.uint8)


def mnist_package(folder, images):
    (folder / "src" / "digits").mkdir(parents=True)
    for digit, stack in enumerate(images):
        text = json.dumps({"data": [round(v / 255, 3) for v in stack.flatten().tolist()]})
        (folder / "src" / "digits" / f"{digit}.json").write_text(text)
    return folder


def quickdraw_package(folder, prepare):
    (folder / "src" / "drawings").mkdir(parents=True)
    for group, names in enumerate(prepare.DRAWINGS.values()):
        for name in names.split():
            drawing = np.zeros((28, 28))
            drawing[0, : group + 1] = 1  # a line as long as the group's number, in the corner
            lines = "\n".join([json.dumps(drawing.flatten().tolist())] * 2)
            path = folder / "src" / "drawings" / f"{name.replace('_', ' ')}.ndjson.gz"
            path.write_bytes(gzip.compress(lines.encode()))
    return folder


def emoji_package(folder):
    pictures = folder / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    kinds = [
        ("Smileys & Emotion", "face-smiling"),
        ("People & Body", "hand-single-finger"),
        ("People & Body", "person"),
        ("Animals & Nature", "animal-bug"),
        ("Food & Drink", "drink"),
        ("Travel & Places", "time"),
        ("Objects", "clothing"),
        ("Objects", "tool"),
        ("Smileys & Emotion", "heart"),
        ("Flags", "flag"),
        ("Component", "skin-tone"),
    ]
    entries = []
    for kind, (category, subcategory) in enumerate(kinds):
        for number in range(5):
            names = [f"{kind}-{number}.png", f"{kind}-{number}-tone.png"]
            for tone, name in enumerate(names):
                Image.new("RGBA", (64, 64), (255, 255, 255, 20 * kind + number + 5 * tone)).save(
                    pictures / name
                )
            entry = {"category": category, "subcategory": subcategory, "has_img_google": True}
            tones = {"1F3FB": {"image": names[1], "has_img_google": number < 4}}
            entries.append(entry | {"image": names[0], "skin_variations": tones})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def test_digits_are_halved_and_split_without_overlap(prepare, tmp_path):
    images = digits(9)
    prepare.main("mnist", mnist_package(tmp_path / "package", images), tmp_path / "out")
    parts = read(tmp_path / "out")
    assert {name: np.bincount(labels).tolist() for name, (_, labels) in parts.items()} == {
        "train": [4] * 10,
        "heldout": [2] * 10,
        "test": [3] * 10,
    }
    padded = np.pad(images.astype(int), ((0, 0), (0, 0), (2, 2), (2, 2)))
    sums = sum(padded[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    expected = (sums + 2) // 4  # the nearest, halves up
    known = {expected[d, i].tobytes(): d for d in range(10) for i in range(9)}
    found = [
        (image.astype(int).tobytes(), label)
        for images, labels in parts.values()
        for image, label in zip(images, labels, strict=True)
    ]
    assert len({image for image, _ in found}) == 90  # every image once
    assert all(known[image] == label for image, label in found)
    names = datasets.Dataset.from_parquet(str(tmp_path / "out" / "test.parquet")).features["label"].names
    assert names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("zipped", [True, False])
def test_digits_of_the_idx_files_keep_their_own_test_images(prepare, tmp_path, zipped):
    train, test = digits(6), digits(4, seed=1)
    for name, stack in (("train", train), ("t10k", test)):
        flat = stack.reshape(-1, 28, 28)
        labels = np.repeat(np.arange(10, dtype=np.uint8), stack.shape[1])
        for kind, array in (("images-idx3", flat), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            data = header + array.tobytes()
            path = tmp_path / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    prepare.main("mnist", tmp_path, tmp_path / "out", size=32)
    parts = read(tmp_path / "out")
    assert {name: len(labels) for name, (_, labels) in parts.items()} == {
        "train": 40,
        "heldout": 20,
        "test": 40,
    }
    images, labels = parts["test"]
    for digit in range(10):
        found = images[labels == digit][:, 2:-2, 2:-2]
        assert {i.tobytes() for i in found} == {i.tobytes() for i in test[digit]}


def test_drawings_are_merged_and_centred(prepare, tmp_path):
    prepare.main("quickdraw", quickdraw_package(tmp_path / "package", prepare), tmp_path / "out", size=32)
    parts = read(tmp_path / "out")
    for images, labels in parts.values():
        np.testing.assert_array_equal((images == 255).sum(axis=(1, 2)), labels + 1)
        for image in images:
            rows, columns = image.nonzero()
            for place in (rows, columns):
                assert abs(place.min() + place.max() - 31) <= 1
    assert len(parts["train"][0]) == 10 * (12 * 2 - 2 - 3)


def test_emoji_lie_on_black_and_only_hands_have_skin_tones(prepare, tmp_path):
    prepare.main("emoji", emoji_package(tmp_path / "package"), tmp_path / "out")
    parts = read(tmp_path / "out")
    counts = [5, 9, 5, 5, 5, 5, 5, 5, 5, 5]  # a hand's fifth tone has no picture; the swatches are left out
    assert np.bincount(parts["train"][1]).tolist() == [n - 2 for n in counts]
    assert np.bincount(parts["heldout"][1]).tolist() == [2] * 10
    assert np.bincount(parts["test"][1]).tolist() == [5] * 10
    for images, labels in parts.values():
        flat = images.reshape(len(images), -1)
        assert (flat == flat[:, :1]).all()  # one gray value: opacity times white, over black
        assert ((flat[:, 0].astype(int) - 20 * labels >= 0) & (flat[:, 0] - 20 * labels < 10)).all()
    everything = {i.tobytes() for name in ("train", "heldout") for i in parts[name][0]}
    assert {i.tobytes() for i in parts["test"][0]} <= everything


def test_the_groups_of_drawings_are_ten_of_twelve_different_kinds(prepare):
    kinds = [name for names in prepare.DRAWINGS.values() for name in names.split()]
    assert len(prepare.DRAWINGS) == 10
    assert len(kinds) == len(set(kinds)) == 120


def test_other_sources_are_refused_before_anything_is_written(prepare, tmp_path):
    package = mnist_package(tmp_path / "package", digits(5))
    with pytest.raises(ValueError, match="size must be 8, 16 or 32, got 15. Blocks of whole pixels"):
        prepare.main("mnist", package, tmp_path / "out", size=15)
    with pytest.raises(ValueError, match="SOURCE must hold more than 5 images of every class, got 5."):
        prepare.main("mnist", package, tmp_path / "out")
    for target in ("mnist", "quickdraw"):
        with pytest.raises(ValueError, match="SOURCE must hold src, got .*empty without it. Point it at"):
            prepare.main(target, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="SOURCE must hold emoji.json, got"):
        prepare.main("emoji", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x0d\x01")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte must be an idx file of unsigned bytes"):
        prepare.main("mnist", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_classifier_serves_other_sets_and_says_so(prepare, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (90, 8, 8, 3)).astype(np.uint8), np.arange(90) % 3
    for name in ("train", "heldout", "test"):
        prepare.write(tmp_path / f"{name}.parquet", images, labels, ["a", "b", "c"])
    train = script("fashion_mnist", "train_classifier")
    with pytest.raises(ValueError, match="accuracy_split must be test or heldout, got 'train'"):
        train.main(tmp_path, tmp_path / "out", accuracy_split="train")
    train.main(
        tmp_path,
        tmp_path / "out",
        data_name="Letters",
        data_source="somewhere",
        flip=False,
        accuracy_split="heldout",
        num_train_epochs=1,
        train_batch_size=20,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "# Feature network for Letters at 8x8",
        "RGB images of shape\n(3, 8, 8)",
        "name the 3 classes",
        "on the 90 held-out images",
        "Trained on 90 images of somewhere",
        "--no_flip --accuracy_split heldout",
    ):
        assert text in card


def test_without_mirroring_a_picture_keeps_its_sides(generator):
    import torch

    from nag.quality.feature_training import augmented

    images = torch.full((64, 1, 16, 16), -1.0)
    images[:, :, :, 2] = 1.0
    for _ in range(10):
        assert augmented(images, generator, 0.0)[..., 8:].max() == -1
    assert augmented(images, generator)[..., 8:].max() == 1
