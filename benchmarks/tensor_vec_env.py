"""
What it brings that an environment speaks tensors: PPO on 1,024 CartPoles, one thread, contenders taking turns.

    python -m benchmarks.tensor_vec_env [--rounds 7] [--scale 256 1024 4096 16384] [--adapters]

Times are those of the processor per step of a sub-environment, medians of the rounds; ratios are those of a round, with
the smallest and the largest. What is compiled is compiled before. ``--adapters`` trains on gymnasium's CartPole in JAX
and on Brax's ant, and prints the mean returns of the first and the last episodes.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_pgext import ClippedCriticPPO, GymnasiumVecEnv, TensorVecEnv, TensorVecNormalize
from sb3_pgext.vec_envs import BraxEnv, GymnasiumTensorEnv, TorchCartPole

N_STEPS, BATCH_SIZE, N_EPOCHS = 32, 4096, 4


def over_gymnasium(n_envs: int) -> VecEnv:
    """gymnasium's vectorised CartPole through our adapter."""
    return VecMonitor(GymnasiumVecEnv(gym.make_vec("CartPole-v1", n_envs, vectorization_mode="vector_entry_point")))


def over_tensors(n_envs: int) -> VecEnv:
    """CartPole in torch."""
    return TensorVecEnv(TorchCartPole(n_envs))


CONTENDERS: dict[str, tuple[type, Callable[[int], VecEnv], dict[str, Any]]] = {
    "PPO (SB3), DummyVecEnv": (PPO, lambda n_envs: make_vec_env("CartPole-v1", n_envs), {}),
    "ClippedCriticPPO, GymnasiumVecEnv": (ClippedCriticPPO, over_gymnasium, {}),
    "ClippedCriticPPO, TensorVecEnv": (ClippedCriticPPO, over_tensors, {}),
    "ClippedCriticPPO compiled, GymnasiumVecEnv": (ClippedCriticPPO, over_gymnasium, {"compile": True}),
    "ClippedCriticPPO compiled, TensorVecEnv": (ClippedCriticPPO, over_tensors, {"compile": True}),
}


class Contender:
    """
    A model that learns a rollout at a time.

    :param name: of :data:`CONTENDERS`
    :param n_envs: number of sub-environments
    """

    def __init__(self, name: str, n_envs: int):
        cls, make, arguments = CONTENDERS[name]
        sizes = {"n_steps": N_STEPS, "batch_size": min(BATCH_SIZE, N_STEPS * n_envs), "n_epochs": N_EPOCHS}
        self.model = cls("MlpPolicy", make(n_envs), device="cpu", seed=0, **sizes, **arguments)
        self.model.set_logger(Logger(None, []))
        _, self.callback = self.model._setup_learn(10**9)
        self.turn()  # compiles

    def turn(self) -> tuple[float, float]:
        """Microseconds per step of collecting a rollout, and of learning from it."""
        model, start = self.model, time.process_time()
        model.collect_rollouts(model.env, self.callback, model.rollout_buffer, N_STEPS)
        between = time.process_time()
        model.train()
        per_step = 1e6 / (N_STEPS * model.n_envs)
        return per_step * (between - start), per_step * (time.process_time() - between)


def measured(contenders: dict[Any, Contender], rounds: int) -> dict[Any, np.ndarray]:
    """Collection, update and both of each contender, ``(rounds, 3)``, by turns."""
    times: dict[Any, list[tuple[float, float]]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            times[key].append(contender.turn())
    return {key: np.c_[of_key, np.sum(of_key, axis=1)] for key, of_key in times.items()}


def ratio(slower: np.ndarray, faster: np.ndarray) -> str:
    """The ratio of times, with its smallest and largest value."""
    ratios = slower / faster
    return f"{median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})"


def compare(names: list[str], n_envs: int, rounds: int) -> None:
    """Print the contenders' times, and their ratios to the first one's."""
    times = measured({name: Contender(name, n_envs) for name in names}, rounds)
    first = times[names[0]]
    print(
        f"{n_envs} CartPoles | collection, µs | update, µs | collection × | training ×\n--- | ---: | ---: | --- | ---"
    )
    for name, of_name in times.items():
        collection, update, _ = np.median(of_name, axis=0)
        ratios = " | ".join(ratio(first[:, column], of_name[:, column]) for column in (0, 2))
        print(f"{name} | {collection:.2f} | {update:.2f} | {ratios}")
    for kind in ("ClippedCriticPPO", "ClippedCriticPPO compiled"):
        pair = [times.get(f"{kind}, {vec_env}") for vec_env in ("GymnasiumVecEnv", "TensorVecEnv")]
        if all(x is not None for x in pair):
            both = " and ".join(ratio(pair[0][:, column], pair[1][:, column]) for column in (0, 2))
            print(f"{kind}, TensorVecEnv against GymnasiumVecEnv: collection and training {both}")


def scale(name: str, sizes: list[int], rounds: int) -> None:
    """Print what a step costs with so many sub-environments."""
    times = measured({n_envs: Contender(name, n_envs) for n_envs in sizes}, rounds)
    print(f"\n{name}: sub-environments | collection, µs | training, µs\n--- | ---: | ---:")
    for n_envs, of_size in times.items():
        collection, _, both = np.median(of_size, axis=0)
        print(f"{n_envs} | {collection:.2f} | {both:.2f}")


def adapters(n_updates: int) -> None:
    """Train on environments in JAX."""
    makers: dict[str, Callable[[], VecEnv]] = {
        "phys2d/CartPole-v1": lambda: TensorVecEnv(GymnasiumTensorEnv(gym.make_vec("phys2d/CartPole-v1", 256))),
        "brax ant": lambda: TensorVecNormalize(TensorVecEnv(BraxEnv("ant", 256, backend="spring"))),
    }
    for name, make in makers.items():
        model = ClippedCriticPPO("MlpPolicy", make(), n_steps=32, batch_size=1024, device="cpu", seed=0)
        model.learn(1)
        start, means = time.perf_counter(), []
        for _ in range(2):
            model.ep_info_buffer.clear()
            model.learn(n_updates // 2 * 32 * 256, reset_num_timesteps=False)
            means.append(np.mean([info["r"] for info in model.ep_info_buffer]))
        speed = n_updates // 2 * 2 * 32 * 256 / (time.perf_counter() - start)
        print(f"{name}: {model.num_timesteps:,} steps, {speed:,.0f} /s, returns {means[0]:.1f}, then {means[1]:.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", default=[*CONTENDERS], choices=[*CONTENDERS])
    parser.add_argument("--n-envs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=int, nargs="*", default=[256, 1024, 4096, 16384])
    parser.add_argument("--adapters", type=int, nargs="?", const=20, help="number of updates")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    if arguments.adapters:
        adapters(arguments.adapters)
        return
    compare(arguments.contenders, arguments.n_envs, arguments.rounds)
    if arguments.scale:
        scale(arguments.contenders[-1], arguments.scale, arguments.rounds)


if __name__ == "__main__":
    main()
