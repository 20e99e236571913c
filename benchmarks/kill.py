"""Trainings that are killed at random moments: whether each can be resumed, how much is lost, and how it ends.

usage: python benchmarks/kill.py [--kills 200] [--updates 100] [--every 100] [--seed 0]

A process trains ClippedCriticPPO on CartPole-v1 and writes a checkpoint after each update or second update, so that a
good part of its time is spent writing. It is killed with SIGKILL, and another one resumes, until the training is done;
then the next training begins. Each must end with the parameters of the uninterrupted training, to the bit, and never
lose more than the steps of one interval and one update.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from ctypes import c_int64
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import CheckpointCallback, ClippedCriticPPO, load, resume
from sb3_pgext.checkpoints.files import found, good_checkpoints, num_timesteps_at

STEPS_PER_UPDATE = 64
SMALL: dict[str, Any] = {"n_steps": STEPS_PER_UPDATE // 2, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}


class Progress(BaseCallback):
    """Tell the parent process how far the training is."""

    def __init__(self, steps: Any):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        self.steps.value = self.num_timesteps
        return True


def train(folder: Path, total: int, every: int, steps: Any) -> None:
    """From the last checkpoint, or from the start; to the end."""
    th.set_num_threads(1)
    if found(folder):
        model = resume(folder)
    else:
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
        model = ClippedCriticPPO("MlpPolicy", env, **SMALL)
    callbacks = [CheckpointCallback(every, folder), Progress(steps)]
    model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)


def parameters(folder: Path) -> th.Tensor:
    """Of the last good checkpoint."""
    return th.nn.utils.parameters_to_vector(load(folder, device="cpu").policy.parameters())


def main() -> None:
    """Kill, resume, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--updates", type=int, default=100, help="of each training")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    processes = multiprocessing.get_context("fork")
    steps = processes.Value(c_int64, lock=False)  # whoever is killed while it holds a lock never gives it back
    kills = while_writing = before_the_first = n_trainings = failures = 0
    total, lost = arguments.updates * STEPS_PER_UPDATE, []

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CONFIG_HOME"] = temporary  # the key that signs checkpoints
        reference, folder = Path(temporary) / "uninterrupted", Path(temporary) / "killed"

        def start(path: Path) -> multiprocessing.Process:
            process = processes.Process(target=train, args=(path, total, arguments.every, steps))
            process.start()
            return process

        began = time.perf_counter()
        start(reference).join()
        duration = time.perf_counter() - began
        expected = parameters(reference)
        while kills < arguments.kills or folder.exists():
            before = sum(1 for _ in found(folder))
            steps.value = 0
            process = start(folder)
            process.join(rng.uniform(0.0, 0.5 * duration) if kills < arguments.kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
                while_writing += any(folder.glob(".writing-*"))
                good = list(good_checkpoints(folder))
                before_the_first += not good
                lost.append(max(0, steps.value - num_timesteps_at(good[0])) if good else 0)
                failures += before > 0 and not good
            else:
                same = process.exitcode == 0 and th.equal(parameters(folder), expected)
                print(f"training {n_trainings + 1}: {'as the uninterrupted one' if same else 'ANOTHER RESULT'}")
                failures += not same
                n_trainings += 1
                shutil.rmtree(folder)

    print(f"killed {kills} times, of which {while_writing} during a write and {before_the_first} before the first")
    allowed = arguments.every + STEPS_PER_UPDATE
    print(f"steps lost: at most {max(lost)}, {sum(lost) / len(lost):.0f} on average (allowed: {allowed})")
    print(f"{n_trainings} trainings, {failures} failures")
    if failures or max(lost) > allowed:
        sys.exit(1)


if __name__ == "__main__":
    main()
