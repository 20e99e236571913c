"""Why the natural gradient: REINFORCE against exponential weights on two arms (lecture 004).

usage: python examples/softmax_bandit.py [--seeds 20] [--rounds 1000] [--out runs/softmax_bandit]

Rewards are Bernoulli(0.6) and Bernoulli(0.4); the first policy is [0.0001, 0.9999], nearly all on the worse arm. Both
see the reward of the arm that they draw, one per round, as a loss r - 1. In the mean they move the logits by

    policy gradient       θ(a) ← θ(a) + η π(a) A(a)     REINFORCE
    exponential weights   θ(a) ← θ(a) + η A(a)          ExponentialWeights: EXP3, or Hedge where all rewards are known

The gradient carries the factor π(a): an arm that is nearly never chosen is nearly never corrected, whatever it pays.

All seeds are one run: as many bandits side by side, each showing its number, and a policy that is a table.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import REINFORCE, ExponentialWeights
from sb3_pgext.algorithms.ew import TabularPolicy
from sb3_pgext.diagnostics import RegretCallback
from sb3_pgext.envs import Bandit, TabularMDP

MEANS = (0.6, 0.4)
INITIAL_POLICY = (0.0001, 0.9999)
STEP_SIZES = np.logspace(-3, 2, 6)
COLORS = {"policy gradient": "#d55e00", "EXP3": "#009e73", "Hedge": "#0072b2"}


def numbered_bandit(number: int, n: int) -> TransformObservation:
    """
    :param number: which of them
    :param n: how many there are
    :return: the bandit, which shows its number
    """
    return TransformObservation(Bandit(MEANS), lambda _: np.int64(number), spaces.Discrete(n))


def play(rule: str, step_size: float, n_seeds: int, n_rounds: int) -> np.ndarray:
    """
    :param rule: a key of :data:`COLORS`
    :param step_size: η
    :param n_seeds: repetitions; 1 where nothing is drawn
    :param n_rounds: rounds
    :return: π(arm 1) before each round, ``(rounds, seeds)``
    """
    n = 1 if rule == "Hedge" else n_seeds
    env = DummyVecEnv([partial(numbered_bandit, i, n) for i in range(n)])
    options: dict[str, Any] = {"seed": 0, "device": "cpu"}
    if rule == "policy gradient":  # the gradient is the mean over the seeds: n times the step
        options |= {"n_episodes": n, "learning_rate": n * step_size, "policy_kwargs": {"optimizer_class": th.optim.SGD}}
        options |= {"baseline": lambda episodes, returns: th.ones_like(returns)}
        model: Any = REINFORCE(TabularPolicy, env, **options)
    elif rule == "EXP3":
        model = ExponentialWeights("MlpPolicy", env, step_size, baseline=1.0, **options)
    else:
        model = ExponentialWeights("MlpPolicy", Bandit(MEANS), step_size, feedback="full", **options)
    model.policy.logits.copy_(th.tensor(INITIAL_POLICY).log())
    all_of_them = TabularMDP(np.zeros((n, 2, n)), np.tile(MEANS, (n, 1)), np.full(n, 1 / n))
    recorded = RegretCallback(all_of_them)
    model.learn(n_rounds * n, recorded, log_interval=None)
    return (recorded.values.numpy() - MEANS[1]) / (MEANS[0] - MEANS[1])


def draw(histories: dict[str, dict[float, np.ndarray]]) -> Figure:
    """
    :param histories: rule → η → π(arm 1), ``(rounds, seeds)``
    :return: total reward over the step sizes, and what happens at a small and at a large one
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    for rule, color in COLORS.items():
        totals = np.stack([total_reward(history) for history in histories[rule].values()])  # (step sizes, seeds)
        low, high = np.percentile(totals, [10, 90], axis=1)
        left.fill_between(STEP_SIZES, low, high, color=color, alpha=0.2, linewidth=0)
        left.plot(STEP_SIZES, totals.mean(axis=1), "o-", markersize=3, color=color, linewidth=1.8, label=rule)
    n_rounds = len(next(iter(histories["Hedge"].values())))
    left.axhline(MEANS[0] * n_rounds, color="0.4", linewidth=0.8, linestyle=(0, (2, 3)))
    left.text(STEP_SIZES[0], MEANS[0] * n_rounds, "always arm 1", va="bottom", fontsize=8, color="0.3")
    left.set(xscale="log", xlabel="step size η", ylabel=f"total expected reward of {n_rounds:,} rounds")
    left.set_title("mean, and 10-90 % of the seeds", fontsize=10)
    left.legend(loc="upper left", bbox_to_anchor=(0.0, 0.9), frameon=False, fontsize=9)
    for axes, step_size, title in zip(others, (0.1, 100.0), ("too slow on arm 1", "too fast on arm 2"), strict=True):
        for rule in ("policy gradient", "Hedge"):
            history = histories[rule][STEP_SIZES[np.abs(STEP_SIZES - step_size).argmin()]]
            axes.plot(history[:, :12], color=COLORS[rule], linewidth=0.9, alpha=0.7)
        axes.set(xlabel="round", ylabel="probability of arm 1, the better one", ylim=(-0.03, 1.03))
        axes.set_title(f"η = {step_size:g}: {title}", fontsize=10)
    for axes in (left, *others):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def total_reward(history: np.ndarray) -> np.ndarray:
    """
    :param history: π(arm 1), ``(rounds, seeds)``
    :return: expected total reward of the policies played, ``(seeds,)``
    """
    return (history * MEANS[0] + (1 - history) * MEANS[1]).sum(axis=0)


def main() -> None:
    """Play, draw, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/softmax_bandit"))
    arguments = parser.parse_args()
    histories = {
        rule: {eta: play(rule, eta, arguments.seeds, arguments.rounds) for eta in STEP_SIZES} for rule in COLORS
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(histories).savefig(arguments.out.with_suffix(".png"), dpi=200)
    for rule, of_rule in histories.items():
        print(f"{rule:16s}", *(f"η = {eta:g}: {total_reward(history).mean():.0f}" for eta, history in of_rule.items()))
    print(f"written to {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
