"""Settings of every test."""

import pytest
import torch as th
from hypothesis import settings

import tests.environments  # noqa: F401  registers the test environments

th.set_num_threads(1)
# Tests time nothing, and find the same examples each time.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# They compare with other orders of the same sums: a convolution in TF32 has three digits.
th.backends.cudnn.allow_tf32 = False
without_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def _key_of_their_own(tmp_path_factory, monkeypatch):
    """Tests do not sign checkpoints as the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])])
def device(request):
    """Every device there is."""
    return request.param
