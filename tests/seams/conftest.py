"""The zoo as a fixture: each pipeline is built once, for all tests of a file that ask for it."""

import pytest

from tests.seams.exhibit import Exhibit
from tests.seams.zoo import ZOO

CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in ZOO.values()]


@pytest.fixture(scope="module", params=CASES)
def exhibit(request: pytest.FixtureRequest) -> Exhibit:
    """One pipeline of the zoo."""
    return Exhibit(request.param)
