"""What the checks cost: steps per second with and without them.

usage: python -m benchmarks.checks [--turns 15] [--env CartPole-v1 HalfCheetah-v5] [--n-envs 8]

Each row is one model, which takes turns: some rollouts with their updates as they are, then as many with every check of
numbers that an environment, the policy or an update returns replaced by a function that does nothing. The ratio is that
of the processor times of one turn; the table has its median and quartiles, and what the checks take in microseconds per
vector step.
HalfCheetah-v5 needs mujoco.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import VPG, ClippedCriticPPO
from sb3_pgext.algorithms import on_policy, ppo_cc
from sb3_pgext.engine import whole_updates
from sb3_pgext.rollouts import acting, collector, steps

N_STEPS = 256
ALGORITHMS: dict[type, dict[str, Any]] = {ClippedCriticPPO: {"clip_range_vf": 0.2}, VPG: {}}


def passes(*_: Any) -> bool:
    """What takes the place of a check."""
    return True


CHECKS = {
    (acting, "step_check"): lambda _: passes,
    (acting, "surely_finite"): passes,
    (collector, "require_observations"): passes,
    (collector, "require_finite_parameters"): passes,
    (steps, "require_observation"): passes,
    (on_policy, "require_finite_losses"): passes,
    (ppo_cc, "require_finite_losses"): passes,
    (whole_updates, "require_finite_state"): passes,
}


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without any check."""
    with contextlib.ExitStack() as stack:
        for (module, name), replacement in CHECKS.items():
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield


def seconds(model: Any, callback: BaseCallback, n_rollouts: int) -> float:
    """Processor time of some rollouts with their updates, per vector step."""
    start = time.process_time()
    for _ in range(n_rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        model.train()
    return (time.process_time() - start) / (n_rollouts * model.n_steps)


def measure(model: Any, n_turns: int, n_rollouts: int) -> tuple[list[float], list[float]]:
    """
    :param model: set up to learn here
    :param n_turns: of both kinds, after one that does not count
    :param n_rollouts: of a turn
    :return: seconds per vector step with the checks, and without them
    """
    _, callback = model._setup_learn(10**12)
    checked, without = [], []
    for turn in range(n_turns + 1):
        for kind in (0, 1) if turn % 2 else (1, 0):  # neither always after the other
            with unchecked() if kind else contextlib.nullcontext():
                (without if kind else checked).append(seconds(model, callback, n_rollouts))
    return checked[1:], without[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["CartPole-v1", "HalfCheetah-v5"], metavar="ID")
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rollouts", type=int, default=4, help="of a turn, each with its update")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    print("environment | algorithm | compile | steps/s with | without | ratio, median [quartiles] | µs per vector step")
    for env in arguments.env:
        for algorithm, options in ALGORITHMS.items():
            for compiled in (False, True):
                venv = make_vec_env(env, arguments.n_envs, seed=0)
                options = options | {"n_steps": N_STEPS, "compile": compiled, "seed": 0, "device": "cpu"}
                checked, without = measure(algorithm("MlpPolicy", venv, **options), arguments.turns, arguments.rollouts)
                speeds = [arguments.n_envs / statistics.median(times) for times in (checked, without)]
                ratios = [b / a for a, b in zip(checked, without, strict=True)]
                low, ratio, high = statistics.quantiles(ratios, n=4)
                cost = 1e6 * statistics.median(a - b for a, b in zip(checked, without, strict=True))
                print(
                    f"{env} | {algorithm.__name__} | {compiled} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | "
                    f"{ratio:.3f} [{low:.3f}, {high:.3f}] | {cost:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
