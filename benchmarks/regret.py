"""Regret of exponential weights beside the bounds of theory: Hedge and EXP3 on bandits, exact Q on finite MDPs.

usage: python -m benchmarks.regret [--rounds 1000] [--seeds 100] [--out runs/regret]

Three bandits, three finite MDPs, five step sizes around that of the bound. EXP3 sees rewards as losses (b = 1).
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ExponentialWeights
from sb3_pgext.diagnostics import RegretCallback
from sb3_pgext.envs import Bandit, TabularMDP, chain, gridworld, random_mdp
from sb3_pgext.estimators.exponential_weights import regret_bound, step_size_of_bound

BANDITS = {"two arms": (0.6, 0.4), "three arms": (0.9, 0.5, 0.1), "five arms": (0.5, 0.5, 0.5, 0.5, 0.6)}
MDPS = {"Chain": lambda: chain(5), "Gridworld": gridworld, "RandomMDP": random_mdp}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Step sizes, as multiples of that of the bound."""
GAMMA = 0.9
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


class Regret(NamedTuple):
    """
    :param cumulative: of each run, ``(K, R)``
    :param bound: of K rounds
    :param eta: η
    """

    cumulative: th.Tensor
    bound: float
    eta: float


def hedge(means: tuple[float, ...], factor: float, n_rounds: int) -> Regret:
    """
    :param means: of the arms
    :param factor: of the step size
    :param n_rounds: K
    :return: of the one run that there is with exact rewards
    """
    eta = factor * step_size_of_bound(len(means), n_rounds, "full")
    bandit, found = Bandit(means), RegretCallback(Bandit(means))
    model = ExponentialWeights("MlpPolicy", bandit, eta, feedback="full", seed=0, device="cpu")
    model.learn(n_rounds, found, log_interval=None)
    return Regret(found.regret[1], regret_bound(len(means), n_rounds, eta, "full"), eta)


def numbered_bandits(means: tuple[float, ...], n: int) -> DummyVecEnv:
    """
    The same bandit n times, side by side, each of which shows its number: a tabular policy learns n of them apart.

    :param means: of the arms
    :param n: how many
    :return: the environment
    """

    def make(i: int) -> TransformObservation:
        return TransformObservation(Bandit(means), lambda _: np.int64(i), spaces.Discrete(n))

    return DummyVecEnv([partial(make, i) for i in range(n)])


def all_bandits(means: tuple[float, ...], n: int) -> TabularMDP:
    """
    :param means: of the arms
    :param n: how many bandits there are side by side
    :return: all of them as one MDP, which starts in any
    """
    return TabularMDP(np.zeros((n, len(means), n)), np.tile(means, (n, 1)), np.full(n, 1 / n))


def exp3(means: tuple[float, ...], factor: float, n_rounds: int, n_seeds: int) -> Regret:
    """
    :param means: of the arms
    :param factor: of the step size
    :param n_rounds: K
    :param n_seeds: R: each run has a state, a sub-environment and a row of the table of its own
    :return: of all runs
    """
    eta = factor * step_size_of_bound(len(means), n_rounds, "bandit")
    env, found = numbered_bandits(means, n_seeds), RegretCallback(all_bandits(means, n_seeds))
    model = ExponentialWeights("MlpPolicy", env, eta, baseline=1.0, seed=0, device="cpu")
    model.learn(n_rounds * n_seeds, found, log_interval=None)
    return Regret(found.regret[1], regret_bound(len(means), n_rounds, eta, "bandit"), eta)


def exact(mdp: TabularMDP, factor: float, n_rounds: int) -> Regret:
    """
    :param mdp: with several states
    :param factor: of the step size
    :param n_rounds: K
    :return: of the one run that there is, from each state
    """
    n_actions, largest = int(mdp.action_space.n), float(np.abs(mdp.expected_rewards).max()) / (1 - GAMMA)  # type: ignore[attr-defined]
    eta = factor * step_size_of_bound(n_actions, n_rounds, "full", largest, one_state=False)
    found = RegretCallback(mdp, GAMMA)
    model = ExponentialWeights("MlpPolicy", mdp, eta, gamma=GAMMA, feedback="full", seed=0, device="cpu")
    model.learn(n_rounds, found, log_interval=None)
    return Regret(found.regret[1], regret_bound(n_actions, n_rounds, eta, "full", largest, GAMMA), eta)


def upper_limit(of_runs: th.Tensor) -> float:
    """The mean over the runs, with 2.33 standard errors on top: a one-sided 99 % limit."""
    spread = of_runs.std().item() if len(of_runs) > 1 else 0.0
    return of_runs.mean().item() + 2.33 * spread / len(of_runs) ** 0.5


def rounds_panel(axes: Axes, results: list[Regret], title: str) -> None:
    """Regret over the rounds for each step size, and the bound at the end as a mark."""
    for color, result in zip(COLORS, results, strict=True):
        cumulative = result.cumulative.numpy()
        rounds = np.arange(1, len(cumulative) + 1)
        low, high = np.percentile(cumulative, [10, 90], axis=1)
        axes.fill_between(rounds, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(rounds, cumulative.mean(1), color=color, linewidth=1.6, label=f"η = {result.eta:.3g}")
        axes.plot(rounds[-1:], [result.bound], "_", color=color, markersize=12, markeredgewidth=2.5, clip_on=False)
    axes.set(xlabel="round", ylabel="cumulative regret", title=title, ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def shares_panel(axes: Axes, results: dict[str, list[Regret]], title: str) -> None:
    """Regret at the end as a share of the bound, over the step sizes."""
    for color, (name, of_name) in zip(COLORS, results.items(), strict=False):
        shares = [upper_limit(result.cumulative[-1]) / result.bound for result in of_name]
        axes.plot(FACTORS, shares, "o-", color=color, linewidth=1.6, markersize=4, label=name)
    axes.axhline(1.0, color="0.3", linewidth=1.0, linestyle=(0, (4, 2)))
    axes.text(FACTORS[0], 1.02, "the bound", fontsize=8, color="0.3")
    axes.set(xscale="log", xlabel="η / η of the bound", ylabel="regret / bound", title=title, ylim=(0, 1.15))
    axes.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/regret"))
    arguments = parser.parse_args()
    rounds = arguments.rounds
    of_hedge = {n: [hedge(means, f, rounds) for f in FACTORS] for n, means in BANDITS.items()}
    of_exp3 = {n: [exp3(means, f, rounds, arguments.seeds) for f in FACTORS] for n, means in BANDITS.items()}
    of_mdps = {n: [exact(make(), f, rounds) for f in FACTORS] for n, make in MDPS.items()}

    figure = Figure(figsize=(15, 4.0), layout="constrained")
    axes = figure.subplots(1, 4)
    rounds_panel(axes[0], of_exp3["two arms"], f"EXP3, two arms, {arguments.seeds} seeds")
    shares_panel(axes[1], of_hedge, f"Hedge, {rounds:,} rounds")
    shares_panel(axes[2], of_exp3, f"EXP3, {rounds:,} rounds")
    shares_panel(axes[3], of_mdps, f"finite MDPs, {rounds:,} rounds")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out.with_suffix(".png"), dpi=150)
    for kind, results in (("Hedge", of_hedge), ("EXP3", of_exp3), ("finite MDP", of_mdps)):
        for name, of_name in results.items():
            columns = (f"{upper_limit(r.cumulative[-1]):8.2f} of {r.bound:8.2f}" for r in of_name)
            print(f"{kind:10s} {name:10s}", *columns, sep="  ")
    print(f"written to {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
