"""Learning on several ranks, each with its share of the environments, beside one process with all of them.

usage: python benchmarks/ranks_learning.py [--seeds 10] [--steps 40000]
       torchrun --nproc-per-node 2 benchmarks/ranks_learning.py

ClippedCriticPPO on CartPole-v1, with 8 sub-environments and minibatches of 256 in all. Prints the mean return of 50
episodes after each training, and over the seeds mean and 95 % interval (Student's t).
"""

import argparse

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pgext import ClippedCriticPPO, parallel

N_ENVS, BATCH_SIZE = 8, 256


def final_return(seed: int, steps: int, size: int) -> float:
    """The mean return after a training."""
    env = make_vec_env("CartPole-v1", N_ENVS // size)
    options = {"n_steps": 32, "batch_size": BATCH_SIZE // size, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98}
    options |= {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left}
    model = ClippedCriticPPO("MlpPolicy", env, seed=seed, device="cpu", **options)
    model.learn(steps)
    if parallel.present().rank:
        return 0.0
    evaluation_env = make_vec_env("CartPole-v1", 10, seed=seed + 10**6)
    return float(evaluate_policy(model, evaluation_env, n_eval_episodes=50)[0])


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40_000)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    ranks = parallel.init()
    returns = np.array([final_return(seed, arguments.steps, ranks.size) for seed in range(arguments.seeds)])
    if ranks.rank == 0:
        mean, half = returns.mean(), stats.sem(returns) * stats.t.ppf(0.975, len(returns) - 1)
        print(f"{ranks.size} ranks: {', '.join(f'{x:.0f}' for x in returns)}")
        print(f"mean {mean:.0f}, 95 % interval {mean - half:.0f} to {mean + half:.0f}")


if __name__ == "__main__":
    main()
