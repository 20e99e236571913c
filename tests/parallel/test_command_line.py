"""Claim: ``sb3-pgext train`` and ``compare`` train on all ranks that torchrun has started; rank 0 prints and writes."""

import contextlib
import io
import json
import os

import pytest

pytest.importorskip("rl_zoo3")

from sb3_pgext.cli import main
from tests.parallel.ranks import on_ranks, results_of

TRAIN = ["train", "--algo", "vpg", "--env", "CartPole-v1", "--device", "cpu", "--eval-freq", "-1"]
TRAIN += ["--checkpoint-every", "100", "-params", "n_steps:20", "n_envs:2"]


def run(rank, folder, arguments, **variables):
    """The exit status of a command, and what it has printed."""
    os.chdir(folder)
    os.environ.update(variables)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(arguments)
    return status, printed.getvalue()


def test_train_and_resume(tmp_path):
    """Without a seed the ranks draw one together. Started anew, as torchrun does, the run goes on."""
    (status, printed), other = results_of(2, run, tmp_path, [*TRAIN, "-n", "200"])
    assert status == 0
    assert "Saving to logs/vpg/CartPole-v1_1" in printed
    assert other == (0, "")
    folder = tmp_path / "logs" / "vpg" / "CartPole-v1_1"
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name[0] != ".")
    assert checkpoints[-1].endswith("-step-240")
    assert (folder / "checkpoints" / checkpoints[-1] / "rank-1-model.json").exists()
    assert len(list(folder.glob("*.monitor.csv"))) == 2

    (status, printed), other = results_of(
        2, lambda rank: run(rank, tmp_path, [*TRAIN, "-n", "200"], TORCHELASTIC_RESTART_COUNT="1")
    )
    assert (status, other) == (0, (0, ""))
    assert [path.name for path in folder.parent.iterdir()] == ["CartPole-v1_1"]
    (status, _), other = results_of(2, run, tmp_path, ["train", "--resume", str(folder)])
    assert (status, other) == (0, (0, ""))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algo", "ppo"], "--algo='ppo': allowed is one of"),
        (["--optimize-hyperparameters"], "--optimize-hyperparameters=True: allowed is False under torchrun"),
    ],
)
def test_commands_that_do_not_fit(more, message, tmp_path):
    def refused(rank):
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            status, _ = run(rank, tmp_path, ["train", *more])
        return status, printed.getvalue()

    for status, printed in results_of(2, refused):
        assert status == 2
        assert message in printed


def test_compare(tmp_path):
    study = ["--env", "CartPole-v1", "--algos", "reinforce", "vpg", "--seeds", "1", "--timesteps", "600"]
    (status, printed), other = on_ranks(2, run, tmp_path, ["compare", *study, "--out", "out"])
    assert status == 0
    assert "report.html" in printed
    assert other == (0, "")
    runs = [path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()]
    assert len(runs) == 2
    for folder in runs:
        evaluations = json.loads((folder / "evaluations.json").read_text())
        assert evaluations[-1]["timesteps"] == 600
