"""Claim: the examples run as they are printed."""

import runpy
import sys
from pathlib import Path

import pytest

_EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
_TRACKERS = {"weights_and_biases": "wandb", "mlflow_tracking": "mlflow"}
"""Examples → the package that they need, which the tests run without."""
_OTHERS = {"softmax_bandit", *_TRACKERS}


@pytest.mark.parametrize("path", [path for path in _EXAMPLES if path.stem not in _OTHERS], ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name, "--timesteps", "600"])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed
    assert "inf" not in printed


@pytest.mark.parametrize("name", _TRACKERS)
def test_experiment_tracking_offline(name: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip(_TRACKERS[name])
    (path,) = (path for path in _EXAMPLES if path.stem == name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", [path.name, "--timesteps", "600"])
    runpy.run_path(str(path), run_name="__main__")
    assert list(tmp_path.iterdir())


def test_the_bandit(tmp_path: Path, monkeypatch) -> None:
    (path,) = (path for path in _EXAMPLES if path.stem == "softmax_bandit")
    monkeypatch.setattr(sys, "argv", [path.name, "--seeds", "2", "--rounds", "15", "--out", str(tmp_path / "bandit")])
    runpy.run_path(str(path), run_name="__main__")
    assert (tmp_path / "bandit.png").exists()


def test_the_two_failures_of_the_policy_gradient() -> None:
    (path,) = (path for path in _EXAMPLES if path.stem == "softmax_bandit")
    play = runpy.run_path(str(path))["play"]
    too_slow, too_fast = (play("policy gradient", eta, 40, 400)[-1] for eta in (1.0, 100.0))
    assert (too_slow < 0.001).all()  # 10 times the first probability, after 400 rounds
    stuck = too_fast < 0.001
    assert 0.1 < stuck.mean() < 0.6
    assert (too_fast[~stuck] > 0.999).all()
    for eta in (1.0, 100.0):
        assert play("Hedge", eta, 1, 400)[-1] > 0.999
