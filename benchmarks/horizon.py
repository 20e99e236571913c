"""
How the four importance weights die with the length of the episodes: effective sample size and variance of the gradient.

usage: python -m benchmarks.horizon [--horizons 10 30 100 300 1000] [--kl 0.003] [--batches 30] [--episodes 50]
                                    [--out docs/results/ispg_horizon.png]

A random MDP without an end, cut at the horizon; a behaviour policy at KL(π ‖ μ), the mean over states. The ESS is that
of the weights that are used, as a share of their number; the variance of the gradient is tr Cov of batches, relative to
that of batches of the policy itself. Prints the numbers and draws the figure.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch as th

from sb3_pgext.diagnostics import gradient_statistics
from sb3_pgext.envs import random_mdp
from sb3_pgext.estimators.importance import WEIGHTS, effective_sample_size
from sb3_pgext.estimators.returns import last_steps
from tests.diagnostics.sampler import Behaviour, ispg_on, replay_of

GAMMA = 0.99


def measure(horizon: int, kl: float, n_batches: int, n_episodes: int) -> dict[str, tuple[float, float]]:
    """
    :param horizon: length of the episodes
    :param kl: distance of the behaviour policy
    :param n_batches: batches for each estimate
    :param n_episodes: episodes of a batch
    :return: weights → ESS as a share of their number, and tr Cov relative to that of the policy's own episodes
    """
    mdp = random_mdp(0, end_probability=0.0, horizon=horizon)
    model = ispg_on(mdp, gamma=GAMMA, baseline="time")
    behaviours = {"own": Behaviour(model, mdp, 0.0, 0), "other": Behaviour(model, mdp, kl, 0)}
    rng = np.random.default_rng(0)
    gradients: dict[str, list[th.Tensor]] = {name: [] for name in ("own", *WEIGHTS)}
    shares: dict[str, list[float]] = {weights: [] for weights in WEIGHTS}
    for _ in range(n_batches):
        model.replay_buffer = replay_of(mdp, [behaviours["own"]], n_episodes, rng)
        gradients["own"].append(model.estimate_gradient())
        model.replay_buffer = replay_of(mdp, [behaviours["other"]], n_episodes, rng)
        for model.weights in WEIGHTS:
            gradients[model.weights].append(model.estimate_gradient())
            (recorded,) = model.replay_buffer.batches
            batch = model._off_policy_batch([recorded])
            log_w = model._log_weights(model._log_prob(batch.episodes), batch)
            if model.weights == "trajectory":
                log_w = log_w[last_steps(batch.episodes.episode)]
            shares[model.weights].append(effective_sample_size(log_w).item() / len(log_w))
    trace = {name: gradient_statistics(th.stack(samples)).trace.value for name, samples in gradients.items()}
    return {weights: (float(np.mean(shares[weights])), trace[weights] / trace["own"]) for weights in WEIGHTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--kl", type=float, default=0.003)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs/results/ispg_horizon.png"))
    args = parser.parse_args()
    th.set_num_threads(1)

    results = []
    for horizon in args.horizons:
        results.append(measure(horizon, args.kl, args.batches, args.episodes))
        for weights, (share, variance) in results[-1].items():
            print(f"T = {horizon:5}  {weights:12}  ESS/N = {share:6.3f}  variance = {variance:10.3g}", flush=True)

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for i, (axis, label) in enumerate(
        zip(axes, ("ESS / number of weights", "variance / on-policy variance"), strict=True)
    ):
        for weights in WEIGHTS:
            axis.plot(args.horizons, [result[weights][i] for result in results], marker="o", label=weights)
        axis.set(xscale="log", yscale="log" if i else "linear", xlabel="steps in an episode", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
