"""
Processor time of SearchGradient and of sb3-contrib's ARS for the same training, by turns, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.search_speed [--env CartPole-v1] [--n-directions 8] [--rounds 5]

Both take the same steps here (standardized returns, plain gradient descent), so that the episodes are of one length.
Steps are those that were learnt from. "floor": the environment alone, with random actions, for as many vector steps.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import gymnasium as gym
import numpy as np
from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from sb3_pgext import EnvPoolVecEnv, GymnasiumVecEnv, SearchGradient

SIGMA, RATE = 0.1, 0.05
NEVER = 10**9


def environment(kind: str, env_id: str, n_envs: int, seed: int) -> VecEnv:
    """A vectorised environment of a kind; the continuous ones normalised as for ARS."""
    if kind == "DummyVecEnv":
        env: VecEnv = make_vec_env(env_id, n_envs, seed=seed)
    elif kind == "EnvPoolVecEnv":
        env = VecMonitor(EnvPoolVecEnv(env_id, n_envs, num_threads=1))
    else:
        env = VecMonitor(GymnasiumVecEnv(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point")))
    return env if env_id == "CartPole-v1" else VecNormalize(env, norm_reward=False)


def ars(env_id: str, n: int, seed: int) -> BaseAlgorithm:
    """ARS with all directions, one episode after the other."""
    env = environment("DummyVecEnv", env_id, 1, seed)
    return ARS("LinearPolicy", env, n_delta=n, delta_std=SIGMA, learning_rate=RATE, seed=seed, device="cpu")


def es(kind: str, compile: bool, env_id: str, n: int, seed: int) -> BaseAlgorithm:
    """The same by SearchGradient, all episodes at once."""
    env = environment(kind, env_id, 2 * n, seed)
    arguments = {"n_directions": n, "sigma": SIGMA, "learning_rate": 2 * SIGMA * RATE, "shaping": "standardized"}
    return SearchGradient("LinearPolicy", env, optimizer="sgd", compile=compile, seed=seed, device="cpu", **arguments)


class CountEpisodes(BaseCallback):
    """Count the steps of the populations' episodes, and end the training after some populations."""

    def __init__(self, updates: int):
        super().__init__()
        self.left, self.n_steps = updates, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_steps += sum(info["l"] for info in self.model.ep_info_buffer)
        self.model.ep_info_buffer.clear()
        self.left -= 1
        self.model.num_timesteps += NEVER * (self.left == 0)


class Measured:
    """Processor time, steps learnt from and vector steps of a training of some updates."""

    def __init__(self, make: Callable[..., BaseAlgorithm], env_id: str, n: int, seed: int, updates: int):
        model = make(env_id, n, seed)
        model.learn(1)  # warm: what is compiled is compiled now
        counted = CountEpisodes(updates)
        start = time.process_time()
        model.learn(NEVER, counted, log_interval=None)
        self.seconds, self.learnt = time.process_time() - start, counted.n_steps
        self.vector_steps = (model.num_timesteps - NEVER) // model.n_envs
        self.env = model.env

    def floor(self) -> float:
        """Seconds of the environment alone."""
        self.env.reset()
        n = self.env.num_envs
        actions = [np.array([self.env.action_space.sample() for _ in range(n)]) for _ in range(50)]
        start = time.process_time()
        for t in range(self.vector_steps):
            self.env.step(actions[t % 50])
        return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--n-directions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    at_once = "GymnasiumVecEnv" if arguments.env == "CartPole-v1" else "EnvPoolVecEnv"
    contenders = {"ARS": ars} | {
        f"es, {kind}{', compiled' * compile}": partial(es, kind, compile)
        for kind in ("DummyVecEnv", at_once)
        for compile in (False, True)
    }
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for seed in range(arguments.rounds):
        for name, make in contenders.items():
            one = Measured(make, arguments.env, arguments.n_directions, seed, arguments.updates)
            per_step = 1e6 / one.learnt
            share = one.learnt / (one.vector_steps * one.env.num_envs)
            measured[name].append((one.seconds * per_step, one.floor() * per_step, share))
            one.env.close()
    print(f"{arguments.env}, {2 * arguments.n_directions} members, medians of {arguments.rounds} rounds")
    print("| | µs per step learnt from | floor, µs | share of steps learnt from | times ARS (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    for name, rows in measured.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(measured["ARS"], rows, strict=True)]
        time_per_step, floor, share = (median(column) for column in zip(*rows, strict=True))
        spread = f"{median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f})"
        print(f"| {name} | {time_per_step:.1f} | {floor:.1f} | {share:.0%} | {spread} |")


if __name__ == "__main__":
    main()
