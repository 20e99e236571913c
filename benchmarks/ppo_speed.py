"""Time of a whole run of ClippedCriticPPO, collection and updates, beside SB3's PPO.

usage: python benchmarks/ppo_speed.py [--updates 10] [--value-clip none] [--env CartPole-v1]

Both run with the same settings and one thread, by turns in one process, an update each: 8 sub-environments,
n_steps 256, batch size 64, 10 epochs. With --value-clip none or clip both compute the same numbers to the bit.
"""

import argparse
import statistics
import time

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import ClippedCriticPPO

SETTINGS = {"n_steps": 256, "batch_size": 64, "n_epochs": 10, "seed": 0, "device": "cpu"}


def seconds(model: PPO) -> tuple[float, float]:
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
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--value-clip", choices=["none", "clip", "max"], default="none")
    parser.add_argument("--env", default="CartPole-v1")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    def build(algorithm: type[PPO], **parameters: object) -> PPO:
        env = make_vec_env(arguments.env, arguments.n_envs, seed=0)
        model = algorithm("MlpPolicy", env, **SETTINGS, **parameters)
        _, model.callback = model._setup_learn(10**9)
        return model

    value_clip = arguments.value_clip
    theirs = build(PPO, clip_range_vf=0.2 if value_clip == "clip" else None)
    ours = build(ClippedCriticPPO, value_clip=value_clip)
    rows = [(seconds(theirs), seconds(ours)) for _ in range(arguments.updates + 1)][1:]  # the first is a warm-up
    for name, column in zip(("PPO", "ClippedCriticPPO"), zip(*rows, strict=True), strict=True):
        collection, update = (1e3 * statistics.median(times) for times in zip(*column, strict=True))
        print(f"{name:17s} collection {collection:6.1f} ms, update {update:6.1f} ms (medians of {len(rows)})")
    ratios = sorted(sum(t) / sum(o) for t, o in rows)
    print(f"times as fast     {statistics.median(ratios):.3f} (median; from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
