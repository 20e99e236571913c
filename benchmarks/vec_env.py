"""
Environment steps per second of CartPole-v1, random actions, under each kind of vectorised environment, by turns.

    python benchmarks/vec_env.py [--n-envs 256] [--rounds 7] [--seconds 0.5]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pgext import EnvPoolVecEnv, GymnasiumVecEnv


def kinds(n_envs: int) -> dict[str, Callable[[], VecEnv]]:
    """What is measured, and how each is made."""
    makers = [lambda: gym.make("CartPole-v1")] * n_envs
    return {
        "DummyVecEnv": lambda: DummyVecEnv(makers),
        "GymnasiumVecEnv, sync": lambda: GymnasiumVecEnv(
            SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        ),
        "GymnasiumVecEnv, vectorised": lambda: GymnasiumVecEnv(
            gym.make_vec("CartPole-v1", n_envs, vectorization_mode="vector_entry_point")
        ),
        "EnvPoolVecEnv": lambda: EnvPoolVecEnv("CartPole-v1", n_envs),
    }


def steps_per_second(env: VecEnv, actions: np.ndarray, seconds: float) -> float:
    """Step for some time; steps of sub-environments per second."""
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        env.step(actions[steps % len(actions)])
        steps += 1
    return steps * env.num_envs / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-envs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    actions = np.random.default_rng(0).integers(0, 2, (100, arguments.n_envs))
    environments = {name: make() for name, make in kinds(arguments.n_envs).items()}
    measured: dict[str, list[float]] = {name: [] for name in environments}
    for env in environments.values():
        env.seed(0)
        env.reset()
    for _ in range(arguments.rounds):
        for name, env in environments.items():
            measured[name].append(steps_per_second(env, actions, arguments.seconds))
    for name, speeds in measured.items():
        ratios = sorted(speed / dummy for speed, dummy in zip(speeds, measured["DummyVecEnv"], strict=True))
        print(f"{name:28} {median(speeds):>11,.0f} /s  {median(ratios):5.1f} x  ({ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
