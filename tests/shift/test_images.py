"""The one image table: classes by name, captions, splits, and what was done to images of another size."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from nag.shift.data import DataOptions
from nag.shift.images import fingerprint_of_images, load_images

SIZE = {"channels": 1, "resolution": 4}


def pixels(k: int, height: int = 4, width: int = 4) -> Image.Image:
    return Image.fromarray(np.full((height, width), 10 * k, dtype=np.uint8))


def written(path, features=None, count=4, **columns):
    data = {"image": [pixels(k) for k in range(count)], **columns}
    found = Features({"image": ImageFeature(), **features}) if features else None
    Dataset.from_dict(data, features=found).to_parquet(path)
    return path


def test_names_become_classes(tmp_path):
    """In alphabetical order, or as the data set declares them; numbers stay."""
    text = {"image": ImageFeature(), "label": Value("string")}
    path = written(tmp_path / "a.parquet", text, label=["fox", "ant", "owl", "ant"])
    table = load_images(path, **SIZE, label_column="label")
    assert (table.labels.tolist(), table.class_names) == ([1, 0, 2, 0], ("ant", "fox", "owl"))
    first = load_images(path, **SIZE, label_column="label", max_samples=1)  # as all rows have them
    assert (first.labels.tolist(), first.class_names) == ([1], ("ant", "fox", "owl"))
    declared = {"label": ClassLabel(names=["owl", "fox", "ant"])}
    path = written(tmp_path / "b.parquet", declared, label=["fox", "ant", "owl", "ant"])
    table = load_images(path, **SIZE, label_column="label")
    assert (table.labels.tolist(), table.class_names) == ([1, 2, 0, 2], ("owl", "fox", "ant"))
    path = written(tmp_path / "c.parquet", label=[7, 3, 7, 0])
    table = load_images(path, **SIZE, label_column="label")
    assert (table.labels.tolist(), table.class_names) == ([7, 3, 7, 0], None)
    assert load_images(path, **SIZE).classes is None


def test_captions(tmp_path):
    path = written(tmp_path / "a.parquet", prompt=["p"] * 4, caption=["a", "b", None, "d"])
    assert load_images(path, **SIZE).captions == ["a", "b", "", "d"]
    assert load_images(path, **SIZE).subset(range(1, 3)).captions == ["b", ""]
    assert load_images(path, **SIZE, caption_column="prompt").captions == ["p"] * 4
    several = written(tmp_path / "b.parquet", text=[["a", "x"], ["b"], ["c"], []])
    assert load_images(several, **SIZE).captions == ["a", "b", "c", ""]
    assert load_images(written(tmp_path / "c.parquet", label=[0] * 4), **SIZE).captions is None
    with pytest.raises(ValueError, match="data must have a column 'words', got .*--caption_column"):
        load_images(path, **SIZE, caption_column="words")


def test_captions_stay_with_their_images_where_some_are_left_out(tmp_path):
    for k in (0, 2):
        pixels(k).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    rows = "\n".join(f'{{"file_name": "{k}.png", "text": "image {k}"}}' for k in range(3))
    (tmp_path / "metadata.jsonl").write_text(rows)
    table = load_images(tmp_path, **SIZE, skip_unreadable_images=True)
    found = [
        (caption, round((table[i][0].mean().item() + 1) * 127.5)) for i, caption in enumerate(table.captions)
    ]
    assert found == [("image 0", 0), ("image 2", 20)]


def test_splits(tmp_path):
    """Training reads train; measuring what is held out, where it is; and both what is named."""
    written(tmp_path / "train.parquet", count=1)
    written(tmp_path / "test.parquet", count=2)
    written(tmp_path / "validation.parquet", count=3)
    asked = {"channels": 1, "resolution": 4, "labels": False}
    for split, held_out, count in ((None, False, 1), (None, True, 3), ("test", True, 2), ("test", False, 2)):
        options = DataOptions(data=str(tmp_path), split=split)
        assert len(options.images(**asked, held_out=held_out)) == count
    with pytest.raises(ValueError, match=r"data must hold images or extra\*.parquet"):
        DataOptions(data=str(tmp_path), split="extra").images(**asked)


def test_splits_of_folders(tmp_path):
    for split, count in (("train", 1), ("test", 2)):
        (tmp_path / split).mkdir()
        for k in range(count):
            pixels(k).save(tmp_path / split / f"{k}.png")
    assert len(load_images(tmp_path, **SIZE)) == 1
    assert len(load_images(tmp_path, **SIZE, held_out=True)) == 2
    with pytest.raises(ValueError, match="split must be one of train, test, got extra"):
        load_images(tmp_path, **SIZE, split="extra")


def test_splits_of_the_hub(monkeypatch):
    """Training asks for train; measuring asks which splits there are, and takes what is held out."""
    import datasets

    rows = Dataset.from_dict({"image": [pixels(0)]}, features=Features({"image": ImageFeature()}))
    asked = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "extra", "test"])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *words, **named: asked.append((words, named)) or rows
    )
    for held_out in (False, True):
        options = DataOptions(data="someone/images", dataset_config_name="small")
        options.images(channels=1, resolution=4, labels=False, held_out=held_out)
    one = ("someone/images", "small")
    assert asked == [(one, {"split": "train"}), (one, {"split": "test"})]


def test_images_of_another_size_are_counted(tmp_path):
    for k, shape in enumerate(((4, 4), (8, 8), (6, 9))):
        pixels(k, *shape).save(tmp_path / f"{k}.png")
    table = load_images(tmp_path, **SIZE)
    assert table.note == "3 images of 4x4, 2 of them cropped to their middle square and resized"
    table.bytes = None  # as in a large set, whose images are decoded whenever they are read
    assert (len(table.tensor()), table.resized) == (3, 2)
    assert load_images(tmp_path, **SIZE, center_crop=False).note == "3 images of 4x4, 2 of them resized"
    assert load_images(tmp_path, **SIZE, max_samples=1).note == "1 images of 4x4"


def test_fingerprint_of_images_is_of_values_order_and_shape(generator):
    images = torch.rand(30, 1, 8, 8, generator=generator)
    whole = fingerprint_of_images(images)
    other = images.clone()
    other[29, 0, 7, 7] += 1e-3
    assert fingerprint_of_images(other) != whole
    assert fingerprint_of_images(images.flip(0)) != whole
    assert fingerprint_of_images(images.reshape(30, 1, 4, 16)) != whole
