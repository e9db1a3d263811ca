"""The laws of a corrected run, in every pipeline of the zoo.

Off is bit-identical. On, the run is the one that is guided by hand. Nothing is left behind.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import nag
from nag.corrections import Calibrated, Correction, DirectionGuidance
from nag.network.direction import DirectionHead
from nag.network.table import architecture_of
from nag.noise.read import read_levels
from tests import models
from tests.seams.case import Case, call
from tests.seams.exhibit import DIFFUSERS_WARNS, SCALE, Exhibit, Watch, everywhere
from tests.seams.reference import answer_of, change_answer, guided_by_hand
from tests.seams.traces import traces
from tests.seams.zoo import zoo_where

HEARD = (
    "DDPM",
    "Stable Diffusion",
    "Stable Diffusion, Heun",
    "inpaint, nine channels",
    "ControlNet",
    "InstructPix2Pix",
)
HEARD += (
    "perturbed attention",
    "DiT",
    "Stable Diffusion 3",
    "Flux, distilled guidance",
    "PixArt-Sigma",
    "HunyuanDiT",
    "Sana",
)
"""Pipelines with one network and one call in each step, whose networks can have a direction head."""

pytestmark = [pytest.mark.filterwarnings(text) for text in DIFFUSERS_WARNS]


def corrected(exhibit: Exhibit, *corrections: Correction, **more: Any) -> Tensor:
    """What the pipeline returns under these corrections."""
    with nag.corrected(exhibit.pipe, *corrections):
        return call(exhibit.pipe, exhibit.case, **more)


def assert_guided(output: Tensor, reference: Tensor, plain: Tensor) -> None:
    """Batches of another size: the same to 1e-3 of the change that guidance makes, to a fifth in half precision.

    A solver and a class guidance of 3 multiply the rounding of an answer, 1e-7 of it in float32, by some hundred.
    """
    share = 1e-3 if torch.finfo(models.PLACE[1]).bits >= 32 else 0.2
    change = (reference - plain).abs().max().item()
    torch.testing.assert_close(output, reference, rtol=0, atol=share * change)


@pytest.mark.parametrize("correction", [lambda: everywhere(0.0), Watch], ids=["a scale of 0", "watching"])
def test_off_is_bit_identical(exhibit: Exhibit, correction: Callable[[], Correction]) -> None:
    output = corrected(exhibit, correction())
    torch.testing.assert_close(output, exhibit.plain, rtol=0, atol=0)


@zoo_where(lambda case: not case.refused)
@pytest.mark.parametrize("null_pass", ["auto", "whole"])
def test_guided_is_as_by_hand(exhibit: Exhibit, null_pass: str) -> None:
    output = corrected(exhibit, everywhere(SCALE, null_pass=null_pass))
    reference, _ = exhibit.guided_by_hand
    assert_guided(output, reference, exhibit.plain)


@zoo_where(lambda case: case.name in HEARD)
def test_a_direction_head_hears_the_conditional_rows(exhibit: Exhibit) -> None:
    """By hand: every row of a call += w h(z of its conditional rows), with a head that does not look at the level."""
    ((name, _),) = exhibit.case.levels.items()
    network, rows = getattr(exhibit.pipe, name), exhibit.case.rows
    head = DirectionHead.of(network, hidden=4).requires_grad_(False).to(*models.PLACE)
    head.level[0].weight[:, :8] = 0
    head.last.weight.normal_(generator=torch.Generator(models.PLACE[0]).manual_seed(0))
    output = corrected(exhibit, DirectionGuidance(scale=0.1, head=head))
    copied = copy.deepcopy(exhibit.pipe)
    other = getattr(copied, name)
    plain, kept = other.forward, list[Tensor]()
    last = other.get_submodule(architecture_of(other).features)
    last.register_forward_pre_hook(lambda _, given: kept.append(given[0]))

    def forward(*given: Any, **options: Any) -> Any:
        found = plain(*given, **options)
        value = answer_of(found).clone()
        n, j = len(value) // len(rows), rows.index("c")
        shape = (n, exhibit.case.channels or value.shape[1], *value.shape[2:])
        change = head(kept[-1][j * n : (j + 1) * n], torch.zeros(n), value.new_zeros(shape))
        value[:, : shape[1]] += 0.1 * change.repeat(len(rows), *[1] * (value.ndim - 1))
        return change_answer(found, value)

    other.forward = forward
    assert_guided(output, call(copied, exhibit.case), exhibit.plain)


@zoo_where(lambda case: bool(case.refused))
def test_refused_in_words(exhibit: Exhibit) -> None:
    with pytest.raises((ValueError, RuntimeError), match="must"):
        corrected(exhibit, everywhere(SCALE))
    torch.testing.assert_close(call(exhibit.pipe, exhibit.case), exhibit.plain, rtol=0, atol=0)


@zoo_where(lambda case: not case.refused and case.linear)
def test_affine_in_the_scale(exhibit: Exhibit) -> None:
    """Twice the scale moves the first guided prediction twice as far; later ones are made for other states."""
    first, i = [], int(exhibit.case.noise_first)
    for scale in (0.0, SCALE, 2 * SCALE):
        watch = Watch()
        corrected(exhibit, everywhere(scale), watch)
        first.append(watch.values[i])
        torch.testing.assert_close(watch.states[i], exhibit.watched_by_hand[1].states[i], rtol=0, atol=0)
    once, twice = first[1] - first[0], first[2] - first[0]
    assert once.norm() > 1e-4 * first[0].norm()
    size = max(value.abs().max().item() for value in first)
    eps = torch.finfo(models.PLACE[1]).eps  # differences of rounded numbers
    torch.testing.assert_close(twice, 2 * once, rtol=0, atol=100 * eps * size)


@zoo_where(lambda case: not case.uncalibratable)
def test_a_table_without_entries_is_bit_identical(exhibit: Exhibit) -> None:
    steps = len(levels_of(exhibit))
    output = corrected(exhibit, Calibrated([None] * steps))
    torch.testing.assert_close(output, exhibit.plain, rtol=0, atol=0)


@zoo_where(lambda case: not case.uncalibratable and case.nominal)
def test_a_nominal_table_is_the_identity(exhibit: Exhibit) -> None:
    """State and prediction go to float64 levels and back, and the label is computed from the level: 1e-3 of the size."""
    output = corrected(exhibit, Calibrated(levels_of(exhibit)))
    size = exhibit.plain.abs().max().item()
    torch.testing.assert_close(output, exhibit.plain, rtol=0, atol=1e-3 * size)


@zoo_where(lambda case: not case.uncalibratable)
def test_another_table_is_not(exhibit: Exhibit) -> None:
    """The law above would hold for a table that nobody reads."""
    output = corrected(exhibit, Calibrated([level + 1.0 for level in levels_of(exhibit)]))
    assert (output - exhibit.plain).norm() > 1e-2 * exhibit.plain.norm()


@zoo_where(lambda case: case.name == "HunyuanDiT")
def test_a_table_tells_timesteps_in_the_pipeline_s_precision(exhibit: Exhibit) -> None:
    """This pipeline's network computes in the precision of its timestep."""
    pipe = exhibit.case.build().to(torch.bfloat16)
    plain = call(pipe, exhibit.case)
    with nag.corrected(pipe, Calibrated([1.0] * len(pipe.scheduler.timesteps))):
        moved = call(pipe, exhibit.case)
    assert moved.isfinite().all()
    assert not torch.equal(moved, plain)


@zoo_where(lambda case: bool(case.uncalibratable))
def test_a_table_is_refused_with_the_scheduler_s_name(exhibit: Exhibit) -> None:
    assert exhibit.plain is not None  # its timesteps are set
    with pytest.raises(ValueError, match=type(exhibit.pipe.scheduler).__name__):
        corrected(exhibit, Calibrated([1.0] * len(exhibit.pipe.scheduler.timesteps)))


def levels_of(exhibit: Exhibit) -> list[float]:
    """The nominal log-SNR of each of the scheduler's steps, as the last call has set them."""
    assert exhibit.plain is not None
    levels: list[float] = read_levels(exhibit.pipe.scheduler).log_snr.tolist()
    return levels


def test_watched_states_are_those_of_the_scheduler(exhibit: Exhibit) -> None:
    watch = Watch()
    corrected(exhibit, watch)
    _, seen = exhibit.watched_by_hand
    begin = watch.steps[0]
    assert watch.steps == list(range(begin, begin + len(seen.states)))
    assert begin + len(seen.states) == len(exhibit.pipe.scheduler.timesteps)
    for state, reference in zip(watch.states, seen.states, strict=True):
        torch.testing.assert_close(state, reference, rtol=0, atol=0)


@dataclass(frozen=True)
class Levels(Correction):
    """Asks again, told the level of the step's label, one for all samples and one for each: how far off the answers are."""

    changes: list[Tensor] = field(default_factory=list)

    def direction(self, at: Any) -> None:
        level = at.levels.log_snr_of(torch.as_tensor(at.timestep).double())
        for levels in (level, level.expand(len(at.u))):
            self.changes.append((at.ask(log_snr=levels) - at.told).norm() / at.told.norm())


@zoo_where(lambda case: not case.refused and case.name != "consistency model")  # its levels are not read
def test_a_network_is_told_one_level_or_one_for_each_sample(exhibit: Exhibit) -> None:
    levels = Levels()
    corrected(exhibit, levels)
    assert max(levels.changes) < 1e-3  # batches of another size


@dataclass(frozen=True)
class Inputs(Correction):
    """Writes down what the network is asked, the state in the same step, and how an answer changes if asked again about it."""

    asked: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)

    def direction(self, at: Any) -> None:
        self.asked.append(at.u.clone())
        self.changes.append((at.ask(u=at.u) - at.told).norm() / at.told.norm())

    def prediction(self, at: Any, value: Tensor) -> Tensor:
        self.states.append(at.u.clone())
        return value


@zoo_where(lambda case: not case.refused and case.name != "consistency model")  # its levels are not read
def test_a_correction_sees_the_state_in_the_question(exhibit: Exhibit) -> None:
    """Without the channels of a mask or a control image that stand beside it."""
    inputs = Inputs()
    corrected(exhibit, inputs)
    assert inputs.asked
    for asked, state in zip(inputs.asked, inputs.states, strict=True):
        torch.testing.assert_close(asked.reshape(-1, *state.shape[1:]), state[: len(asked)])
    assert max(inputs.changes) < 1e-3  # batches of another size


class Combined(DiffusionPipeline):
    """A pipeline around another one, such as Kandinsky's."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, **arguments: Any) -> Any:
        return self.part(**arguments)


@zoo_where(lambda case: case.name == "inpaint, nine channels")
def test_a_combined_pipeline_has_the_state_of_its_part(exhibit: Exhibit) -> None:
    inputs, pipe = Inputs(), Combined(exhibit.pipe.unet, exhibit.pipe.scheduler)
    pipe.part = exhibit.pipe
    with nag.corrected(pipe, inputs):
        call(pipe, exhibit.case)
    assert inputs.asked
    for asked, state in zip(inputs.asked, inputs.states, strict=True):
        torch.testing.assert_close(asked, state)
    assert not {"prepare_latents"} & set(vars(exhibit.pipe))


@zoo_where(lambda case: case.callback)
def test_watched_states_are_those_of_the_callback(exhibit: Exhibit) -> None:
    watch, reached = Watch(), []

    def keep(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        reached.append(kept["latents"].clone())
        return {}

    corrected(exhibit, watch, callback_on_step_end=keep)
    assert len(watch.states) == len(reached)
    for state, before in zip(watch.states[1:], reached[:-1], strict=True):
        torch.testing.assert_close(state, before, rtol=0, atol=0)


class Stopped(Exception):
    """Ends a run in the middle."""


@dataclass(frozen=True)
class Stop(Correction):
    """Ends a run in its second step."""

    def prediction(self, at: Any, value: Tensor) -> Tensor:
        if at.x is not None and at.i == len(at.scheduler.timesteps) - 1:
            raise Stopped
        return value


@contextmanager
def nothing_left(exhibit: Exhibit) -> Iterator[None]:
    """Before the block as after it, and a plain call gives what it gave."""
    assert exhibit.plain is not None  # a scheduler gets attributes in its first call
    before = traces(exhibit.pipe)
    yield
    assert traces(exhibit.pipe) == before
    torch.testing.assert_close(call(exhibit.pipe, exhibit.case), exhibit.plain, rtol=0, atol=0)


def guidance(case: Case) -> list[Correction]:
    """What can act in this case."""
    return [] if case.refused else [everywhere(SCALE)]


def test_nothing_is_left_behind(exhibit: Exhibit) -> None:
    with nothing_left(exhibit):
        corrected(exhibit, *guidance(exhibit.case), Watch())


def test_nothing_is_left_after_an_exception_in_a_correction(exhibit: Exhibit) -> None:
    with nothing_left(exhibit), pytest.raises(Stopped):
        corrected(exhibit, *guidance(exhibit.case), Stop())


@zoo_where(lambda case: case.callback)
def test_nothing_is_left_after_an_exception_in_a_callback(exhibit: Exhibit) -> None:
    def stop(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        raise Stopped

    with nothing_left(exhibit), pytest.raises(Stopped):
        corrected(exhibit, *guidance(exhibit.case), Watch(), callback_on_step_end=stop)


@zoo_where(lambda case: bool(case.images))
def test_two_images_per_prompt(exhibit: Exhibit) -> None:
    two = {exhibit.case.images: 2}
    seen = guided_by_hand(exhibit.pipe, exhibit.case, SCALE)
    reference, plain = call(seen.pipe, exhibit.case, **two), call(exhibit.pipe, exhibit.case, **two)
    assert len(plain) == 2 * len(exhibit.plain)
    assert_guided(corrected(exhibit, everywhere(SCALE), **two), reference, plain)


@zoo_where(lambda case: case.name in ("Stable Diffusion", "DiT", "Wan, two experts"))
def test_a_network_is_listened_to_once(exhibit: Exhibit) -> None:
    with (
        nothing_left(exhibit),
        nag.corrected(exhibit.pipe, Watch()),
        pytest.raises((RuntimeError, ValueError), match=r"\w+ must .+, got "),
        nag.corrected(exhibit.pipe, Watch()),
    ):
        pass
