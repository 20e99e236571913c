"""Logging to MLflow through SB3's logger: pip install "sb3-pgext[mlflow]".

usage: python examples/mlflow_tracking.py [--timesteps 50000]
"""

import argparse
from typing import Any

import mlflow
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger

from sb3_pgext import REINFORCE


class MLflowWriter(KVWriter):
    """Writes the numbers of the log to the active run."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write what was recorded since the last time."""
        numbers = {key: float(value) for key, value in key_values.items() if isinstance(value, (int, float))}
        mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        """Nothing is open."""


def main() -> None:
    """Train on CartPole-v1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    arguments = parser.parse_args()
    settings = {"learning_rate": 3e-3, "n_episodes": 16, "baseline": "state"}
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with mlflow.start_run() as run:
        mlflow.log_params(settings)
        model = REINFORCE("MlpPolicy", "CartPole-v1", **settings)
        model.set_logger(Logger(folder=None, output_formats=[HumanOutputFormat("log.txt"), MLflowWriter()]))
        model.learn(arguments.timesteps)
    logged = mlflow.get_run(run.info.run_id).data.metrics
    print(f"mean return of the last episodes: {logged['rollout/ep_rew_mean']:.1f}; see: mlflow ui")


if __name__ == "__main__":
    main()
