"""Claim: the examples run as they are printed."""

import runpy
import sys
from pathlib import Path

import pytest

from sb3_pgext import load

_EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
_TRACKERS = {"weights_and_biases": "wandb", "mlflow_tracking": "mlflow"}
"""Examples → the package that they need, which the tests run without."""
_OTHERS = {"softmax_bandit", "pong_from_pixels", *_TRACKERS}


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


@pytest.mark.filterwarnings("ignore:a resumed training will restart its episodes")
def test_pong_from_pixels(tmp_path: Path, monkeypatch, capsys) -> None:
    """The lecture's 1.3M parameters; the second time it goes on from the checkpoint."""
    pytest.importorskip("ale_py")
    (path,) = (path for path in _EXAMPLES if path.stem == "pong_from_pixels")
    flags = ["--games-per-update", "2", "--n-envs", "2", "--baseline", "none", "--out", str(tmp_path / "pong")]
    for games in ("2", "4"):
        monkeypatch.setattr(sys, "argv", [path.name, "--games", games, *flags])
        runpy.run_path(str(path), run_name="__main__")
        assert "mean score of the last games: -2" in capsys.readouterr().out
    learnt = load(tmp_path / "pong")
    assert learnt._n_updates == 2
    of_policy = [p for name, p in learnt.policy.named_parameters() if "value" not in name]
    assert sum(p.numel() for p in of_policy) == 6400 * 200 + 200 + 200 * 2 + 2


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
