"""Settings of the conformance tests."""

import pytest

from sb3_pgext.parallel import workers


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch):
    """Forked workers do the same as spawned ones, and begin at once."""
    monkeypatch.setattr(workers, "START_METHOD", "fork")
