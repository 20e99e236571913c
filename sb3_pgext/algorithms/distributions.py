"""Action distributions as plain tensors, and the divergence between two policies in closed form."""

import math
from dataclasses import dataclass

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, sum_independent_dims
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Bernoulli, Categorical, Normal
from torch.distributions import Distribution as TorchDistribution

from sb3_pgext.engine import evaluation_mode, rows
from sb3_pgext.estimators.natural import Metric, Tangents, bernoulli_metric, categorical_metric, normal_metric

__all__ = [
    "JointActions",
    "any_distribution",
    "distribution_parameters",
    "drawn_actions",
    "fisher_metric",
    "kl_divergence",
    "largest_entropy",
    "log_prob_and_entropy",
]

MAX_JOINT_ACTIONS = 256
"""Joint actions that are enumerated at most."""


@dataclass(frozen=True)
class JointActions:
    """
    The A joint actions of a Discrete, MultiDiscrete or MultiBinary space, numbered in the order of an odometer.

    :param sizes: number of values of each of the parts
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, space: spaces.Space | None) -> "JointActions | None":
        """
        The joint actions of a space.

        :param space: any action space
        :return: None for a Box, and where there are more than 256
        """
        sizes: tuple[int, ...]
        if isinstance(space, spaces.Discrete):
            sizes = (int(space.n),)
        elif isinstance(space, spaces.MultiDiscrete):
            sizes = tuple(map(int, space.nvec.flatten()))
        elif isinstance(space, spaces.MultiBinary):
            sizes = (2,) * math.prod(space.shape)
        else:
            return None
        return cls(sizes) if math.prod(sizes) <= MAX_JOINT_ACTIONS else None

    def __len__(self) -> int:
        """A, the number of joint actions."""
        return math.prod(self.sizes)

    def numbers(self, actions: th.Tensor) -> th.Tensor:
        """
        The numbers of actions.

        :param actions: as the policy draws them, ``(B,)`` or ``(B, number of parts)``
        :return: 0 … A-1, ``(B,)``, int64
        """
        parts = actions.reshape(-1, len(self.sizes)).long().unbind(1)
        number = th.zeros_like(parts[0])
        for part, size in zip(parts, self.sizes, strict=True):
            number = number * size + part
        return number

    def log_probs(self, distribution: Distribution) -> th.Tensor:
        """
        The log-probabilities of all joint actions.

        :param distribution: of B states
        :return: log π(a|s), ``(B, A)``, differentiable
        """
        total, *others = _log_probs_of_parts(distribution)
        for part in others:
            total = (total.unsqueeze(2) + part.unsqueeze(1)).flatten(1)
        return total


def largest_entropy(space: spaces.Space) -> float:
    """
    The entropy of uniform actions, minus the log-probability of each.

    :param space: any action space; of a Box the actions are scaled to [-1, 1]
    :return: log of the number of joint actions, or of the volume
    """
    if isinstance(space, spaces.Discrete):
        return math.log(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return sum(math.log(n) for n in space.nvec.flatten())
    assert space.shape is not None
    return math.prod(space.shape) * math.log(2.0)


@th.no_grad()
def any_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    A distribution of the policy's kind.

    :param policy: whose distribution
    :param observations: ``(M, *observation shape)``, of which the first one is looked at
    :return: the distribution in that state
    """
    with evaluation_mode(policy):
        return policy.get_distribution(rows(observations, slice(1)))


def distribution_parameters(distribution: Distribution) -> tuple[th.Tensor, ...]:
    """
    The numbers that determine the distributions of a batch: log-probabilities, or means and standard deviations.

    SB3's policies return the same object each time, with other contents; these tensors stay as they are.

    :param distribution: of B states
    :return: tensors of B rows each, differentiable
    """
    return tuple(getattr(part, name) for part in _parts(distribution) for name in _names(part))


def drawn_actions(distribution: Distribution, n_draws: int) -> th.Tensor:
    """
    Independent draws, also where gSDE acts with one noise matrix for a whole rollout.

    :param distribution: of B states
    :param n_draws: K
    :return: actions as the policy draws them, ``(K, B, …)``, constant
    """
    parts = [part.sample(th.Size([n_draws])) for part in _parts(distribution)]
    draws = th.stack(parts, dim=2) if isinstance(distribution.distribution, list) else parts[0]
    bijector = getattr(distribution, "bijector", None)  # of squashed actions
    return draws if bijector is None else bijector.forward(draws)


def log_prob_and_entropy(distribution: Distribution, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param distribution: of B states
    :param actions: one in each, ``(B, …)``
    :return: log π(a|s) and the entropy, ``(B,)`` each, differentiable; the entropy is estimated by -log π where it has
        no closed form, as SB3 does
    """
    log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
    return log_prob, -log_prob if entropy is None else entropy


def kl_divergence(
    old: tuple[th.Tensor, ...], new: tuple[th.Tensor, ...], like: Distribution, direction: str
) -> th.Tensor:
    """
    KL(π_old ‖ π_θ) or KL(π_θ ‖ π_old) of all action dimensions together, in each state, in closed form.

    Of distributions squashed by tanh it is the divergence before the squashing, which a bijection does not change.
    (Beside ``kl_divergence`` of SB3's distributions: that one leaves the dimensions of a Box or MultiBinary apart.)

    :param old: :func:`distribution_parameters` of π_old in B states
    :param new: those of π_θ
    :param like: a distribution of their kind, of any states
    :param direction: ``"old_new"`` or ``"new_old"``
    :return: ``(B,)``, differentiable
    """
    remaining, total = iter(zip(old, new, strict=True)), th.zeros(len(old[0]), device=old[0].device)
    for part in _parts(like):
        names = _names(part)
        of_old, of_new = zip(*(next(remaining) for _ in names), strict=True)
        pair = [type(part)(**dict(zip(names, values, strict=True))) for values in (of_old, of_new)]
        kl = th.distributions.kl_divergence(*(pair if direction == "old_new" else reversed(pair)))
        total = total + (sum_independent_dims(kl) if kl.ndim > 1 else kl)
    return total


def fisher_metric(distribution: Distribution) -> Metric:
    """
    The Fisher matrices of the distributions of a batch, in their :func:`distribution_parameters`.

    :param distribution: of B states
    :return: tangents of the distribution parameters → M times them
    :raises ValueError: the distribution is none of SB3's
    """
    metrics = [(len(_names(part)), _metric(part)) for part in _parts(distribution)]

    def metric(tangents: Tangents) -> Tangents:
        remaining = iter(tangents)
        images = [of_part(tuple(next(remaining) for _ in range(n))) for n, of_part in metrics]
        return tuple(image for images_of_part in images for image in images_of_part)

    return metric


def _metric(part: TorchDistribution) -> Metric:
    if isinstance(part, Categorical):
        return categorical_metric(part.logits)
    if isinstance(part, Bernoulli):
        return bernoulli_metric(part.logits)
    if isinstance(part, Normal):
        return normal_metric(part.scale)
    raise ValueError(f"fisher='exact': allowed is 'empirical' with actions from a {type(part).__name__} distribution")


def _log_probs_of_parts(distribution: Distribution) -> list[th.Tensor]:
    """Log-probabilities of the values of each part of a joint action, ``(B, size)`` each."""
    of_parts: list[th.Tensor] = []
    for part in _parts(distribution):
        if isinstance(part, Bernoulli):
            both = th.stack([-part.logits, part.logits], dim=2)
            of_parts.extend(th.nn.functional.logsigmoid(both).unbind(1))
        elif isinstance(part, Categorical):
            of_parts.append(part.logits)
    return of_parts


def _parts(distribution: Distribution) -> list[TorchDistribution]:
    """The torch distributions of an SB3 distribution: one, or for MultiDiscrete one for each action."""
    inner = distribution.distribution
    return inner if isinstance(inner, list) else [inner]


def _names(part: TorchDistribution) -> list[str]:
    """The constructor arguments that determine it."""
    return ["logits"] if "logits" in part.arg_constraints else list(part.arg_constraints)
