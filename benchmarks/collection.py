"""Time per environment step of whole-episode collection, beside SB3's A2C.

usage: python benchmarks/collection.py [--repetitions 15] [--n-envs 8] [--env CartPole-v1]

Both collect with the same untrained policy and one thread, by turns in one process, A2C with n_steps=256 and REINFORCE
as many episodes as come near to that. An environment step is one step of one sub-environment, idle ones included.
"""

import argparse
import statistics
import time

import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext import REINFORCE

N_STEPS = 256


def microseconds_per_step(model: OnPolicyAlgorithm, n_rollout_steps: int) -> float:
    """
    :param model: set up to learn
    :param n_rollout_steps: steps or episodes
    :return: of one rollout
    """
    before, start = model.num_timesteps, time.perf_counter()
    assert model.env is not None
    model.collect_rollouts(model.env, model.callback, model.rollout_buffer, n_rollout_steps)
    return (time.perf_counter() - start) / (model.num_timesteps - before) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--n-episodes", type=int, default=80, help="about 256 vector steps of an untrained CartPole")
    parser.add_argument("--env", default="CartPole-v1")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    def build(algorithm: type[OnPolicyAlgorithm], **parameters: object) -> OnPolicyAlgorithm:
        env = make_vec_env(arguments.env, arguments.n_envs, seed=0)
        model = algorithm("MlpPolicy", env, seed=0, device="cpu", **parameters)
        _, model.callback = model._setup_learn(10**9)
        return model

    a2c, reinforce = build(A2C, n_steps=N_STEPS), build(REINFORCE, n_episodes=arguments.n_episodes)
    rows = [
        (microseconds_per_step(a2c, N_STEPS), microseconds_per_step(reinforce, arguments.n_episodes))
        for _ in range(arguments.repetitions + 1)
    ]
    ratios = sorted(ours / theirs for theirs, ours in rows[1:])  # the first is a warm-up
    for name, column in zip(("A2C", "REINFORCE"), zip(*rows[1:], strict=True), strict=True):
        print(f"{name:10s} {statistics.median(column):6.2f} us per environment step (median of {len(ratios)})")
    print(f"ratio      {statistics.median(ratios):6.3f} (median; from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
