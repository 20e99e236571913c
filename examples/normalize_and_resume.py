"""Normalised observations and rewards, and a training that goes on where it was stopped when it is started again.

usage: python examples/normalize_and_resume.py [--timesteps 50000]
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import NPG, CheckpointCallback, has_checkpoint, load, resume

CHECKPOINTS = "pendulum"


def main() -> None:
    """Train on Pendulum-v1; Ctrl-C, or a crash, costs at most 5,000 steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    arguments = parser.parse_args()

    if has_checkpoint(CHECKPOINTS):
        model = resume(CHECKPOINTS)  # with its environment, in the middle of its episodes
        print(f"going on from step {model.num_timesteps}")
    else:
        env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=0), gamma=0.9)
        model = NPG("MlpPolicy", env, n_steps=256, gamma=0.9, seed=0)
    callback = CheckpointCallback(every=5_000, path=CHECKPOINTS)
    model.learn(arguments.timesteps - model.num_timesteps, callback=callback, reset_num_timesteps=False)

    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=1), training=False, norm_reward=False)
    model = load(CHECKPOINTS, env=env)  # the policy means nothing without the statistics, which env gets too
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"return of 20 episodes: {mean:.1f} ± {deviation:.1f}")


if __name__ == "__main__":
    main()
