"""Time of an update of NPG with its line search, beside sb3-contrib's TRPO.

usage: python benchmarks/npg_speed.py [--updates 20] [--env CartPole-v1] [--compile]

Same settings and one thread, by turns in one process, an update each: 8 sub-environments, n_steps 256, batch size 128,
10 passes over the rollout with the critic.
"""

import argparse
import statistics
import time

import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext import NPG

SETTINGS = {"n_steps": 256, "batch_size": 128, "n_critic_updates": 10, "seed": 0, "device": "cpu"}


def seconds(model: OnPolicyAlgorithm) -> tuple[float, float]:
    """
    :param model: set up to learn
    :return: of one rollout and of the update that follows
    """
    assert model.env is not None
    start = time.perf_counter()
    model.collect_rollouts(model.env, model.callback, model.rollout_buffer, model.n_steps)
    collected = time.perf_counter()
    model.train()
    return collected - start, time.perf_counter() - collected


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--compile", action="store_true", help="NPG's compile=True; the compiling itself is not timed")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    def build(algorithm: type[OnPolicyAlgorithm], **parameters: object) -> OnPolicyAlgorithm:
        env = make_vec_env(arguments.env, arguments.n_envs, seed=0)
        model = algorithm("MlpPolicy", env, **SETTINGS, **parameters)
        _, model.callback = model._setup_learn(10**9)
        return model

    theirs, ours = build(TRPO), build(NPG, line_search=True, compile=arguments.compile)
    rows = [(seconds(theirs), seconds(ours)) for _ in range(arguments.updates + 1)][1:]  # the first is a warm-up
    for name, column in zip(("TRPO", "NPG"), zip(*rows, strict=True), strict=True):
        collection, update = (1e3 * statistics.median(times) for times in zip(*column, strict=True))
        print(f"{name:5s} collection {collection:6.1f} ms, update {update:6.1f} ms (medians of {len(rows)})")
    ratios = sorted(o[1] / t[1] for t, o in rows)
    print(f"update of NPG / TRPO {statistics.median(ratios):.3f} (median; from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
