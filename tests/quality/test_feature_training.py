"""A feature network of one's own: what it sees in training, and that it learns what its images show."""

import pytest
import torch

from nag.quality.feature_network import SmallClassifier, SmallClassifierFeatures
from nag.quality.feature_training import accuracy, augmented, trained, turned


def test_augmentation_moves_images_by_at_most_one_pixel(generator):
    images = torch.full((64, 1, 16, 16), -1.0)
    images[:, :, 8, 3] = 1.0
    for _ in range(20):
        rows, columns = augmented(images, generator)[:, 0].eq(1.0).nonzero()[:, 1:].unbind(1)
        assert len(rows) == 64
        assert (rows - 8).abs().max() <= 1
        assert torch.minimum((columns - 3).abs(), (columns - 12).abs()).max() <= 1
        assert columns.min() < 8 < columns.max()  # some are flipped, some not


def test_images_are_turned_by_quarters():
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = turned(image.repeat(4, 1, 1, 1), torch.arange(4))
    expected = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert found[:, 0].tolist() == expected


@pytest.mark.parametrize("labelled", [True, False])
def test_it_learns_what_images_show(labelled, generator):
    """A bright left or upper edge in noise: the class of two; turned, it says by how much."""
    images = 0.3 * torch.randn(120, 1, 8, 8, generator=generator)
    labels = torch.arange(120) % 2 if labelled else None
    for k in range(120):
        images[k, :, :, :2] += 1.0 if labels is None or labels[k] else 0.0
    if labelled:
        images[labels == 0, :, :2] += 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallClassifier(
            sample_size=8, num_classes=2 if labelled else 4, block_out_channels=(4, 8), num_features=8
        )
        losses = list(
            trained(model, images[20:], labels if labels is None else labels[20:], steps=150, batch_size=20,
                    mirrored=0.0, generator=generator)
        )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(model, images[:20], labels if labels is None else labels[:20]) > 0.8


def test_a_classifier_sees_larger_images_reduced_by_area(generator):
    network = SmallClassifierFeatures(
        SmallClassifier(sample_size=8, block_out_channels=(4, 8), num_features=5).eval()
    )
    images = torch.rand(3, 1, 8, 8, generator=generator)
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(large), network(images))
