"""
What A3C's workers bring and cost: environment steps per second, and how stale their gradients are.

usage: python -m benchmarks.asynchrony [--env CartPole-v1] [--steps 4000] [--turns 3] [--out staleness.png]

Trainings of so many steps by turns: A3C with 1, 2, 4 and 8 workers, 2 that wait for each other, SB3's A2C with 1 and 2
sub-environments. Prints the highest number of steps per second of each (other programs make it lower, nothing makes it
higher), without the time that processes take to begin. The figure has the share of updates by staleness.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import A3C

WORKERS = (1, 2, 4, 8)


class Observer(BaseCallback):
    """Steps per second after the first tenth of the steps, and the staleness of each update."""

    def _on_training_start(self) -> None:
        self.staleness: list[int] = []
        self.begin: tuple[int, float] | None = None

    def _on_rollout_start(self) -> None:
        if self.begin is None and self.model.num_timesteps >= self.locals["total_timesteps"] // 10:
            self.begin = self.model.num_timesteps, time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.staleness.append(self.locals.get("staleness", 0))
        self.now = self.model.num_timesteps, time.perf_counter()

    @property
    def speed(self) -> float:
        """Steps per second."""
        assert self.begin is not None
        steps, seconds = np.subtract(self.now, self.begin)
        return float(steps / seconds)


def contenders(env_id: str) -> dict[str, Any]:
    """Name → a function that makes the model."""

    def a3c(**arguments: Any) -> BaseAlgorithm:
        return A3C("MlpPolicy", env_id, seed=0, **arguments)

    def a2c(n_envs: int) -> BaseAlgorithm:
        return A2C("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), seed=0, device="cpu")

    return {
        **{f"A3C, {n} worker{'s' * (n > 1)}": lambda n=n: a3c(n_workers=n) for n in WORKERS},
        "A3C, 2 workers, synchronous": lambda: a3c(n_workers=2, synchronous=True),
        "A2C (SB3), 1 environment": lambda: a2c(1),
        "A2C (SB3), 2 environments": lambda: a2c(2),
    }


def draw(staleness: dict[str, list[int]], out: Path) -> None:
    """Draw the share of updates by staleness."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    largest = max(max(values) for values in staleness.values())
    for i, (name, values) in enumerate(staleness.items()):
        shares = np.bincount(values, minlength=largest + 1) / len(values)
        places = np.arange(largest + 1) + 0.25 * (i - 1)
        axes.bar(places, shares, 0.25, label=f"{name}: mean {np.mean(values):.2f}")
    axes.set(xlabel="updates of others between copy and application", ylabel="share of updates")
    axes.set(xlim=(-0.6, min(largest, 12) + 0.6), xticks=range(0, min(largest, 12) + 1, 2))
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("staleness.png"))
    args = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    staleness: dict[str, list[int]] = {}
    for _ in range(args.turns):
        for name, make in contenders(args.env).items():
            observer = Observer()
            make().learn(args.steps, observer)
            speeds.setdefault(name, []).append(observer.speed)
            staleness.setdefault(name, []).extend(observer.staleness)
            print(f"{name}: {observer.speed:.0f} steps/s, mean staleness {np.mean(observer.staleness):.2f}", flush=True)
    print("\n| | steps/s |\n| --- | ---: |")
    for name, values in speeds.items():
        print(f"| {name} | {max(values):,.0f} |")
    draw({name: staleness[name] for name in (f"A3C, {n} workers" for n in WORKERS[1:])}, args.out)


if __name__ == "__main__":
    main()
