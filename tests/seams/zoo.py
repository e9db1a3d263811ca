"""All pipelines of the zoo by name: tiny real components, built from their configuration, no file of the Hub."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.seams.case import Case
from tests.seams.zoo_flows import FLOWS
from tests.seams.zoo_pixels import PIXELS
from tests.seams.zoo_transformers import TRANSFORMERS
from tests.seams.zoo_unets import UNETS
from tests.seams.zoo_videos import VIDEOS

__all__ = ["CASES", "ZOO", "zoo_where"]

ZOO: dict[str, Case] = {case.name: case for case in (*PIXELS, *UNETS, *TRANSFORMERS, *FLOWS, *VIDEOS)}

CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in ZOO.values()]
"""The zoo as the parameters of a test."""


def zoo_where(holds: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """The part of the zoo in which something holds, for a test that asks for `exhibit`."""
    chosen = [parameter for parameter in CASES if holds(parameter.values[0])]
    return pytest.mark.parametrize("exhibit", chosen, indirect=True)
