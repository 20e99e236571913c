"""Why the natural gradient: softmax policy gradient against exponential weights on two arms (lecture 004).

usage: python examples/softmax_bandit.py [--seeds 1000] [--out runs/softmax_bandit]

Rewards are Bernoulli(0.6) and Bernoulli(0.4), both seen in each of 1,000 rounds (the lecture's expert setting); the
first policy is [0.0001, 0.9999], so nearly all on the worse arm. Per round, with the advantage A(a) = r(a) - π·r,

    policy gradient       θ(a) ← θ(a) + η π(a) A(a)
    exponential weights   θ(a) ← θ(a) + η A(a)      (the natural gradient of the same policy)

The gradient carries the factor π(a): an arm that is nearly never chosen is nearly never corrected, whatever it pays.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_pgext.envs import Bandit

ROUNDS = 1000
INITIAL_POLICY = np.array([0.0001, 0.9999])
STEP_SIZES = np.logspace(-2, 3, 31)
RULES = {
    "policy gradient": lambda pi, advantage: pi * advantage,
    "exponential weights": lambda pi, advantage: advantage,
}
COLORS = {"policy gradient": "#d55e00", "exponential weights": "#0072b2"}


def softmax(theta: np.ndarray) -> np.ndarray:
    """
    :param theta: ``(…, A)``
    :return: π, ``(…, A)``
    """
    weights = np.exp(theta - theta.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def play(rule: str, step_sizes: np.ndarray, n_seeds: int) -> np.ndarray:
    """
    :param rule: a key of :data:`RULES`
    :param step_sizes: η, ``(E,)``
    :param n_seeds: number of repetitions, each with rewards of its own, the same for all rules and step sizes
    :return: π(arm 1) before each round, ``(ROUNDS, E, n_seeds)``
    """
    rng = np.random.default_rng(0)
    means = Bandit().expected_rewards[0]
    theta = np.broadcast_to(np.log(INITIAL_POLICY), (len(step_sizes), n_seeds, 2)).copy()
    history = np.empty((ROUNDS, len(step_sizes), n_seeds))
    for k in range(ROUNDS):
        pi = softmax(theta)
        history[k] = pi[..., 0]
        rewards = (rng.random((n_seeds, 2)) < means).astype(float)
        advantage = rewards - (pi * rewards).sum(axis=-1, keepdims=True)
        theta += step_sizes[:, None, None] * RULES[rule](pi, advantage)
    return history


def total_reward(history: np.ndarray) -> np.ndarray:
    """
    :param history: π(arm 1), ``(ROUNDS, …)``
    :return: expected total reward of the policies played, ``(…)``
    """
    means = Bandit().expected_rewards[0]
    return (history * means[0] + (1 - history) * means[1]).sum(axis=0)


def draw(n_seeds: int) -> Figure:
    """
    :param n_seeds: number of repetitions
    :return: total reward over the step sizes, and what happens at a small and at a large one
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    for rule, color in COLORS.items():
        rewards = total_reward(play(rule, STEP_SIZES, n_seeds))
        low, high = np.percentile(rewards, [10, 90], axis=1)
        left.fill_between(STEP_SIZES, low, high, color=color, alpha=0.2, linewidth=0)
        left.plot(STEP_SIZES, rewards.mean(axis=1), color=color, linewidth=1.8, label=rule)
    left.axhline(600, color="0.4", linewidth=0.8, linestyle=(0, (2, 3)))
    left.text(STEP_SIZES[0], 601, "always arm 1", va="bottom", fontsize=8, color="0.3")
    left.set(xscale="log", xlabel="step size η", ylabel=f"total expected reward of {ROUNDS:,} rounds", ylim=(395, 612))
    left.set_title("mean and 10-90 % of the seeds", fontsize=10)
    left.legend(loc="lower left", bbox_to_anchor=(0.0, 0.05), frameon=False, fontsize=9)
    trajectories(middle, 0.3, "too slow on arm 1")
    trajectories(right, 100.0, "too fast on arm 2")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def trajectories(axes: Axes, step_size: float, title: str) -> None:
    """
    π(arm 1) over the rounds, for a few seeds of each rule.

    :param axes: where to draw
    :param step_size: η
    :param title: what is to be seen
    """
    for rule, color in COLORS.items():
        history = play(rule, np.array([step_size]), 12)[:, 0]
        axes.plot(np.arange(ROUNDS), history, color=color, linewidth=0.7, alpha=0.5)
    axes.set(xlabel="round", ylabel="probability of arm 1, the better one", ylim=(-0.03, 1.03))
    axes.set_title(f"η = {step_size:g}: {title}", fontsize=10)


def main() -> None:
    """Draw, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/softmax_bandit"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(arguments.seeds).savefig(arguments.out.with_suffix(".png"), dpi=200)
    for rule in RULES:
        history = play(rule, STEP_SIZES, arguments.seeds)
        rewards = total_reward(history).mean(axis=1)
        best = rewards.argmax()
        good = STEP_SIZES[rewards > 550]
        span = f"{good.min():.2g} to {good.max():.2g}" if len(good) else "no step size"
        print(f"{rule:20s} best {rewards[best]:.0f} at η = {STEP_SIZES[best]:.2g}; above 550: {span}")
    print(f"written to {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
