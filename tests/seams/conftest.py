"""The zoo as a fixture: each pipeline is built once, for all tests that ask for it."""

from functools import cache

import pytest

from tests.seams.exhibit import Exhibit
from tests.seams.zoo import CASES, ZOO


@cache
def _exhibit(name: str) -> Exhibit:
    return Exhibit(ZOO[name])


@pytest.fixture(scope="module", params=CASES)
def exhibit(request: pytest.FixtureRequest) -> Exhibit:
    """One pipeline of the zoo, which runs in the precision that is asked for."""
    found = _exhibit(request.param.name)
    assert found.plain is not None
    return found
