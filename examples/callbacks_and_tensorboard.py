"""Callbacks and TensorBoard: those of Stable-Baselines3, and one of your own that watches the gradient.

usage: python examples/callbacks_and_tensorboard.py [--timesteps 50000]

then tensorboard --logdir runs/tensorboard (pip install tensorboard).
"""

import argparse

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import VPG


class LargestGradient(BaseCallback):
    """Remember the largest norm of the policy gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # What the update before has logged.
        self.largest = max(self.largest, self.logger.name_to_value.get("train/grad_norm", 0.0))


def main() -> None:
    """Train on CartPole-v1 until it is solved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    arguments = parser.parse_args()

    solved = StopTrainingOnRewardThreshold(reward_threshold=475, verbose=1)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", n_envs=4, seed=1),
        callback_on_new_best=solved,
        eval_freq=100,  # of the four sub-environments together: every 400 steps
        n_eval_episodes=20,
        best_model_save_path="runs/best",
        verbose=0,
    )
    watch = LargestGradient()
    model = VPG(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=4, seed=0),
        n_steps=64,
        learning_rate=5e-3,
        tensorboard_log="runs/tensorboard",
        seed=0,
    )
    model.learn(arguments.timesteps, callback=[evaluation, watch], tb_log_name="vpg", log_interval=10)
    print(f"{model.num_timesteps} steps, best evaluation {evaluation.best_mean_reward:.1f}")
    print(f"largest gradient: {watch.largest:.2f}")


if __name__ == "__main__":
    main()
