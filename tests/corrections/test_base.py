"""What all corrections have in common: off by default, described, composed in order, and what they refuse."""

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, UniPCMultistepScheduler
from torch import Tensor

import nag.corrections
from nag.corrections import (
    HIDDEN,
    At,
    Blind,
    Calibrated,
    Correction,
    CostCounter,
    DifferentialCorrection,
    DirectionGuidance,
    EpsilonScaling,
    HistoryGuidance,
    Merged,
    NoiseGuidance,
    NoiseLevelCorrection,
    Recorder,
    ScoreRescaling,
    SelfGuidance,
    TimeShift,
    TimeStepGuidance,
    WaveletCorrection,
    WeakModel,
)
from nag.corrections.base import overrides
from nag.corrections.tuned import correction_from_json, correction_to_json
from nag.network.regressor import fingerprint
from nag.noise.read import read_levels
from nag.seams import corrected
from tests.corrections.samplers import SCHEDULERS, STEPS, close, network, sample
from tests.corrections.steps import (
    EVERYWHERE,
    all_off,
    correction_classes,
    draw,
    every_correction,
    seeded,
    set_timesteps,
    step_of,
)
from tests.corrections.test_calibration import table
from tests.models import tiny_unet
from tests.oracles import answered, real


def test_package_offers_every_correction() -> None:
    for cls in correction_classes():
        assert getattr(nag.corrections, cls.__name__) is cls
        assert cls.__name__ in nag.corrections.__all__


# Off, frozen, described

ALWAYS_ON = {Blind, Calibrated, CostCounter, Recorder}


def test_off_by_default() -> None:
    assert {type(one) for one in every_correction() if one.on} == ALWAYS_ON
    off = [SelfGuidance(scale=0, shift=5), TimeShift(window=0), TimeStepGuidance(scale=1.0, perturbation=0.0)]
    assert not any(one.on for one in off)
    for one in every_correction():
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.scale = 1.0


def test_what_is_off_is_left_out(class_unet: UNet2DModel) -> None:
    """The block then touches nothing; nor does an unfit scheduler, or class guidance, matter to what is off."""
    theirs = sample(class_unet, UniPCMultistepScheduler(), guidance_scale=2.0)
    off = all_off(class_unet)
    ours = sample(class_unet, UniPCMultistepScheduler(), *off, guidance_scale=2.0)
    assert torch.equal(ours, theirs)
    with corrected(object(), *off) as run:
        assert run.corrections == ()


def test_the_base_is_the_identity_at_each_place(class_unet: UNet2DModel) -> None:
    u, ask = real(class_unet)
    at, one = step_of(class_unet, u, ask, torch.tensor([0, 1])), Correction()
    assert one.on
    assert one.check(at) is one.level(at) is one.direction(at) is None
    assert one.prediction(at, u) is u
    assert one.state(at, u, draw()) is u
    assert not any(overrides(one, place) for place in ("level", "direction", "prediction", "state"))


def test_settings_are_json_and_tell_apart(unet: UNet2DModel) -> None:
    other = tiny_unet(seed=1)
    for correction in [*every_correction(), WeakModel(network=unet), *NON_DEFAULT]:
        settings = json.loads(json.dumps(correction.settings()))
        assert settings.pop("correction") == type(correction).__name__
        names = {field.name for field in dataclasses.fields(correction) if field.compare}
        assert set(settings) == (
            set() if isinstance(correction, Calibrated) else names
        )  # the table is its sampler's
    assert WeakModel(network=unet).settings()["network"] == fingerprint(unet)
    assert WeakModel(network=unet).settings() != WeakModel(network=other).settings()
    assert len(repr(WeakModel(network=unet))) < 200
    found = [json.dumps(one.settings()) for one in NON_DEFAULT if not isinstance(one, Calibrated)]
    assert len(set(found)) == len(found)


MEASURED = table(set_timesteps(SCHEDULERS["ddim"](), STEPS), corrections=({"correction": "Blind"},))
NON_DEFAULT: list[Correction] = [
    Blind(),
    Calibrated(MEASURED),
    Calibrated((None, 0.5, 1.0)),
    Calibrated("auto"),
    DifferentialCorrection(scale=-0.1, schedule="sigma"),
    DirectionGuidance(scale=0.5, head="head", interval=(None, 3.0)),
    EpsilonScaling(scale=1.01, slope=1e-3),
    NoiseGuidance(
        scale=0.5, mode="gradient", interval=(None, 3.0), project=False, max_norm=None, null_pass="whole"
    ),
    HistoryGuidance(scale=1.5, decay=0.5, t_min=0.1, t_max=0.9, cutoff=0.1, sharpness=20.0, parallel=0.0),
    Merged(network="student", strength=0.5),
    NoiseGuidance(scale=0.5, joint=True, every=2, reuse="line"),
    NoiseLevelCorrection(scale=0.5, interval=(-1.0, None), max_shift=0.3),
    ScoreRescaling(k=0.9, s=0.5),
    SelfGuidance(scale=1.5, shift=20.0, previous=True, interval=(None, 2.0)),
    TimeShift(window=30, cutoff=10, data_variance=0.25),
    TimeStepGuidance(scale=0.5, perturbation=0.3, exponent=2.0, interval=(-1.0, 1.0)),
    WaveletCorrection(scale=0.1, high_scale=-0.2, wavelet="db4"),
    WeakModel(scale=0.5, blind=True, unconditional=True, component="along", interval=(None, 1.0)),
]


@pytest.mark.parametrize("correction", NON_DEFAULT, ids=lambda one: type(one).__name__)
def test_the_way_to_a_file_and_back(correction: Correction) -> None:
    assert {type(one) for one in NON_DEFAULT} == set(correction_classes()) - {CostCounter, Recorder}
    back = correction_from_json(json.loads(json.dumps(correction_to_json(correction))))
    assert back == correction
    assert type(back) is type(correction)
    assert back.settings() == correction.settings()
    assert getattr(back, "null_pass", "whole") in ("whole", getattr(correction, "null_pass", "whole"))


@torch.no_grad()
def test_precision_of_the_prediction_is_kept() -> None:
    unet = tiny_unet(num_class_embeds=4).to(torch.bfloat16)
    u, ask = real(unet)
    u, labels = u.bfloat16(), torch.tensor([0, 1])
    step = step_of(unet, u, ask, labels, generator=seeded())
    assert EpsilonScaling(scale=1.01).prediction(step, step.told).dtype == torch.bfloat16
    pushing = [
        NoiseGuidance(scale=0.5), SelfGuidance(scale=0.5), TimeStepGuidance(scale=0.5),
        WeakModel(scale=0.5, unconditional=True), WeakModel(scale=0.5, network=unet),
        WeakModel(scale=0.5, blind=True, component="along"),
    ]  # fmt: skip
    for correction in pushing:
        assert answered(unet, u, ask, correction, class_labels=labels).dtype == torch.bfloat16
    moving = (DifferentialCorrection(scale=0.1), WaveletCorrection(scale=0.1, high_scale=0.1))
    scheduler = SCHEDULERS["ddim"]()
    for correction in (*moving, TimeShift(window=50, cutoff=0)):
        assert sample(unet, scheduler, correction).dtype == torch.bfloat16


# Composition


@dataclass(frozen=True)
class Affine(Correction):
    """Does something that does not commute, wherever it is told to."""

    by: float
    place: str = "prediction"

    def prediction(self, at: At, value: Tensor) -> Tensor:
        return 2 * value + self.by if self.place == "prediction" else value

    def state(self, at: At, reached: Tensor, x_0_hat: Tensor) -> Tensor:
        return 2 * reached + self.by * x_0_hat if self.place == "state" else reached


@pytest.mark.parametrize("place", ["prediction", "state"])
def test_predictions_and_states_are_passed_on_in_order(unet: UNet2DModel, place: str) -> None:
    for first, second in ((1.0, 3.0), (3.0, 1.0)):
        options = {"class_labels": None, "batch_size": 2, "num_inference_steps": 1}
        ours = sample(unet, SCHEDULERS["ddim"](), Affine(first, place), Affine(second, place), **options)
        scheduler = set_timesteps(SCHEDULERS["ddim"](), 1)
        t, x = scheduler.timesteps[0], torch.randn(2, 1, 8, 8, generator=seeded())
        with torch.no_grad():
            value = unet(x, t).sample
        if place == "prediction":
            value = 2 * (2 * value + first) + second
        output = scheduler.step(value, t, x)
        reached = output.prev_sample
        if place == "state":
            reached = (
                2 * (2 * reached + first * output.pred_original_sample) + second * output.pred_original_sample
            )
        torch.testing.assert_close(ours, reached, rtol=1e-4, atol=1e-4 * float(reached.abs().max()))


DIRECTIONS = {
    "noise": NoiseGuidance(scale=0.7, interval=EVERYWHERE),
    "self": SelfGuidance(scale=0.5, shift=30),
    "weak": WeakModel(scale=0.3, network=network(1, num_class_embeds=4)),
}


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_directions_add_up_in_any_order(guidance_scale: float) -> None:
    unet = network(num_class_embeds=4)
    u, ask = real(unet)
    options = {"class_labels": torch.tensor([0, 2]), "guidance_scale": guidance_scale}
    without = answered(unet, u, ask, **options)
    alone = {name: answered(unet, u, ask, one, **options) - without for name, one in DIRECTIONS.items()}
    size = float(without.abs().max())
    assert all(float(push.abs().max()) > 1e-2 * size for push in alone.values())
    together = without + sum(alone.values())
    for order in itertools.permutations(DIRECTIONS.values()):
        found = answered(unet, u, ask, *order, **options)
        torch.testing.assert_close(found, together, rtol=0, atol=1e-5 * size)


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [-1.0, 0.0, 2.0, 7.5])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_is_added_to_every_row(name: str, guidance_scale: float) -> None:
    """So that class guidance, whose weights sum to 1, gives itself and the direction, whatever its scale."""
    unet = network(num_class_embeds=4)
    u, ask = real(unet)
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        told, none = (unet(u, ask["timestep"], class_labels=c).sample for c in (labels, torch.tensor([3, 3])))
    direction = DIRECTIONS[name].direction(step_of(unet, u, ask, labels))
    found = answered(unet, u, ask, DIRECTIONS[name], class_labels=labels, guidance_scale=guidance_scale)
    expected = told + (guidance_scale - 1) * (told - none) + direction
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# The level

SETTERS: list[Correction] = [
    Blind(), Calibrated([None] * STEPS), NoiseLevelCorrection(scale=1.0), TimeShift(window=10)
]  # fmt: skip


def test_only_one_may_set_the_level(class_unet: UNet2DModel) -> None:
    assert {type(one) for one in every_correction() if overrides(one, "level")} == {
        type(one) for one in SETTERS
    }
    for first, second in itertools.permutations(SETTERS, 2):
        names = f"{type(first).__name__}, {type(second).__name__}"
        with pytest.raises(
            ValueError, match=f"corrections must hold at most one that sets the level, got {names}"
        ):
            sample(class_unet, SCHEDULERS["ddim"](), first, EpsilonScaling(scale=1.1), second)
    with pytest.raises(TypeError, match="corrections must be of nag.corrections, got str"):
        sample(class_unet, SCHEDULERS["ddim"](), "dcw")


@dataclass(frozen=True)
class At_(Correction):
    """Sets a level, or none."""

    log_snr: Any

    def level(self, at: At) -> Any:
        return self.log_snr


@torch.no_grad()
def test_a_level_is_told_to_the_network_and_to_the_others() -> None:
    unet = network(num_class_embeds=4)
    u, ask = real(unet)
    labels = torch.tensor([0, 2])
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Look(Correction):
        def direction(self, at: At) -> None:
            seen.append((at.log_snr, at.nominal))

    for level in (1.0, torch.tensor([1.0, 2.0], dtype=torch.float64)):
        found = answered(unet, u, ask, At_(level), Look(), class_labels=labels)
        label = ask["levels"].timestep_of(torch.as_tensor(level)).float()
        expected = unet(u, label, class_labels=labels).sample
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        told, nominal = seen.pop()
        assert told is level
        assert nominal == float(read_levels(ask["scheduler"]).log_snr[6])
    close(
        answered(unet, u, ask, At_(HIDDEN), class_labels=labels),
        answered(unet, u, ask, Blind(), class_labels=labels),
        answered(unet, u, ask, class_labels=labels),
    )
    assert torch.equal(
        answered(unet, u, ask, At_(None), class_labels=labels), answered(unet, u, ask, class_labels=labels)
    )


# Refusals


@pytest.mark.parametrize(
    "correction", [DifferentialCorrection(scale=0.1), WaveletCorrection(scale=0.1)], ids=str
)
def test_states_are_not_moved_where_the_scheduler_discards_them(
    class_unet: UNet2DModel, correction: Correction
) -> None:
    name = type(correction).__name__
    with pytest.raises(
        ValueError,
        match=f"scheduler must step from the state it is handed for {name}, got UniPCMultistepScheduler",
    ):
        sample(class_unet, UniPCMultistepScheduler(), correction)
    unmoved = sample(class_unet, UniPCMultistepScheduler(), EpsilonScaling(scale=1.01))
    assert not torch.equal(unmoved, sample(class_unet, UniPCMultistepScheduler()))
    sample(
        class_unet, SCHEDULERS["heun"](), correction
    )  # keeps the state of its first stage only, which is not moved


def test_levels_need_a_scheduler_that_starts_where_it_is_told(class_unet: UNet2DModel) -> None:
    for make, steps in ((SCHEDULERS["heun"], 2 * STEPS - 1), (UniPCMultistepScheduler, STEPS)):
        for one in (TimeShift(window=10), Calibrated([1.0] * steps), NoiseLevelCorrection(scale=1.0)):
            with pytest.raises(
                ValueError,
                match=f"scheduler must step from the state it is handed .* got {make().__class__.__name__}",
            ):
                sample(class_unet, make(), one)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EpsilonScaling(scale=0.0), "scale.*0.0"),
        (lambda: EpsilonScaling(slope=math.nan), "slope.*nan"),
        (lambda: DifferentialCorrection(scale=math.inf), "scale.*inf"),
        (lambda: DifferentialCorrection(schedule="cosine"), "schedule.*'cosine'"),
        (lambda: WaveletCorrection(high_scale=math.nan), "high_scale.*nan"),
        (lambda: WaveletCorrection(wavelet="harr"), "wavelet.*'harr'"),
        (lambda: SelfGuidance(shift=0), "shift.*0"),
        (lambda: TimeStepGuidance(perturbation=-1), "perturbation.*-1"),
        (lambda: TimeStepGuidance(exponent=-0.5), "exponent.*-0.5"),
        (lambda: TimeShift(window=-2), "window.*-2"),
        (lambda: TimeShift(cutoff=-1), "cutoff.*-1"),
        (lambda: TimeShift(data_variance=math.nan), "data_variance.*nan"),
        (lambda: NoiseLevelCorrection(scale=1.5), "scale.*1.5"),
        (lambda: NoiseLevelCorrection(max_shift=0.0), "max_shift.*0.0"),
        (lambda: WeakModel(blind=True, component="across"), "component.*'across'"),
        (lambda: WeakModel(scale=1.0), "network.*None"),
        (lambda: NoiseGuidance(scale=-1.0), "noise_guidance_scale.*-1.0"),
        (lambda: NoiseGuidance(mode="free"), "noise_guidance_mode.*'free'"),
        (lambda: NoiseGuidance(null_pass="twice"), "null_pass.*'twice'"),
        (lambda: NoiseGuidance(max_norm=0.0), "max_norm.*0.0"),
        (lambda: NoiseGuidance(mode="gradient", joint=True), "joint.*True"),
        *(
            (lambda interval=interval: WeakModel(blind=True, interval=interval), "interval.*got")
            for interval in ((1.0, math.inf), (1.0, 1.0), (2.0, -2.0))
        ),
    ],
)
def test_wrong_values(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    "correction",
    [Blind(), TimeStepGuidance(scale=1.0), WeakModel(blind=True), NoiseGuidance(scale=1.0)],
    ids=lambda one: type(one).__name__,
)
def test_networks_without_a_row_are_refused(unet: UNet2DModel, correction: Correction) -> None:
    step = step_of(unet, *real(unet))
    step.question.network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="model.*Linear"):
        correction.check(step)
