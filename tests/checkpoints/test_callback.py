"""Claim: checkpoints come when they are due, the last good ones stay, and an interruption leaves them as they are."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pgext import VPG, CheckpointCallback, load, resume
from sb3_pgext.checkpoints.files import found, good_checkpoints, num_timesteps_at
from tests.checkpoints.models import assert_same, small


def steps_in(folder):
    return [num_timesteps_at(path) for path in reversed(found(folder))]


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_at_the_start_then_each_interval_then_at_the_end(tmp_path):
    small(VPG).learn(900, callback=CheckpointCallback(200, tmp_path, keep=100))  # 128 steps an update
    assert steps_in(tmp_path) == [0, 256, 512, 640, 896, 1024]
    assert list(good_checkpoints(tmp_path)) == found(tmp_path)


def test_only_the_last_ones_stay(tmp_path):
    small(VPG).learn(900, callback=CheckpointCallback(100, tmp_path, keep=2))
    assert steps_in(tmp_path) == [896, 1024]
    assert visible(tmp_path) == sorted(path.name for path in found(tmp_path))


def test_a_damaged_one_does_not_count_among_them(tmp_path):
    class Damage(BaseCallback):
        def _on_step(self):
            if self.n_calls == 300:
                (found(tmp_path)[0] / "model.json").write_text("{}")
            return True

    small(VPG).learn(600, callback=[CheckpointCallback(100, tmp_path, keep=3), Damage()])
    assert steps_in(tmp_path) == [256, 384, 512, 640]
    assert len(list(good_checkpoints(tmp_path))) == 3


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    (tmp_path / ".writing-0").mkdir()
    small(VPG).learn(100, callback=CheckpointCallback(100, tmp_path))
    assert not list(tmp_path.glob(".writing-*"))


class Interrupt(BaseCallback):
    """Ctrl-C in the middle of a rollout, or of an update."""

    def __init__(self, at_step, in_update):
        super().__init__()
        self.at_step, self.in_update = at_step, in_update

    def _on_step(self):
        if self.num_timesteps >= self.at_step:
            if not self.in_update:
                signal.raise_signal(signal.SIGINT)
            self.model.policy.optimizer.register_step_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
        return True


@pytest.mark.parametrize("in_update", [False, True])
def test_ctrl_c_leaves_the_checkpoints_before(in_update, tmp_path):
    model = small(VPG).learn(600, callback=CheckpointCallback(100, tmp_path / "uninterrupted"))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        small(VPG).learn(600, callback=[CheckpointCallback(100, tmp_path / "a"), Interrupt(400, in_update)])
    signal.signal(signal.SIGINT, handler)
    other = resume(tmp_path / "a")
    assert other.num_timesteps == 384
    assert_same(model, other.learn(600 - other.num_timesteps, reset_num_timesteps=False))


def test_an_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    model = small(VPG)
    model.learn(200, callback=CheckpointCallback(100, tmp_path))
    before = visible(tmp_path)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(200, callback=CheckpointCallback(100, tmp_path), reset_num_timesteps=False)
    assert visible(tmp_path) == before
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_is_not_saved(value, tmp_path):
    class Spoil(BaseCallback):
        def _on_rollout_start(self):
            if self.num_timesteps > 300:
                self.model.policy.value_net.bias.data.fill_(value)

        def _on_step(self):
            return True

    model = small(VPG)
    with pytest.raises(ValueError, match=r"parameter value_net.bias is NaN or infinite"):
        model.learn(600, callback=[Spoil(), CheckpointCallback(100, tmp_path)])
    assert all(tensor.isfinite().all() for tensor in load(tmp_path).policy.state_dict().values())


def test_the_checkpoints_of_another_training_are_not_overwritten(tmp_path):
    small(VPG).learn(600, callback=CheckpointCallback(100, tmp_path))
    before = found(tmp_path)
    with pytest.raises(ValueError, match=r"a checkpoint of step 640, and this training is at step 0"):
        small(VPG).learn(600, callback=CheckpointCallback(100, tmp_path))
    assert found(tmp_path) == before


def test_the_checkpoints_of_a_training_that_got_less_far_are_older(tmp_path):
    small(VPG).learn(1, callback=CheckpointCallback(1000, tmp_path))
    other = small(VPG, gamma=0.5)
    other.num_timesteps = 128
    other.learn(1, callback=CheckpointCallback(1000, tmp_path), reset_num_timesteps=False)
    assert load(tmp_path).gamma == 0.5


@pytest.mark.parametrize("arguments", [{"every": 0}, {"every": 1.5}, {"every": 10, "keep": 0}])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match="allowed is a whole number >= 1"):
        CheckpointCallback(**arguments)


def train_until_told(folder):
    class Wait(BaseCallback):
        def _on_rollout_end(self):
            print("training", flush=True)
            input()

        def _on_step(self):
            return True

    small(VPG).learn(1, callback=[CheckpointCallback(100, folder), Wait()])


def test_a_second_training_is_told_that_the_folder_is_taken(tmp_path):
    program = f"from tests.checkpoints.test_callback import train_until_told; train_until_told({str(tmp_path)!r})"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as other:
        assert other.stdout.readline() == "training\n"
        with pytest.raises(ValueError, match="another training is writing its checkpoints there: allowed is a folder"):
            resume(tmp_path).learn(64, callback=CheckpointCallback(100, tmp_path), reset_num_timesteps=False)
        other.communicate("\n")
    model = resume(tmp_path)
    model.learn(64, callback=CheckpointCallback(100, tmp_path), reset_num_timesteps=False)
    assert steps_in(tmp_path)[-1] == model.num_timesteps


def test_a_thread_is_told_so_too(tmp_path):
    refused = []

    class Intruder(BaseCallback):
        def _on_rollout_end(self):
            with ThreadPoolExecutor(1) as thread:
                learnt = thread.submit(small(VPG).learn, 1, callback=CheckpointCallback(100, tmp_path))
            refused.append(str(learnt.exception()))

        def _on_step(self):
            return True

    small(VPG).learn(1, callback=[CheckpointCallback(100, tmp_path), Intruder()])
    assert len(refused) == 1
    assert "another training is writing its checkpoints there" in refused[0]


def test_an_interrupted_training_can_be_resumed_where_it_was(tmp_path):
    """The callback that holds the folder is still there, and has not been told of the end."""
    callback = CheckpointCallback(100, tmp_path)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        small(VPG).learn(600, callback=[callback, Interrupt(400, in_update=False)])
    signal.signal(signal.SIGINT, handler)
    resume(tmp_path).learn(64, callback=CheckpointCallback(100, tmp_path), reset_num_timesteps=False)


def test_generators_are_untouched_by_the_writing(tmp_path):
    model = small(VPG).learn(300)
    other = small(VPG).learn(300, callback=CheckpointCallback(1, tmp_path))
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, other.policy.state_dict()[name])
