"""Train, save, load and evaluate: as with any algorithm of Stable-Baselines3.

usage: python examples/train_and_save.py [--timesteps 30000]   (the progress bar needs tqdm and rich: the extra zoo)
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pgext import ClippedCriticPPO


def main() -> None:
    """Train on CartPole-v1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=30_000)
    arguments = parser.parse_args()

    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = ClippedCriticPPO("MlpPolicy", env, n_steps=128, batch_size=128, seed=0)
    model.learn(arguments.timesteps, progress_bar=True)
    model.save("cartpole")

    loaded = ClippedCriticPPO.load("cartpole", env=env)
    mean, deviation = evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=20)
    print(f"return of 20 episodes: {mean:.1f} ± {deviation:.1f}; the model is in cartpole.zip")


if __name__ == "__main__":
    main()
