"""Methods as texts: what they mean, what they refuse, and that their keys are the fields of what they build."""

import dataclasses
import inspect

import pytest

import nag.corrections
from nag.corrections import Correction, DifferentialCorrection, EpsilonScaling, NoiseGuidance
from nag.corrections.noise_guidance import MODES
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.text import (
    FROM_ONE,
    GUIDANCE,
    method_names,
    named_corrections,
    parse_method,
    parse_methods,
)


def only(text):
    """The arguments of a method without candidates."""
    return parse_method(text).arguments()


def test_plain_changes_nothing():
    assert only("plain") == {}


def test_noise_guidance_by_its_modes():
    assert {named_corrections()[name][2]["mode"] for name in GUIDANCE} == set(MODES)
    found = only("nag_gradient:scale=1,max_norm=none,interval=-2.5..,project=false")
    expected = NoiseGuidance(scale=1, mode="gradient", max_norm=None, interval=(-2.5, None), project=False)
    assert found == {"corrections": [expected]}


def test_corrections_act_in_the_order_in_which_they_are_joined():
    found = only("dcw:scale=0.01+epsilon_scaling:scale=1.005,slope=1e-05")
    assert found == {
        "corrections": [DifferentialCorrection(scale=0.01), EpsilonScaling(scale=1.005, slope=1e-5)]
    }


def test_a_name_may_fix_a_value():
    assert only("self_guidance_prev:scale=1") == {"corrections": [SelfGuidance(scale=1, previous=True)]}
    with pytest.raises(ValueError, match=r"self_guidance_prev must be given scale, .*, got 'previous'"):
        parse_method("self_guidance_prev:scale=1,previous=false")


def test_everything_can_be_joined():
    method = parse_method("class_guidance:scale=2+nag:scale=0.5+dcw:scale=0.01+calibrated")
    assert method.calibrated
    assert method.name == "class_guidance+nag+dcw+calibrated"
    assert method.arguments() == {
        "guidance_scale": 2.0,
        "corrections": [NoiseGuidance(scale=0.5), DifferentialCorrection(scale=0.01)],
    }


def test_a_key_goes_to_the_part_that_has_it():
    assert parse_method("nag+calibrated:scale=2").label == "nag:scale=2+calibrated"


def test_candidates_are_the_product_of_their_values():
    method = parse_method("nag:scale=0.5|1,interval=-2.5..|..3+dcw:scale=0.1")
    assert [one.label for one in method.candidates()] == [
        "nag:scale=0.5,interval=-2.5..+dcw:scale=0.1",
        "nag:scale=0.5,interval=..3+dcw:scale=0.1",
        "nag:scale=1,interval=-2.5..+dcw:scale=0.1",
        "nag:scale=1,interval=..3+dcw:scale=0.1",
    ]
    assert [one.label for one in parse_method("nag:scale=0|1").candidates()] == ["nag:scale=0", "nag:scale=1"]


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "nag:scale=0.1|0.333333333,interval=-2.5..1,joint=true",
        "nag:scale=1,interval=-2.12345678..4",
        "class_interval:guidance_scale=3,interval=-1..2+calibrated",
        "time_shift:window=20|40,cutoff=200",
        "autoguidance:network=some/folder+1,scale=1",
        "null_autoguidance:scale=-0.5,component=along",
        "perturbed_attention:scale=2,part=all",
    ],
)
def test_a_label_gives_the_method_again(text):
    method = parse_method(text)
    assert method.label == text
    assert parse_method(method.label) == method


def test_every_correction_has_a_name():
    """Every correction that acts can be written as text, also on the command line."""
    exported = {
        cls.__name__
        for name in nag.corrections.__all__
        if inspect.isclass(cls := getattr(nag.corrections, name))
        and issubclass(cls, Correction)
        and cls is not Correction
    }
    watching, own_name = (
        {"Recorder", "CostCounter"},
        {"Calibrated"},
    )  # the last is "calibrated", a part without values
    assert {cls for _, cls, _ in named_corrections().values()} == exported - watching - own_name
    assert len(set(method_names())) == len(method_names())


@pytest.mark.parametrize("name", named_corrections())
def test_keys_are_the_fields(name):
    _, cls, fixed = named_corrections()[name]
    fields = dataclasses.fields(getattr(nag.corrections, cls))
    free = [field.name for field in fields if field.name not in fixed]
    if name in FROM_ONE:
        free = ["guidance_scale" if key == "scale" else key for key in free]
    keys = ", ".join(free) or "no keys"
    with pytest.raises(ValueError, match=f"{name} must be given {keys}, got 'no_such_key'"):
        parse_method(f"{name}:no_such_key=1")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nagg:scale=1", "methods.*'nagg'"),
        ("nag:scale=1+nag:scale=2", "methods.*got nag"),
        ("nag:scale=1+nag_corrected:scale=1", "methods.*got nag, nag_corrected"),
        ("plain+nag:scale=1", "methods.*'plain' alone"),
        ("nag:scale", "methods.*got 'scale'"),
        ("nag:scale=1,scale=2", "methods.*got nag:scale"),
        ("nag:scale=much", "nag:scale.*'much'"),
        ("nag:scale=nan", "nag:scale.*'nan'"),
        ("nag:scale=1,interval=3", "nag:interval.*'3'"),
        ("nag_gradient:scale=1,max_norm=big", "nag_gradient:max_norm.*a number or none.*'big'"),
        ("nag:scale=1,project=1", "nag:project.*'1'"),
        ("time_shift:window=1.5", "time_shift:window.*'1.5'"),
        ("nag:scale=-1", "noise_guidance_scale.*-1.0"),
        ("dcw:scale=1,schedule=odd", "schedule.*'odd'"),
        *((off, "methods must switch something on") for off in (
            "nag", "epsilon_scaling:scale=1", "self_guidance:shift=3", "class_guidance"
        )),
        ("calibrated:scale=1", "calibrated.*no keys.*'scale'"),
        ("autoguidance:scale=1", "methods.*got autoguidance:network"),
        ("autoguidance:network=none,scale=1", "network.*None"),
    ],
)  # fmt: skip
def test_refusals(text, error):
    with pytest.raises(ValueError, match=error):
        parse_method(text).arguments()


def test_lists_of_methods():
    assert [one.label for one in parse_methods(["plain", "calibrated"])] == ["plain", "calibrated"]
    with pytest.raises(ValueError, match="methods.*got none"):
        parse_methods([])
    with pytest.raises(ValueError, match="methods.*got 'nag:scale=1', 'nag:scale=1'"):
        parse_methods(["nag:scale=1", "nag:scale=1.0"])
