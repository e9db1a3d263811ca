"""Explicit energies: the field is the gradient, in training and in evaluation, never the network's raw output."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from nag.blind import EquilibriumMatchingScheduler
from nag.blind.energy import ENERGIES, energy_gradient, equilibrium_field, explicit_energy, gradient_of
from nag.network.null import null_level
from nag.pipelines import EqMPipeline
from tests.models import seeded, tiny_unet
from tests.oracles import draw

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 on both sides
every_kind = pytest.mark.parametrize("kind", ENERGIES)


@pytest.fixture
def double() -> UNet2DModel:
    """Class-conditional, in float64."""
    return tiny_unet(num_class_embeds=4).double()


# A known gradient: f = A x has E = x A x with gradient (A + A^T) x, and E = |A x|^2 / 2 with gradient A^T A x


@every_kind
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_gradient_of_a_quadratic(kind: str, mode, generator: torch.Generator) -> None:
    matrix, x = draw(generator, 5, 5), draw(generator, 3, 5)
    wanted = x @ (matrix + matrix.T) if kind == "dot" else x @ matrix.T @ matrix
    with mode():
        gradient = gradient_of(lambda x: x @ matrix.T, x, kind)
        assert not torch.is_grad_enabled() or mode is nullcontext
    torch.testing.assert_close(gradient, wanted, **EXACT)
    assert not gradient.requires_grad
    assert not x.requires_grad


# A real network


@every_kind
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_gradient_in_any_mode_is_that_of_finite_differences(
    double: UNet2DModel, kind: str, mode, generator: torch.Generator
) -> None:
    """Under no_grad the authors' code gives the raw output."""
    x, labels = draw(generator, 2, 1, 8, 8), torch.tensor([0, 3])
    direction, step = draw(generator, 2, 1, 8, 8), 1e-5
    with mode():
        if mode is torch.inference_mode:
            x, labels = x + 0, labels + 0  # tensors that autograd itself refuses
        gradient = energy_gradient(double, x, labels, kind)
        ahead, behind = (
            explicit_energy(double, x + sign * step * direction, labels, kind) for sign in (1, -1)
        )
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, ((ahead - behind) / (2 * step)).detach(), rtol=1e-6, atol=1e-6)
    with torch.no_grad(), null_level(double):
        raw = double(x, 0, class_labels=labels).sample
    assert float((gradient - raw).norm() / raw.norm()) > 0.1
    assert all(p.grad is None for p in double.parameters())


@every_kind
def test_energy_is_what_it_says_and_sees_no_level(double: UNet2DModel, kind: str) -> None:
    x, labels = draw(seeded(), 2, 1, 8, 8), torch.tensor([1, 2])
    with torch.no_grad(), null_level(double):
        f = double(x, 500, class_labels=labels).sample
    wanted = (x * f).sum((1, 2, 3)) if kind == "dot" else 0.5 * f.square().sum((1, 2, 3))
    with torch.no_grad():
        torch.testing.assert_close(explicit_energy(double, x, labels, kind), wanted, **EXACT)


@every_kind
def test_training_reaches_the_parameters(double: UNet2DModel, kind: str, generator: torch.Generator) -> None:
    """The loss's gradient in one weight against finite differences; attention has no fused second derivative."""
    x, labels, target = draw(generator, 2, 1, 8, 8), torch.tensor([0, 3]), draw(generator, 2, 1, 8, 8)

    def loss(create_graph: bool) -> Tensor:
        return (energy_gradient(double, x, labels, kind, create_graph=create_graph) - target).square().sum()

    loss(True).backward()
    for name in ("conv_in.weight", "mid_block.attentions.0.to_q.weight"):
        weight = dict(double.named_parameters())[name]
        assert weight.grad is not None
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-5 * direction
            values.append(float(loss(False)))
            with torch.no_grad():
                weight -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert float((weight.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_a_state_that_is_itself_differentiated(generator: torch.Generator) -> None:
    matrix = draw(generator, 4, 4)
    x = draw(generator, 2, 4).requires_grad_()
    field = gradient_of(lambda x: x @ matrix.T, x, "dot", create_graph=True)
    (second,) = torch.autograd.grad(field.sum(), x)
    torch.testing.assert_close(second, (matrix + matrix.T).sum(0).expand(2, 4), **EXACT)


@torch.no_grad()
def test_the_field_of_an_implicit_model_is_its_output(double: UNet2DModel) -> None:
    x, labels = draw(seeded(), 2, 1, 8, 8), torch.tensor([1, 2])
    with null_level(double):
        raw = double(x, 0, class_labels=labels).sample
    assert torch.equal(equilibrium_field(double, x, labels), raw)
    explicit = equilibrium_field(double, x, labels, "dot")
    torch.testing.assert_close(explicit, energy_gradient(double, x, labels, "dot"), **EXACT)


def test_refusals(double: UNet2DModel) -> None:
    x, labels = torch.zeros(1, 1, 8, 8).double(), torch.tensor([0])
    for function, kind in (
        *itertools.product((explicit_energy, energy_gradient), (None, "l2")),
        (equilibrium_field, "l2"),
        (lambda *_: pipeline(double, None).energy(x, labels), None),
    ):
        with pytest.raises(ValueError, match=f"energy.*got {kind!r}"):
            function(double, x, labels, kind)


# The pipeline's fields and energies, and their composition


def pipeline(unet: UNet2DModel, energy: str | None) -> EqMPipeline:
    return EqMPipeline(unet, EquilibriumMatchingScheduler(), energy=energy)


@pytest.mark.parametrize("kind", [None, *ENERGIES])
def test_composition_adds_fields(double: UNet2DModel, kind: str | None) -> None:
    """Written out for each sample, from fields of single classes; 3 is the class "none"."""
    pipe, x = pipeline(double, kind), draw(seeded(), 3, 1, 8, 8)
    f = torch.stack([equilibrium_field(double, x, torch.full((3,), k), kind).detach() for k in range(4)])
    none = f[3]
    labels, weights, g = [[0, 1], [2], [2, 0, 1]], [[0.5, 2.0], [1.5], [1.0, 0.25, 1.0]], 1.5
    guided, plain = none.clone(), torch.zeros_like(none)
    for k, (classes, amounts) in enumerate(zip(labels, weights, strict=True)):
        for label, amount in zip(classes, amounts, strict=True):
            guided[k] += g * amount * (f[label, k] - none[k])
            plain[k] += amount * (none[k] + g * (f[label, k] - none[k]))
    settings = {"guidance_scale": g, "condition_weights": weights}
    torch.testing.assert_close(pipe.field(x, labels, **settings), guided, rtol=1e-10, atol=1e-10)
    summed = pipe.field(x, labels, composition="sum", **settings)
    torch.testing.assert_close(summed, plain, rtol=1e-10, atol=1e-10)
    whole = pipe.field(x, [[0, 1]] * 3, composition="sum")
    torch.testing.assert_close(whole, f[0] + f[1], rtol=1e-10, atol=1e-10)
    shared = pipe.field(x, [[0, 1]] * 3, condition_weights=[0.25, 0.75])
    torch.testing.assert_close(shared, 0.25 * f[0] + 0.75 * f[1], rtol=1e-10, atol=1e-10)
    usual = none + 3 * (f[[0, 1, 2], [0, 1, 2]] - none)
    torch.testing.assert_close(pipe.field(x, [0, 1, 2], guidance_scale=3), usual, rtol=1e-10, atol=1e-10)


@every_kind
def test_the_composed_field_is_the_gradient_of_the_composed_energy(double: UNet2DModel, kind: str) -> None:
    pipe, x, direction = pipeline(double, kind), draw(seeded(), 2, 1, 8, 8), draw(seeded(1), 2, 1, 8, 8)
    arguments = {"class_labels": [[0, 1], [2]], "guidance_scale": 2.0, "condition_weights": [[1, 0.5], [1]]}
    ahead, behind = (pipe.energy(x + sign * 1e-5 * direction, **arguments) for sign in (1, -1))
    slope = (pipe.field(x, **arguments) * direction).sum((1, 2, 3))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_single_class_asks_once(class_unet: UNet2DModel) -> None:
    sizes = []
    class_unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    pipe, x = pipeline(class_unet, None), torch.zeros(2, 1, 8, 8)
    pipe.field(x, 0)
    pipe.field(x, [0, 1], guidance_scale=2.0)
    pipe.field(x, [[0, 1], [2]])
    pipe.field(x, [[0, 1], [2]], composition="sum")
    assert sizes == [2, 4, 5, 3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"class_labels": [[0], []]}, r"class_labels.*got \[\[0\], \[\]\]"),
        ({"class_labels": [[0], 1]}, r"class_labels.*got \[\[0\], 1\]"),
        ({"class_labels": [[0], [9]]}, r"class_labels.*got \[0, 9\]"),
        ({"class_labels": [[0]] * 3}, r"class_labels.*2 images, got \[\[0\], \[0\], \[0\]\]"),
        ({"class_labels": [0, 1, 2]}, r"class_labels.*2 images, got \[0, 1, 2\]"),
        ({"class_labels": [[0]]}, r"class_labels.*2 images, got \[\[0\]\]"),
        (
            {"class_labels": [[0], [1, 2]], "condition_weights": [1.0, 2.0]},
            r"condition_weights.*got \[2, 2\]",
        ),
    ],
)
def test_bad_conditions(class_unet: UNet2DModel, unet: UNet2DModel, arguments: dict, text: str) -> None:
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=text):
        pipeline(class_unet, None).field(x, **arguments)
    with pytest.raises(ValueError, match="class_labels.*1 states, got 2"):
        pipeline(class_unet, "dot").energy(x[:1], [0, 1])
    with pytest.raises(ValueError, match=r"condition_weights.*got \[1.0\]"):
        pipeline(unet, None).field(x, condition_weights=[1.0])
