"""Claim: `train` leaves checkpoints in the folder of the run, and `train --resume` ends it as if it had not stopped."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_pgext import VPG, DiscreteSAC
from sb3_pgext.checkpoints.files import found, num_timesteps_at
from sb3_pgext.cli import main
from sb3_pgext.zoo.trainings import checkpoints_folder

RUN = Path("logs/vpg/CartPole-v1_1")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*flags, **options):
    config = {"n_envs": 2, "n_timesteps": 600, "policy": "MlpPolicy", "n_steps": 32, "learning_rate": "lin_0.003"}
    Path("mine.yml").write_text(yaml.safe_dump({"CartPole-v1": config | options}))
    flags = ["--conf-file", "mine.yml", "--seed", "3", "--device", "cpu", "--verbose", "0", *flags]
    return main(["train", "--algo", "vpg", *flags])


def result():
    path = RUN / "CartPole-v1.zip"
    return VPG.load(path), np.load(RUN / "evaluations.npz")["results"] if (RUN / "evaluations.npz").exists() else None


@pytest.mark.parametrize(
    "options",
    [{"normalize": False}, {"normalize": True}, {"vec_env": "gymnasium"}],
    ids=["plain", "normalised", "vectorised"],
)
def test_resumed_is_uninterrupted(options):
    evaluation = ["--eval-freq", "150", "--eval-episodes", "1"]
    assert train("--checkpoint-every", "100", *evaluation, **options) == 0
    expected, evaluations = result()
    for path in found(checkpoints_folder(RUN))[:2]:  # as if it had been killed then
        shutil.rmtree(path)
    (RUN / "CartPole-v1.zip").unlink()
    assert 0 < num_timesteps_at(found(checkpoints_folder(RUN))[0]) < 600
    assert main(["train", "--resume", str(RUN)]) == 0
    model, again = result()
    assert model.num_timesteps == expected.num_timesteps
    for name, tensor in expected.policy.state_dict().items():
        assert th.equal(tensor, model.policy.state_dict()[name]), name
    assert len(again) == len(evaluations), "evaluations are continued"
    assert not Path("logs/vpg/CartPole-v1_2").exists()


def test_a_replay_is_resumed_too():
    config = {"n_timesteps": 300, "policy": "MlpPolicy", "learning_starts": 50, "ent_coef": "auto_0.1"}
    Path("mine.yml").write_text(yaml.safe_dump({"default": config}))
    flags = ["--conf-file", "mine.yml", "--seed", "3", "--device", "cpu", "--checkpoint-every", "100"]
    assert main(["train", "--algo", "sacd", *flags, "--eval-freq", "-1"]) == 0
    run = Path("logs/sacd/CartPole-v1_1")
    expected = DiscreteSAC.load(run / "CartPole-v1.zip")
    shutil.rmtree(found(checkpoints_folder(run))[0])
    (run / "CartPole-v1.zip").unlink()
    assert num_timesteps_at(found(checkpoints_folder(run))[0]) == 200
    assert main(["train", "--resume", str(run)]) == 0
    model = DiscreteSAC.load(run / "CartPole-v1.zip")
    assert model.num_timesteps == expected.num_timesteps
    assert th.equal(model.log_ent_coef, expected.log_ent_coef)
    for name, tensor in expected.policy.state_dict().items():
        assert th.equal(tensor, model.policy.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting", "ignore:.*episodes")
def test_the_episodes_of_envpool_before_the_checkpoint_stay():
    """It cannot be saved, and its file is opened anew."""
    pytest.importorskip("envpool")
    assert train("--checkpoint-every", "100", "--eval-freq", "-1", vec_env="envpool") == 0
    before = (RUN / "0.monitor.csv").read_text()
    shutil.rmtree(found(checkpoints_folder(RUN))[0])
    assert main(["train", "--resume", str(RUN)]) == 0
    after = (RUN / "0.monitor.csv").read_text()
    assert after.startswith(before)
    assert after.count("t_start") == 1


@pytest.mark.parametrize("options", [{}, {"vec_env": "gymnasium"}], ids=["Monitor", "VecMonitor"])
@pytest.mark.parametrize("gone", [False, True], ids=["copied", "moved"])
def test_a_run_in_another_folder_goes_on_there(gone, options):
    """Its files of episodes too; nothing happens where it was."""
    assert train("--checkpoint-every", "100", "--eval-freq", "-1", **options) == 0
    for path in found(checkpoints_folder(RUN))[:2]:
        shutil.rmtree(path)
    before, copy = episodes(RUN), Path("elsewhere/run")
    if gone:
        copy.parent.mkdir()
        shutil.move(RUN, copy)
    else:
        shutil.copytree(RUN, copy)
    for file in copy.glob("*.monitor.csv"):  # as if it had got further
        file.write_bytes(file.read_bytes() + b"1.0,1,99.0\r\n")
    assert main(["train", "--resume", str(copy)]) == 0
    assert episodes(RUN) == ({} if gone else before)
    without_times = [{k: [row[:2] for row in rows] for k, rows in files.items()} for files in (episodes(copy), before)]
    assert without_times[0] == without_times[1]


def episodes(run):
    """The rows of each file, of which the third number is a time."""
    files = {path.name: path.read_text().splitlines()[2:] for path in run.glob("*.monitor.csv")}
    return {name: [row.split(",") for row in rows] for name, rows in files.items()}


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("has_run",)


def test_no_statistics_are_read_from_the_current_folder():
    """Neither by a new training nor by one that goes on: rl_zoo3 would unpickle them."""
    Path("CartPole-v1").mkdir()
    Path("CartPole-v1/vecnormalize.pkl").write_bytes(pickle.dumps(Malicious()))
    assert train("--checkpoint-every", "100", "-n", "100", normalize=True) == 0
    assert main(["train", "--resume", str(RUN)]) == 0
    assert not Path("has_run").exists()


class Interrupt(BaseCallback):
    """Ctrl-C at the end of a rollout, which is before its update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        if self.num_timesteps > 500:
            self.model.policy.optimizer.register_step_pre_hook(self._interrupt)

    def _interrupt(self, *_):
        raise KeyboardInterrupt


def test_ctrl_c_leaves_what_was_before_the_update(monkeypatch):
    assert train("--checkpoint-every", "10", "--eval-freq", "-1") == 0
    expected, _ = result()
    shutil.rmtree(RUN)
    with monkeypatch.context() as patch:
        patch.setattr(CallbackList, "_on_rollout_end", lambda self: Interrupt._on_rollout_end(interrupt(self)))
        assert train("--checkpoint-every", "10", "--eval-freq", "-1") == 0
    assert num_timesteps_at(found(checkpoints_folder(RUN))[0]) == 448
    assert main(["train", "--resume", str(RUN)]) == 0
    for name, tensor in expected.policy.state_dict().items():
        assert th.equal(tensor, result()[0].policy.state_dict()[name]), name


def interrupt(callbacks):
    callback = Interrupt()
    callback.model, callback.num_timesteps = callbacks.model, callbacks.model.num_timesteps
    return callback


def test_by_default_there_are_checkpoints():
    assert train("-n", "100", "--eval-freq", "-1") == 0
    assert [num_timesteps_at(path) for path in found(checkpoints_folder(RUN))] == [128, 0]


def test_none_are_written_where_none_are_wanted(capsys):
    assert train("-n", "100", "--eval-freq", "-1", "--checkpoint-every", "-1") == 0
    assert not checkpoints_folder(RUN).exists()
    assert main(["train", "--resume", str(RUN)]) == 2
    assert "this training wrote no checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nothing"], "nothing: allowed is the folder of a run"),
        (["--resume", "nothing", "-n", "100"], "-n 100 with --resume: allowed are --trust and --gym-packages alone"),
        (["--algo", "ppo", "--checkpoint-every", "100"], "--checkpoint-every with --algo ppo: allowed is reinforce,"),
        (["-n", "0"], "--n-timesteps=0: allowed is a whole number >= 1"),
        (["--n-timesteps", "-5"], "--n-timesteps=-5: allowed is a whole number >= 1"),
        (["--resume", "nothing", "--checkpoint-every", "7"], "--checkpoint-every 7 with --resume: allowed are --trust"),
        (["--optimize", "--checkpoint-every", "7"], "--checkpoint-every with --optimize-hyperparameters: allowed"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_help_has_our_flags_too(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--resume DIR" in capsys.readouterr().out
