"""SB3's actor-critic policies with a critic of Q(s, a) in place of V(s)."""

from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_pgext.algorithms.distributions import JointActions, drawn_actions
from sb3_pgext.estimators.q_critics import expected_q

__all__ = ["QCriticCnnPolicy", "QCriticMultiInputPolicy", "QCriticPolicy", "with_critic"]


class QCriticPolicy(ActorCriticPolicy):
    r"""
    SB3's actor-critic policy with a critic of Q, whose V is :math:`E_{a\sim\pi} Q(s, a)`.

    The network of the critic is SB3's. Where the joint actions are enumerated, its last layer has one output for each;
    elsewhere it takes features and action (one-hot where it is discrete) together, as the critics of SB3's SAC do.
    Its constructor is that of ``ActorCriticPolicy``.
    """

    n_action_samples: int = 16
    """Draws of the policy that V is the mean of, where actions are not enumerated; the algorithm sets it."""

    @property
    def joint_actions(self) -> JointActions | None:
        """The joint actions, where they are enumerated."""
        return JointActions.of(self.action_space)

    def q_values(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> th.Tensor:
        """
        Q(s, a) of the current critic.

        :param obs: ``(B, *observation shape)``
        :param actions: as the policy draws them, ``(B, …)``; None for all joint actions, where they are enumerated
        :return: ``(B,)``, of all actions ``(B, A)``
        """
        return self.q_of_features(BasePolicy.extract_features(self, obs, self.vf_features_extractor), actions)

    def q_of_features(self, features: th.Tensor, actions: th.Tensor | None = None) -> th.Tensor:
        """
        :meth:`q_values` from what the critic's features extractor makes of the observations.

        :param features: ``(B, features_dim)``
        :param actions: see :meth:`q_values`
        :return: ``(B,)``, of all actions ``(B, A)``
        """
        if self.joint_actions is None:
            assert actions is not None
            inputs: Any = preprocess_obs(actions, self.action_space, normalize_images=False)
            features = th.cat([features, inputs], dim=1)
            return self.value_net(self.mlp_extractor.forward_critic(features)).flatten()
        q = self.value_net(self.mlp_extractor.forward_critic(features))
        return q if actions is None else q.gather(1, self.joint_actions.numbers(actions).unsqueeze(1)).flatten()

    def _mean_q(self, features: th.Tensor, distribution: Distribution) -> th.Tensor:
        """V, the mean of Q over the policy's actions, ``(B, 1)``."""
        if self.joint_actions is not None:
            return expected_q(self.q_of_features(features), self.joint_actions.log_probs(distribution)).unsqueeze(1)
        draws = drawn_actions(distribution, self.n_action_samples)
        return th.stack([self.q_of_features(features, actions) for actions in draws]).mean(0).unsqueeze(1)

    def _distribution_and_features(self, obs: PyTorchObs) -> tuple[Distribution, th.Tensor]:
        """The action distribution, and the features that the critic gets."""
        features: Any = self.extract_features(obs)
        of_policy, of_critic = (features, features) if self.share_features_extractor else features
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(of_policy)), of_critic

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """SB3's: actions, V and log-probabilities."""
        distribution, features = self._distribution_and_features(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape(-1, *self.action_space.shape), self._mean_q(features, distribution), log_prob  # type: ignore[misc]

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """SB3's: V, log-probabilities and entropy."""
        distribution, features = self._distribution_and_features(obs)
        return self._mean_q(features, distribution), distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """SB3's: V, ``(B, 1)``."""
        distribution, features = self._distribution_and_features(obs)
        return self._mean_q(features, distribution)

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        if self.joint_actions is None:
            n_inputs = self.features_dim + get_flattened_obs_dim(self.action_space)
            of_critic = MlpExtractor(n_inputs, self.net_arch, self.activation_fn, self.device)
            self.mlp_extractor.value_net = of_critic.value_net
            self.mlp_extractor.latent_dim_vf = of_critic.latent_dim_vf

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.joint_actions is not None:
            self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, len(self.joint_actions))
            if self.ortho_init:
                self.init_weights(self.value_net, gain=1)
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


class QCriticCnnPolicy(QCriticPolicy, ActorCriticCnnPolicy):
    """:class:`QCriticPolicy` for images."""


class QCriticMultiInputPolicy(QCriticPolicy, MultiInputActorCriticPolicy):
    """:class:`QCriticPolicy` for Dict observations."""


_Q_CRITIC: dict[type[BasePolicy], type[BasePolicy]] = {
    ActorCriticPolicy: QCriticPolicy,
    ActorCriticCnnPolicy: QCriticCnnPolicy,
    MultiInputActorCriticPolicy: QCriticMultiInputPolicy,
}


def with_critic(policy_class: type[BasePolicy], critic: str) -> type[BasePolicy]:
    """
    :param policy_class: any
    :param critic: ``"v"`` or ``"q"``
    :return: the policy of SB3's or ours that has this critic instead; any other class as it is
    """
    other = _Q_CRITIC if critic == "q" else {ours: sb3s for sb3s, ours in _Q_CRITIC.items()}
    return other.get(policy_class, policy_class)
