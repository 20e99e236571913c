"""Long trainings: whether memory stays where it is after the beginning, and the speed too.

usage: python benchmarks/soak.py [--steps 2000000] [--algorithms REINFORCE ISPG ClippedCriticPPO]

Each algorithm trains on CartPole-v1 in a process of its own. Resident memory at the end of the second tenth is
compared with the largest after it (growth below 5 %), the steps per second of the last tenth with those of the second
(not more than 10 % fewer; seconds of the processor, whatever else runs). Exits with 1 if one of them is not so.

With fewer than a million steps the tenths are too short for that to say much: episodes still become longer, and memory
is still being handed out.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import sb3_pgext

MAX_GROWTH, MAX_CHANGE = 0.05, 0.10
SETTINGS: dict[str, dict[str, Any]] = {
    "REINFORCE": {"n_episodes": 8, "learning_rate": 1e-3},
    "ISPG": {"n_episodes": 8, "learning_rate": 1e-3, "gradient_steps": 4, "replay_batches": 4},
    "ClippedCriticPPO": {"n_steps": 256, "batch_size": 256, "n_epochs": 4},
}
TENTHS = 10


def resident() -> float:
    """
    :return: MiB of this process
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


class Tenths(BaseCallback):
    """
    Memory and time at each tenth of the training, and the largest memory within it.

    :param n_steps: of the whole training
    """

    def __init__(self, n_steps: int):
        super().__init__()
        self.n_steps = n_steps
        self.rows: list[tuple[int, float, float]] = []
        self._largest = 0.0

    def _on_training_start(self) -> None:
        self._begin, self._steps_before = time.process_time(), 0

    def _on_rollout_start(self) -> None:
        self._largest = max(self._largest, resident())
        if self.num_timesteps >= self.n_steps * (len(self.rows) + 1) // TENTHS:
            self._finish_tenth()

    def _on_training_end(self) -> None:
        if len(self.rows) < TENTHS:
            self._finish_tenth()

    def _finish_tenth(self) -> None:
        now = time.process_time()
        speed = (self.num_timesteps - self._steps_before) / (now - self._begin)
        self.rows.append((self.num_timesteps, speed, max(self._largest, resident())))
        self._begin, self._steps_before, self._largest = now, self.num_timesteps, 0.0

    def _on_step(self) -> bool:
        return True


def train(name: str, n_steps: int, results: Any) -> None:
    """
    In a process of its own.

    :param name: of the algorithm's class
    :param n_steps: environment steps
    :param results: queue for the rows of :class:`Tenths`
    """
    th.set_num_threads(1)
    tenths = Tenths(n_steps)
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    algorithm = getattr(sb3_pgext, name)
    algorithm("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[name]).learn(n_steps, tenths)
    results.put(tenths.rows)


def main() -> None:
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--algorithms", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()

    processes = multiprocessing.get_context("spawn")
    print(f"{'':16} {'steps':>9} {'MiB, 2nd':>9} {'largest':>9} {'growth':>7} {'steps/s':>9} {'last':>9} {'change':>7}")
    passed = True
    for name in arguments.algorithms:
        results = processes.Queue()
        process = processes.Process(target=train, args=(name, arguments.steps, results))
        process.start()
        while True:
            try:
                rows = results.get(timeout=5)
                break
            except Exception:
                if not process.is_alive():
                    sys.exit(f"{name}: its process ended with {process.exitcode}")
        process.join()
        (_, second_speed, second), (n_steps, last_speed, _) = rows[1], rows[-1]
        largest = max(memory for _, _, memory in rows[2:])
        growth, change = largest / second - 1, last_speed / second_speed - 1
        good = growth < MAX_GROWTH and change > -MAX_CHANGE
        passed = passed and good
        print(
            f"{name:16} {n_steps:9,} {second:9.1f} {largest:9.1f} {growth:7.1%} {second_speed:9,.0f} "
            f"{last_speed:9,.0f} {change:+7.1%} {'ok' if good else 'FAILED'}",
            flush=True,
        )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
