"""A small off-policy algorithm of nobody's package: a deterministic actor and a Q-critic, with an optimizer each."""

from typing import ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.td3.policies import MlpPolicy, MultiInputPolicy
from torch.nn import functional as F

from sb3_pgext.algorithms.base import PolicyGradientAlgorithm
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.engine import require_finite_losses, whole_update

__all__ = ["ToyOffPolicy", "gaussian_noise"]


class ToyOffPolicy(PolicyGradientAlgorithm, OffPolicyAlgorithm):
    """
    DDPG on one page.

    :param policy: Policy
    :param env: Environment
    :param learning_rate: of actor and critic
    :param reward_scale: what the critic's targets multiply rewards with
    :param compile: compile both steps
    :param arguments: what ``OffPolicyAlgorithm`` takes
    """

    policy_aliases: ClassVar = {"MlpPolicy": MlpPolicy, "MultiInputPolicy": MultiInputPolicy}

    def __init__(
        self, policy, env, learning_rate=1e-3, reward_scale=1.0, compile=False, _init_setup_model=True, **arguments
    ):
        arguments = {
            **{"buffer_size": 200, "learning_starts": 20, "batch_size": 8},
            **{"sde_support": False, "support_multi_env": True, "supported_action_spaces": (spaces.Box,)},
            **given(locals()),
            **arguments,
        }
        del arguments["arguments"]
        super().__init__(**arguments)

    def _setup_model(self):
        super()._setup_model()
        self.actor, self.critic = self.policy.actor, self.policy.critic
        self.actor_target, self.critic_target = self.policy.actor_target, self.policy.critic_target

    @whole_update
    def train(self, gradient_steps, batch_size=100):
        """Steps of the critic along its squared error, and of the actor along Q."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        losses = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            losses.append(self._descend(self.critic, self._critic_loss, *batch[:5]))
            losses.append(self._descend(self.actor, self._actor_loss, batch.observations))
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
        require_finite_losses("loss", th.stack(losses), self._n_updates)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _critic_loss(self, observations, actions, next_observations, dones, rewards):
        with th.no_grad():
            following = self.critic_target.q1_forward(next_observations, self.actor_target(next_observations))
            target = self.reward_scale * rewards + (1 - dones) * self.gamma * following
        loss = F.mse_loss(self.critic.q1_forward(observations, actions), target)
        return loss, loss.detach()

    def _actor_loss(self, observations):
        loss = -self.critic.q1_forward(observations, self.actor(observations)).mean()
        return loss, loss.detach()

    def _descend(self, network, loss, *batch):
        with self.engine.descending(network.optimizer, list(network.parameters()), loss) as step:
            return step(*batch)[0]

    def _excluded_save_params(self):
        return [*super()._excluded_save_params(), "actor", "critic", "actor_target", "critic_target"]

    def _get_torch_save_params(self):
        return ["policy", "actor.optimizer", "critic.optimizer"], []


def gaussian_noise(env, std=0.1):
    """Exploration noise for the actions of an environment."""
    mean = 0.0 * env.action_space.high
    return NormalActionNoise(mean, std + mean)
