"""A policy of your own: another network, other activations, a features extractor.

usage: python examples/custom_policy.py [--timesteps 30000]   (the progress bar needs tqdm and rich: the extra zoo)
"""

import argparse

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import safe_mean

from sb3_pgext import REINFORCE


class Fourier(BaseFeaturesExtractor):
    """Sines and cosines of random directions of the observation."""

    def __init__(self, observation_space: spaces.Box, n_features: int = 64):
        super().__init__(observation_space, features_dim=2 * n_features)
        self.register_buffer("directions", th.randn(observation_space.shape[0], n_features))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """``(M, *observation shape)`` → ``(M, 2 n_features)``."""
        angles = observations @ self.directions
        return th.cat([angles.sin(), angles.cos()], dim=1)


def main() -> None:
    """Train on CartPole-v1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=30_000)
    arguments = parser.parse_args()
    model = REINFORCE(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=5e-3,
        policy_kwargs={
            "features_extractor_class": Fourier,
            "features_extractor_kwargs": {"n_features": 32},
            "net_arch": {"pi": [32], "vf": [64, 64]},
            "activation_fn": th.nn.ReLU,
        },
        seed=0,
    )
    print(model.policy)
    model.learn(arguments.timesteps, progress_bar=True)
    print(f"mean return of the last episodes: {safe_mean([e['r'] for e in model.ep_info_buffer]):.1f}")


if __name__ == "__main__":
    main()
