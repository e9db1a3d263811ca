"""The small classifier, TorchScript files, vision models of transformers, and extraction in batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
)

from nag.quality.feature_network import (
    SmallClassifier,
    TorchScriptFeatures,
    VisionModelFeatures,
    extract_features,
    features_and_classes,
    load_feature_network,
)


@pytest.fixture
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallClassifier(sample_size=8, num_classes=3, block_out_channels=(4, 6), num_features=5).eval()


@pytest.fixture
def images(generator):
    return torch.rand(7, 1, 8, 8, generator=generator) * 2 - 1


class Scripted(nn.Module):
    """Mean over the image of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 3
        assert x.shape[2] == 12
        return x.mean(dim=(2, 3))


@pytest.fixture
def scripted_file(tmp_path):
    torch.jit.script(Scripted()).save(tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_logits_are_linear_in_the_features(classifier, images):
    features = classifier.features(images)
    assert features.shape == (7, 5)
    assert (features >= 0).all()
    torch.testing.assert_close(classifier(images), classifier.to_logits(features))
    torch.testing.assert_close(classifier.logits(images), classifier(images))


def test_saved_and_loaded_classifier_is_the_same(classifier, images, tmp_path):
    classifier.save_pretrained(tmp_path)
    network = load_feature_network(tmp_path)
    torch.testing.assert_close(network(images), classifier.features(images), rtol=0, atol=0)


def test_half_precision_weights_load_as_float32(classifier, images, tmp_path):
    expected = classifier.features(images).detach()
    classifier.half().save_pretrained(tmp_path)
    features = load_feature_network(tmp_path)(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-2, atol=1e-2)  # weights rounded to 11 bits


def test_batches_do_not_change_the_features(classifier, images):
    whole = extract_features(classifier.features, images)
    torch.testing.assert_close(
        extract_features(classifier.features, images, batch_size=2), whole, rtol=1e-5, atol=1e-6
    )
    streamed = extract_features(
        classifier.features, iter([images[:3], images[:0], images[3:]]), batch_size=2, progress=True
    )
    torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-6)
    assert not whole.requires_grad


def test_torchscript_file_gets_its_size_and_channels(scripted_file, images):
    network = load_feature_network(scripted_file, size=12, channels=3)
    assert isinstance(network, TorchScriptFeatures)
    expected = nn.functional.interpolate(images, (12, 12), mode="bilinear").mean(dim=(2, 3)).expand(-1, 3)
    torch.testing.assert_close(extract_features(network, images), expected)
    big = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)
    plain = load_feature_network(scripted_file)
    torch.testing.assert_close(extract_features(plain, big), big.mean(dim=(2, 3)), rtol=0, atol=0)


# ---- class scores


def test_a_classifier_gives_its_classes_beside_the_features(classifier, images, tmp_path):
    classifier.save_pretrained(tmp_path)
    network = load_feature_network(str(tmp_path))
    features, classes = features_and_classes(network, images)
    torch.testing.assert_close(features, classifier.features(images), rtol=0, atol=0)
    assert classes.tolist() == classifier(images).argmax(1).tolist()
    assert not features.requires_grad
    assert features_and_classes(classifier.features, images)[1] is None


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x.flatten(1)[:, :3]


def test_a_torchscript_file_may_give_a_pair(images, tmp_path):
    torch.jit.script(TwoOutputs()).save(tmp_path / "net.ts")
    network = load_feature_network(tmp_path / "net.ts")
    torch.testing.assert_close(network(images), images.flatten(1), rtol=0, atol=0)
    assert features_and_classes(network, images)[1].tolist() == images.flatten(1)[:, :3].argmax(1).tolist()
    assert features_and_classes(load_feature_network(tmp_path / "net.ts"), images[:, :, :4])[1] is not None


def test_fingerprints_tell_networks_apart(classifier, scripted_file, tmp_path):
    classifier.save_pretrained(tmp_path / "a")
    again, plain = load_feature_network(tmp_path / "a"), load_feature_network(scripted_file)
    assert again.fingerprint == load_feature_network(tmp_path / "a").fingerprint
    assert plain.fingerprint == load_feature_network(scripted_file).fingerprint
    resized = load_feature_network(scripted_file, size=12, channels=3)
    with torch.no_grad():
        classifier.to_features.bias[0] += 1.0
    classifier.save_pretrained(tmp_path / "b")
    other = load_feature_network(tmp_path / "b")
    assert len({network.fingerprint for network in (again, plain, resized, other)}) == 4


# ---- vision models of transformers

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PREPROCESSOR = {  # as that of facebook/dinov2-base, for a network of 28x28
    "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": IMAGENET[0], "image_std": IMAGENET[1],
    "image_processor_type": "BitImageProcessor", "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": 32},
}  # fmt: skip
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def saved(folder, kind=Dinov2Model, config=None, preprocessor=PREPROCESSOR, seed=0):
    """A checkpoint of a small random vision model, and the model."""
    config = config or Dinov2Config(**TINY, image_size=56, patch_size=7, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "token" not in name and "position" not in name:  # so that images tell
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return model


@pytest.fixture
def colours(generator):
    """8-bit pictures (4, 3, 20, 20) inside [-1, 1], too pale for a cubic filter to leave it."""
    return torch.randint(64, 192, (4, 3, 20, 20), generator=generator) / 127.5 - 1


def by_hand(images, size=28):
    """The network's input by PIL and NumPy."""
    rows = []
    for image in ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        rows.append((np.asarray(picture) / 255 - IMAGENET[0]) / IMAGENET[1])
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()


@torch.no_grad()
def test_dinov2_gives_its_class_token_of_the_normalised_whole_image(colours, tmp_path):
    model = saved(tmp_path)
    network = load_feature_network(tmp_path)
    assert isinstance(network, VisionModelFeatures)
    rounding = 1.5 / 255 / min(IMAGENET[1])  # PIL rounds to 8 bit after each of its two passes
    torch.testing.assert_close(network.prepared(colours), by_hand(colours), rtol=0, atol=rounding)
    features, classes = features_and_classes(network, colours)
    assert classes is None
    expected = model(pixel_values=network.prepared(colours)).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    by_pil = model(pixel_values=by_hand(colours)).pooler_output
    # images differ by far more
    assert float((features - by_pil).abs().max()) < 0.2 * float(features.std(0).mean())
    assert not model._forward_hooks
    assert not network.model._forward_hooks


@torch.no_grad()
def test_an_image_of_the_right_size_is_only_normalised(generator, tmp_path):
    saved(tmp_path)
    images = torch.rand(2, 3, 28, 28, generator=generator) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    network = load_feature_network(tmp_path)
    torch.testing.assert_close(network.prepared(images), ((images + 1) / 2 - mean) / std)
    steep = torch.where(torch.arange(20) < 10, -1.0, 1.0).expand(1, 3, 20, 20)  # a cubic filter overshoots
    prepared = network.prepared(steep) * std + mean
    assert -1e-6 < float(prepared.min()) <= float(prepared.max()) < 1 + 1e-6


@torch.no_grad()
def test_gray_images_are_shown_as_rgb_in_any_batch(colours, tmp_path):
    saved(tmp_path)
    network, gray = load_feature_network(tmp_path), colours[:, :1]
    whole = extract_features(network, gray)
    torch.testing.assert_close(whole, network(gray.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(extract_features(network, gray, batch_size=3), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_classification_checkpoint_gives_scores_and_the_same_features(colours, tmp_path):
    model = saved(tmp_path / "classifier", Dinov2ForImageClassification)
    model.dinov2.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    network, plain = load_feature_network(tmp_path / "classifier"), load_feature_network(tmp_path / "plain")
    features, logits = network.features_and_logits(colours)
    torch.testing.assert_close(features, plain(colours), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, model(pixel_values=network.prepared(colours)).logits)
    assert features_and_classes(network, colours)[1].tolist() == logits.argmax(1).tolist()
    assert not network.model.base_model._forward_hooks


@torch.no_grad()
def test_a_network_without_class_token_gives_the_mean_over_positions(colours, tmp_path):
    config = ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=32)
    settings = {"do_rescale": False, "do_normalize": False, "resample": 2, "size": 32}
    model = saved(tmp_path, ConvNextModel, config, settings)
    network = load_feature_network(tmp_path)
    hidden = model(network.prepared(colours)).last_hidden_state
    torch.testing.assert_close(network(colours), hidden.mean(dim=(2, 3)))
    resized = nn.functional.interpolate((colours + 1) / 2, (32, 32), mode="bilinear")
    torch.testing.assert_close(network.prepared(colours), resized, rtol=0, atol=1e-5)


@torch.no_grad()
def test_of_a_model_of_texts_and_images_the_images_part_is_used(colours, tmp_path):
    text = {**TINY, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 9}
    vision = {**TINY, "intermediate_size": 16, "image_size": 28, "patch_size": 7}
    model = saved(tmp_path, CLIPModel, CLIPConfig(text_config=text, vision_config=vision))
    network = load_feature_network(tmp_path)
    expected = model.vision_model(network.prepared(colours)).last_hidden_state[:, 0]
    torch.testing.assert_close(network(colours), expected)


@torch.no_grad()
def test_size_replaces_the_preprocessors_and_is_in_the_fingerprint(colours, tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b", seed=1)
    saved(tmp_path / "c", preprocessor=PREPROCESSOR | {"image_mean": [0.5, 0.5, 0.5]})
    small = load_feature_network(tmp_path / "a", size=14)
    assert small.prepared(colours).shape == (4, 3, 14, 14)
    networks = [small, *(load_feature_network(tmp_path / name) for name in "abc")]
    assert len({network.fingerprint for network in networks}) == 4
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert networks[1].fingerprint == load_feature_network(tmp_path / "elsewhere").fingerprint


def test_checkpoints_that_would_give_wrong_features_are_refused(tmp_path):
    saved(tmp_path / "a")
    (tmp_path / "a" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="name_or_path.* none"):
        load_feature_network(tmp_path / "a")
    saved(tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    del weights["embeddings.cls_token"]
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"name_or_path .* without embeddings.cls_token"):
        load_feature_network(tmp_path / "b")


@pytest.mark.parametrize("name", ["absent", "nobody/no-such-model", "not a: name", "folder"])
def test_a_network_that_is_not_there_lists_what_may_be_given(name, tmp_path):
    (tmp_path / "folder").mkdir()
    given = tmp_path / "folder" if name == "folder" else name
    with pytest.raises(ValueError, match="name_or_path.* .*not found"):
        load_feature_network(given)


def test_another_kind_of_model_is_refused(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"name_or_path must be .* \(another kind of model\). Check the spelling"
    ):
        load_feature_network(tmp_path)


# ---- bad input


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        (torch.flatten, torch.linspace(0, 255, 256).reshape(4, 1, 8, 8), r"images .* from 0 to 255"),
        (torch.flatten, torch.full((1, 1, 8, 8), torch.nan), "images .* from nan"),
        (lambda x: x, torch.zeros(7, 1, 8, 8), r"network .* shape \(7, F\), got \(7, 1, 8, 8\)"),
        (lambda x: x.flatten(1) / 0, torch.zeros(7, 1, 8, 8), "network .* with 0 finite"),
    ],
)
def test_bad_input_is_refused(network, images, message):
    with pytest.raises(ValueError, match=message):
        extract_features(network, images)
