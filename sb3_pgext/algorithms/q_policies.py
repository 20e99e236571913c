"""Policies of off-policy actor-critics: SAC's, and the same with a discrete actor and critics of all its actions."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    Distribution,
    SquashedDiagGaussianDistribution,
    make_proba_distribution,
)
from stable_baselines3.common.policies import BaseModel, BasePolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_pgext.algorithms.distributions import JointActions
from sb3_pgext.arguments import require
from sb3_pgext.engine import has_sb3s

__all__ = [
    "CnnPolicy",
    "DiscreteActor",
    "EncodedActionCritic",
    "JointActionCritic",
    "MlpPolicy",
    "MultiInputPolicy",
    "OffPolicyActorCriticPolicy",
    "action_distribution",
    "draw",
    "drawn_with_log_prob",
    "draws",
    "forget_distribution",
    "require_policy",
    "takes_noise",
]


class DiscreteActor(BasePolicy):
    """
    An actor over discrete actions: SB3's distribution on a network as wide as SAC's.

    :param observation_space: Observation space
    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not, dividing by 255.0
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: nn.Module,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.latent_pi = nn.Sequential(*create_mlp(features_dim, -1, net_arch, activation_fn))
        self.action_dist: Any = make_proba_distribution(action_space)
        self.action_net: Any = self.action_dist.proba_distribution_net(net_arch[-1] if net_arch else features_dim)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        :param obs: ``(B, *observation shape)``
        :return: π(·|s) of each state
        """
        features = self.extract_features(obs, self.features_extractor)
        return self.action_dist.proba_distribution(self.action_net(self.latent_pi(features)))

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: ``(B, *observation shape)``
        :return: drawn actions, ``(B, …)``, and their log π(a|s), ``(B,)``, differentiable
        """
        distribution = self.get_distribution(obs)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param obs: ``(B, *observation shape)``
        :param deterministic: the most probable actions instead of drawn ones
        :return: actions, ``(B, …)``
        """
        return self.get_distribution(obs).get_actions(deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)


class JointActionCritic(BaseModel):
    """
    Critics that give Q of all joint actions at once, as DQN's network does.

    :param observation_space: Observation space
    :param action_space: whose joint actions are enumerated
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features, common to the critics
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not, dividing by 255.0
    :param n_critics: Number of critic networks
    :param share_features_extractor: whether the features are the actor's, which alone learns them
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.share_features_extractor = share_features_extractor
        self.n_critics = n_critics
        joint_actions = JointActions.of(action_space)
        assert joint_actions is not None
        n_actions = len(joint_actions)
        self.q_networks = nn.ModuleList(
            nn.Sequential(*create_mlp(features_dim, n_actions, net_arch, activation_fn)) for _ in range(n_critics)
        )

    def forward(self, obs: PyTorchObs) -> tuple[th.Tensor, ...]:
        """
        :param obs: ``(B, *observation shape)``
        :return: Q(s, ·) of each critic, ``(B, A)`` each
        """
        assert self.features_extractor is not None
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        return tuple(q_network(features) for q_network in self.q_networks)


class EncodedActionCritic(ContinuousCritic):
    """SB3's critic of state and action, for discrete actions that are too many to enumerate; they enter as one-hot."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, **arguments: Any):
        inputs = spaces.Box(0.0, 1.0, (get_flattened_obs_dim(action_space),))
        super().__init__(observation_space, inputs, **arguments)
        self.encoded_space = action_space

    def forward(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param obs: ``(B, *observation shape)``
        :param actions: as the policy draws them, ``(B, …)``
        :return: Q(s, a) of each critic, ``(B, 1)`` each
        """
        encoded = preprocess_obs(actions, self.encoded_space)
        assert isinstance(encoded, th.Tensor)
        return super().forward(obs, encoded)


class OffPolicyActorCriticPolicy(SACPolicy):
    """
    SAC's policy; on a discrete action space with a :class:`DiscreteActor` and critics of its actions.

    Its arguments are those of SB3's ``SACPolicy``. What belongs to Gaussian actors is refused on discrete actions.
    """

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """See SB3's ``SACPolicy``."""
        if isinstance(self.action_space, spaces.Box):
            return super().make_actor(features_extractor)
        of_gaussian = {"use_sde": False, "log_std_init": -3, "use_expln": False, "clip_mean": 2.0}
        for name, default in of_gaussian.items():
            value = self.actor_kwargs[name]
            require(value == default, f"policy_kwargs: {name}", value, f"{default} on discrete actions")
        kwargs = self._update_features_extractor(self.net_args, features_extractor)
        return DiscreteActor(**kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """See SB3's ``SACPolicy``."""
        if isinstance(self.action_space, spaces.Box):
            return super().make_critic(features_extractor)
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        enumerated = JointActions.of(self.action_space) is not None
        return (JointActionCritic if enumerated else EncodedActionCritic)(**kwargs).to(self.device)


MlpPolicy = OffPolicyActorCriticPolicy


def require_policy(policy_class: type, action_space: spaces.Space) -> None:
    """
    Require a policy that has an actor and critics of these actions.

    :param policy_class: its class
    :param action_space: action space
    :raises ValueError: SB3's SACPolicy is none of its bases; or ours is not, on discrete actions
    """
    base: type = SACPolicy if isinstance(action_space, spaces.Box) else OffPolicyActorCriticPolicy
    allowed = f"a name, or a subclass of {base.__name__} on a {type(action_space).__name__} action space"
    require(issubclass(policy_class, base), "policy", policy_class.__name__, allowed)


class CnnPolicy(OffPolicyActorCriticPolicy):
    """:class:`OffPolicyActorCriticPolicy` for images, with SB3's NatureCNN unless another extractor is given."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"features_extractor_class": NatureCNN} | options)


class MultiInputPolicy(OffPolicyActorCriticPolicy):
    """:class:`OffPolicyActorCriticPolicy` for Dict observations, with SB3's extractor unless another is given."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"features_extractor_class": CombinedExtractor} | options)


def action_distribution(actor: Any, observations: PyTorchObs) -> Distribution:
    """
    The distribution that an actor draws its actions from.

    :param actor: SB3's of SAC, or a :class:`DiscreteActor`
    :param observations: ``(B, *observation shape)``
    :return: π(·|s) of each state
    """
    if isinstance(actor, DiscreteActor):
        return actor.get_distribution(observations)
    mean, log_std, options = actor.get_action_dist_params(observations)
    return actor.action_dist.proba_distribution(mean, log_std, **options)


def forget_distribution(actor: Any) -> None:
    """
    Drop the distribution last evaluated with its graph: policies are copied and pickled between updates.

    :param actor: any
    """
    distribution = getattr(actor, "action_dist", None)
    for name in ("distribution", "gaussian_actions"):
        if hasattr(distribution, name):
            setattr(distribution, name, None)


def takes_noise(actor: Any) -> bool:
    """
    True if the noise of an actor's actions can be drawn before they are.

    :param actor: any; one of a user's, and gSDE's, draw by themselves
    :return: whether :func:`draw` takes noise
    """
    squashes = isinstance(getattr(actor, "action_dist", None), SquashedDiagGaussianDistribution)
    return squashes and has_sb3s(actor, Actor, "action_log_prob")


def draw(actor: Any, observations: PyTorchObs, noise: Sequence[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw an action in each state.

    :param actor: SB3's of SAC, or a :class:`DiscreteActor`
    :param observations: ``(B, *observation shape)``
    :param noise: ε, ``(B, action dim)``, or nothing where the actor draws by itself
    :return: a_θ(s, ε), ``(B, …)``, scaled to [-1, 1] on a Box, and log π(a|s), ``(B,)``; differentiable
    """
    if not noise:
        return actor.action_log_prob(observations)
    return _squashed(action_distribution(actor, observations), noise[0])


def drawn_with_log_prob(actor: Any, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw actions that are kept: their log-probabilities are those that the actions alone will have later. Of saturated
    ones, where tanh is 1 in single precision, it is another than before the squashing.

    :param actor: SB3's of SAC, or a :class:`DiscreteActor`
    :param observations: ``(B, *observation shape)``
    :return: the actions, ``(B, …)``, and log π(a|s), ``(B,)``
    """
    distribution = action_distribution(actor, observations)
    actions = distribution.get_actions()
    return actions, distribution.log_prob(actions)


def draws(distribution: Distribution, noise: Sequence[th.Tensor], n_draws: int) -> list[tuple[th.Tensor, th.Tensor]]:
    """
    Draw several actions in each state, for gradients through their log-probabilities.

    :param distribution: of B states
    :param noise: ε, ``(K, B, action dim)``, or nothing where the distribution draws by itself
    :param n_draws: K
    :return: K times the actions, ``(B, …)``, constant, and log π(a|s), ``(B,)``, differentiable
    """
    if noise:
        return [_squashed(distribution, epsilon, constant=True) for epsilon in noise[0]]
    actions = [distribution.sample().detach() for _ in range(n_draws)]
    return [(action, distribution.log_prob(action)) for action in actions]


def _squashed(distribution: Distribution, noise: th.Tensor, constant: bool = False) -> tuple[th.Tensor, th.Tensor]:
    """SB3's squashed Gaussian, rounded as it rounds."""
    gaussian = distribution.distribution.loc + noise * distribution.distribution.scale  # type: ignore[union-attr]
    gaussian = gaussian.detach() if constant else gaussian
    actions = th.tanh(gaussian)
    return actions, distribution.log_prob(actions, gaussian)  # type: ignore[call-arg]
