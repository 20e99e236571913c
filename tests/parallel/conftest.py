"""What all tests of this room begin with."""

import pytest

from sb3_pgext import VPG
from tests.conformance.models import small


@pytest.fixture(autouse=True, scope="session")
def _imports():
    """What a first model imports: once, not in each process that is forked."""
    small(VPG).learn(20)
