"""Policies with a trunk that policy and critic share, and what an update moves of a policy."""

import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


class SharedTrunk(BaseFeaturesExtractor):
    """Features that learn, shared by policy and critic; the names say nothing about values or policies."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.layer = th.nn.Linear(int(np.prod(observation_space.shape)), 8)

    def forward(self, observations):
        return self.layer(observations).tanh()


def moved_parameters(model, update):
    """Names of the parameters that the call changes."""
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    update()
    return {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
