"""A small off-policy algorithm of nobody's package: a deterministic actor and a Q-critic, with an optimizer each."""

from typing import ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.td3.policies import MlpPolicy, MultiInputPolicy
from torch.nn import functional as F

__all__ = ["ToyOffPolicy", "gaussian_noise"]


class ToyOffPolicy(OffPolicyAlgorithm):
    """
    DDPG on one page.

    :param policy: Policy
    :param env: Environment
    :param arguments: what ``OffPolicyAlgorithm`` takes
    """

    policy_aliases: ClassVar = {"MlpPolicy": MlpPolicy, "MultiInputPolicy": MultiInputPolicy}

    def __init__(self, policy, env, learning_rate=1e-3, _init_setup_model=True, **arguments):
        arguments = {"buffer_size": 200, "learning_starts": 20, "batch_size": 8, **arguments}
        super().__init__(
            policy,
            env,
            learning_rate,
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
            **arguments,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self):
        super()._setup_model()
        self.actor, self.critic = self.policy.actor, self.policy.critic
        self.actor_target, self.critic_target = self.policy.actor_target, self.policy.critic_target

    def train(self, gradient_steps, batch_size=100):
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        for _ in range(gradient_steps):
            self._n_updates += 1
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with th.no_grad():
                following = self.critic_target.q1_forward(
                    batch.next_observations, self.actor_target(batch.next_observations)
                )
                target = batch.rewards + (1 - batch.dones) * self.gamma * following
            self._descend(
                self.critic.optimizer, F.mse_loss(self.critic.q1_forward(batch.observations, batch.actions), target)
            )
            actions = self.actor(batch.observations)
            self._descend(self.actor.optimizer, -self.critic.q1_forward(batch.observations, actions).mean())
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    @staticmethod
    def _descend(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _excluded_save_params(self):
        return [*super()._excluded_save_params(), "actor", "critic", "actor_target", "critic_target"]

    def _get_torch_save_params(self):
        return ["policy", "actor.optimizer", "critic.optimizer"], []


def gaussian_noise(env, std=0.1):
    """Exploration noise for the actions of an environment."""
    mean = 0.0 * env.action_space.high
    return NormalActionNoise(mean, std + mean)
