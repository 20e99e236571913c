"""Logging to Weights & Biases, which reads what goes to TensorBoard: pip install "sb3-pgext[wandb]".

Log in with `wandb login`, or set WANDB_MODE=offline to write to the disk alone.

usage: python examples/weights_and_biases.py [--timesteps 50000]
"""

import argparse

import wandb
from wandb.integration.sb3 import WandbCallback

from sb3_pgext import ISPG


def main() -> None:
    """Train on CartPole-v1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    arguments = parser.parse_args()
    settings = {"learning_rate": 2e-3, "n_episodes": 4, "gamma": 0.98, "max_grad_norm": 0.5}
    with wandb.init(project="sb3-pgext", config=settings, sync_tensorboard=True) as run:
        model = ISPG("MlpPolicy", "CartPole-v1", tensorboard_log=f"runs/{run.id}", **settings)
        model.learn(arguments.timesteps, callback=WandbCallback(model_save_path=f"models/{run.id}"))


if __name__ == "__main__":
    main()
