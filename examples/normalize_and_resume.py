"""Normalised observations and rewards, and going on where a training stopped.

usage: python examples/normalize_and_resume.py [--timesteps 50000]
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import NPG


def main() -> None:
    """Train on Pendulum-v1, half of the steps at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    arguments = parser.parse_args()

    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=0), gamma=0.9)
    model = NPG("MlpPolicy", env, n_steps=256, gamma=0.9, seed=0)
    model.learn(arguments.timesteps // 2)
    model.save("pendulum")
    env.save("pendulum_normalization.pkl")  # the policy means nothing without the statistics

    env = VecNormalize.load("pendulum_normalization.pkl", make_vec_env("Pendulum-v1", n_envs=4, seed=1))
    model = NPG.load("pendulum", env=env)
    model.learn(arguments.timesteps // 2, reset_num_timesteps=False)
    print(f"{model.num_timesteps} steps in all")

    env.training, env.norm_reward = False, False
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"return of 20 episodes: {mean:.1f} ± {deviation:.1f}")


if __name__ == "__main__":
    main()
