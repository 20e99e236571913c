"""Processor time of a step of off-policy training, a gradient step included, beside SB3's, with what the products take.

usage: python -m benchmarks.off_policy_speed [--env HalfCheetah-v5 Pendulum-v1 CartPole-v1] [--turns 9] [--steps 200]

On a Box SAC, and OffPolicyActorCritic, which takes the same steps; on discrete actions DQN, and DiscreteSAC with as
many gradient steps, of three networks where DQN moves one. All have one thread, 2 × 256 units, minibatches of 256 and
a gradient step after each step. They take turns in one process; the table has the medians of milliseconds per step, and
of the ratios of one turn to that of SB3's algorithm, with the smallest and largest. sbx's SAC stands beside them where
it is installed. The floor is the matrix products of the networks, forwards and backwards, alone.
"""

import argparse
import csv
import importlib
import pathlib
import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks.throughput import seconds_of_products

BATCH_SIZE, WIDTH = 256, 256
SETTING = {
    "batch_size": BATCH_SIZE,
    "train_freq": 1,
    "gradient_steps": 1,
    "learning_starts": 300,
    "buffer_size": 20_000,
}
ON_BOX = {
    "SAC": ("stable_baselines3:SAC", {}),
    "OffPolicyActorCritic": ("sb3_pgext:OffPolicyActorCritic", {}),
    "OffPolicyActorCritic compiled": ("sb3_pgext:OffPolicyActorCritic", {"compile": True}),
    "SAC (sbx)": ("sbx:SAC", {}),
}
ON_DISCRETE = {
    "DQN": ("stable_baselines3:DQN", {}),
    "DiscreteSAC": ("sb3_pgext:DiscreteSAC", {}),
    "DiscreteSAC compiled": ("sb3_pgext:DiscreteSAC", {"compile": True}),
}


def models(env: str) -> dict[str, Any]:
    """The contenders on an environment, SB3's first, after their first gradient steps."""
    discrete = isinstance(gym.make(env).action_space, gym.spaces.Discrete)
    made: dict[str, Any] = {}
    for name, (algorithm, options) in (ON_DISCRETE if discrete else ON_BOX).items():
        module, _, class_name = algorithm.partition(":")
        if importlib.util.find_spec(module) is None:
            continue
        policy = {"policy_kwargs": {"net_arch": [WIDTH, WIDTH]}} if module != "sbx" else {}
        made[name] = getattr(importlib.import_module(module), class_name)(
            "MlpPolicy", env, seed=0, device="cpu", **SETTING, **policy, **options
        )
        made[name].learn(SETTING["learning_starts"] + 20)
    return made


def floor(env: str) -> float:
    """Milliseconds of the matrix products of one gradient step of SAC, or of its discrete form."""
    spaces = gym.make(env)
    n_inputs = int(np.prod(spaces.observation_space.shape))
    discrete = isinstance(spaces.action_space, gym.spaces.Discrete)
    n_actions = int(spaces.action_space.n if discrete else np.prod(spaces.action_space.shape))
    hidden = [(WIDTH, WIDTH)]
    actor = [(n_inputs, WIDTH), *hidden, (WIDTH, n_actions if discrete else 2 * n_actions)]
    critic = (
        [(n_inputs, WIDTH), *hidden, (WIDTH, n_actions)]
        if discrete
        else [(n_inputs + n_actions, WIDTH), *hidden, (WIDTH, 1)]
    )
    values = seconds_of_products(BATCH_SIZE, [*actor, *critic, *critic], backwards=False)
    critics = 2 * seconds_of_products(BATCH_SIZE, critic, backwards=True)
    # Through the critics to the action: as many products again as forwards.
    of_critics = (1 if discrete else 2) * seconds_of_products(BATCH_SIZE, [*critic, *critic], backwards=False)
    return 1e3 * (values + critics + of_critics + seconds_of_products(BATCH_SIZE, actor, backwards=True))


def measure(env: str, turns: int, n_steps: int) -> list[dict[str, Any]]:
    """
    :param env: id of the environment
    :param turns: of each contender
    :param n_steps: of a turn
    :return: rows of the table
    """
    contenders = models(env)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, model in contenders.items():
            start = time.process_time()
            model.learn(n_steps, reset_num_timesteps=False)
            seconds[name].append(time.process_time() - start)
    peer = next(iter(contenders))
    rows = []
    for name, of_turns in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds[peer], of_turns, strict=True))
        row = {"environment": env, "contender": name, "ms/step": round(1e3 * statistics.median(of_turns) / n_steps, 2)}
        spread = {"from": round(ratios[0], 2), "to": round(ratios[-1], 2)}
        rows.append(row | {"peer": peer, "times as fast": round(statistics.median(ratios), 2)} | spread)
    return rows


def main() -> None:
    """Measure, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v5", "Pendulum-v1", "CartPole-v1"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200, help="of a turn, each with a gradient step")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the table")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rows = []
    for env in arguments.env:
        of_env = measure(env, arguments.turns, arguments.steps)
        for r in of_env:
            ratio = f"{r['times as fast']:.2f} x {r['peer']} ({r['from']:.2f} to {r['to']:.2f})"
            print(f"{env:15s} {r['contender']:30s} {r['ms/step']:6.2f} ms/step  {ratio}", flush=True)
        print(f"{env:15s} {'products of the networks alone':30s} {floor(env):6.2f} ms", flush=True)
        rows += of_env
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / "off_policy_speed.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
