"""What the engine's tests share: one model, and both ways a step can be run."""

import pytest

from starcoder.engine.native import NativeRunner
from starcoder.kernels import native
from tests.engine.small import make_model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    """Both ways a step can be run, whichever this machine prefers."""
    if request.param == "torch":
        monkeypatch.setattr(NativeRunner, "can_run", lambda model, cache: False)
    elif native.library() is None:
        pytest.skip("the native kernels are not built on this machine")
