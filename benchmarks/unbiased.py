"""Every estimator of REINFORCE against the exact gradient, on as many random MDPs and episodes as there is time for.

usage: python benchmarks/unbiased.py [--seeds 3] [--batches 1000] [--episodes 20] [--n-envs 1 3 8] [--out FILE.csv]

Prints, for each combination of options, the largest |z| over MDPs, numbers of sub-environments and parameters, and the
bound that it stays below in 99 % of all runs if the estimator is unbiased. The same batches serve all options.
"""

import argparse
import itertools
from pathlib import Path

import pandas as pd
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import REINFORCE
from sb3_pgext.diagnostics import estimated_gradient, set_options
from sb3_pgext.envs import random_mdp

CHOICES = {
    "credit": ["reward_to_go", "trajectory"],
    "baseline": ["none", "constant", "time", "optimal", "state"],
    "leave_one_out": [True, False],
    "discount_weighting": [False, True],
}
POLICY = {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False}


def allowed(model: REINFORCE, options: dict[str, object]) -> bool:
    """
    :param model: any
    :param options: a combination
    :return: whether the constructor accepts it
    """
    try:
        set_options(model, **options)
    except ValueError:
        return False
    return True


def largest_z(samples: th.Tensor, exact: th.Tensor) -> float:
    """
    :param samples: ``(K, P)``
    :param exact: ``(P,)``
    :return: of the samples' mean, over the parameters
    """
    samples = samples.double()
    return ((samples.mean(0) - exact) * len(samples) ** 0.5 / samples.std(0)).abs().max().item()


def measure(seed: int, n_envs: int, n_batches: int, n_episodes: int) -> tuple[list[dict[str, object]], int]:
    """
    :param seed: of the MDP, the policy and the episodes
    :param n_envs: number of sub-environments
    :param n_batches: K
    :param n_episodes: episodes per batch
    :return: one row per combination, and the number of parameters
    """
    env = make_vec_env(lambda: random_mdp(seed), n_envs, seed=seed)
    model = REINFORCE("MlpPolicy", env, n_episodes=n_episodes, gamma=0.9, seed=seed, device="cpu", policy_kwargs=POLICY)
    _, callback = model._setup_learn(10**9)
    batches = []
    for _ in range(n_batches):
        model.collect_rollouts(env, callback, model.rollout_buffer, n_episodes)
        batches.append(model.episodes)
    rows = []
    for values in itertools.product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        if not allowed(model, options):
            continue
        samples = []
        for model.episodes in batches:
            samples.append(model.estimate_gradient())
        exact = estimated_gradient(model, random_mdp(seed))
        rows.append({**options, "seed": seed, "n_envs": n_envs, "z": largest_z(th.stack(samples), exact)})
    return rows, len(exact)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for seed, n_envs in itertools.product(range(arguments.seeds), arguments.n_envs):
        measured, n_parameters = measure(seed, n_envs, arguments.batches, arguments.episodes)
        rows += measured
        print(f"MDP {seed}, {n_envs} sub-environments: done", flush=True)
    table = pd.DataFrame(rows)
    bound = stats.t.isf(0.01 / 2 / n_parameters / len(table), arguments.batches - 1)
    print(table.groupby(list(CHOICES))["z"].max().round(2).to_string())
    print(f"bound {bound:.2f} (1 % for all {len(table)} × {n_parameters} comparisons together)")
    if arguments.out is not None:
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
