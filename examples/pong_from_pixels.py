"""Pong from pixels (lecture 000; Karpathy, 2016): REINFORCE on 80 × 80 differences of frames, with 200 hidden units.

usage: python examples/pong_from_pixels.py [--games 8000] [--baseline state] [--n-envs 8] [--out runs/pong]

Needs the extra ``atari``. The network has 1.3M parameters and says UP or DOWN; each update is along the gradient of
whole games. Two busy cores play 1,400 to 1,800 steps per second; a game has 1,000 of them at first. A checkpoint is
written every 100,000 steps, and the same command goes on with it. ``sb3-pgext train --algo reinforce
--env ALE/Pong-v5`` is the same; with ``--algo ppo_cc`` it is NatureCNN and SB3's Atari wrappers.
"""

import argparse
from pathlib import Path

import ale_py
import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import safe_mean

from sb3_pgext import REINFORCE, CheckpointCallback, HalvesVecEnv, has_checkpoint, resume
from sb3_pgext.envs.pong import PongDifferences

gym.register_envs(ale_py)


class Enough(BaseCallback):
    """End the training after so many updates."""

    def __init__(self, n_updates: int):
        super().__init__()
        self.n_updates = n_updates

    def _on_step(self) -> bool:
        return self.model._n_updates < self.n_updates


def main() -> None:
    """Play, learn, and go on where the last checkpoint is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=8000)
    parser.add_argument("--games-per-update", type=int, default=8)
    parser.add_argument("--timesteps", type=int, default=10**9, help="environment steps at most")
    parser.add_argument("--baseline", choices=["none", "constant", "time", "state"], default="state")
    parser.add_argument("--n-envs", type=int, default=8, help="games at the same time, an even number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pong"))
    arguments = parser.parse_args()

    # Half of the games go on in worker processes while the policy acts for the other half.
    options = {"seed": arguments.seed, "wrapper_class": PongDifferences, "vec_env_cls": HalvesVecEnv.of}
    env = make_vec_env("ALE/Pong-v5", arguments.n_envs, **options)
    if has_checkpoint(arguments.out):
        model = resume(arguments.out, env=env)
    else:
        # One pass of the critic over a batch costs about as much as the policy's step.
        critic = {"n_critic_updates": 1, "batch_size": 1024} if arguments.baseline == "state" else {}
        model = REINFORCE(
            "MlpPolicy",
            env,
            n_episodes=arguments.games_per_update,
            baseline=arguments.baseline,
            normalize_advantage=True,
            policy_kwargs={"net_arch": {"pi": [200], "vf": [200]}, "activation_fn": th.nn.ReLU},
            seed=arguments.seed,
            verbose=1,
            **critic,
        )
    callbacks = [CheckpointCallback(100_000, arguments.out), Enough(arguments.games // arguments.games_per_update)]
    model.learn(arguments.timesteps - model.num_timesteps, callbacks, reset_num_timesteps=False)
    print(f"mean score of the last games: {safe_mean([episode['r'] for episode in model.ep_info_buffer]):.1f}")


if __name__ == "__main__":
    main()
