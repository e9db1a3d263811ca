"""The small classifier, TorchScript files, and extraction in batches."""

import pytest
import torch
from torch import nn

from nag.feature_network import SmallClassifier, TorchScriptFeatures, extract_features, load_feature_network


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


def test_bad_input_is_refused(classifier, images, tmp_path):
    def network(x):
        return x.flatten(1)

    with pytest.raises(ValueError, match="sample_size must be a positive multiple of 4, got 10"):
        SmallClassifier(sample_size=10)
    with pytest.raises(
        ValueError, match=r"images must have the shape \(batch, 1, 8, 8\), got \(2, 1, 16, 16\)"
    ):
        extract_features(classifier.features, torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="path must be a TorchScript file, got"):
        load_feature_network(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract_features(network, images, batch_size=0)
    with pytest.raises(
        ValueError, match=r"images must have the shape \(batch, channels, height, width\), got \(7, 8, 8\)"
    ):
        extract_features(network, images[:, 0])
    with pytest.raises(ValueError, match=r"images must be finite and in \[-1, 1\], got values from 0 to 255"):
        extract_features(network, torch.linspace(0, 255, 256).reshape(4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images must be finite and in \[-1, 1\], got values from nan"):
        extract_features(network, torch.full((1, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="images must hold at least one image, got none"):
        extract_features(network, images[:0])
    with pytest.raises(
        ValueError, match=r"network must return features of shape \(7, F\), got \(7, 1, 8, 8\)"
    ):
        extract_features(lambda x: x, images)
    with pytest.raises(ValueError, match="network must return finite features, got NaN or infinity"):
        extract_features(lambda x: network(x) / 0, images)
