"""Parameters of the policy and of the critic: which are which, as autograd sees it."""

from collections.abc import Callable, Hashable
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_pgext.engine.eager import evaluation_mode
from sb3_pgext.rollouts.acting import unvalidated_distributions

__all__ = ["critic_parameters", "forget_dependencies", "moved_parameters", "policy_parameters", "trainable_parameters"]

_dependencies: "WeakKeyDictionary[ActorCriticPolicy, dict[str, tuple[Hashable, list[str]]]]" = WeakKeyDictionary()
"""Policy → output → its parameters when they were last asked for, and the names of those that the output depends on."""


def policy_parameters(policy: ActorCriticPolicy) -> dict[str, th.nn.Parameter]:
    """
    Parameters that the action distribution depends on; frozen ones are not among them.

    :param policy: any actor-critic policy
    :return: name → parameter, in the order of ``policy.parameters()``; P numbers in all
    """

    def log_prob(observations: PyTorchObs) -> th.Tensor:
        distribution = policy.get_distribution(observations)
        return distribution.log_prob(distribution.mode())

    return _parameters_of(policy, "log_prob", log_prob)


def critic_parameters(policy: ActorCriticPolicy) -> dict[str, th.nn.Parameter]:
    """
    Parameters that only the values depend on. Those that the distribution depends on too belong to the policy.

    :param policy: any actor-critic policy
    :return: name → parameter, in the order of ``policy.parameters()``
    """
    of_values, of_policy = _parameters_of(policy, "values", policy.predict_values), policy_parameters(policy)
    return {name: parameter for name, parameter in of_values.items() if name not in of_policy}


def moved_parameters(
    policy: ActorCriticPolicy, user_loss: Callable[[], th.Tensor] | None = None
) -> list[th.nn.Parameter]:
    """
    Parameters that a step along the loss of the policy and the critic together may move.

    :param policy: any actor-critic policy
    :param user_loss: a loss that a user has changed, which may depend on more of them
    :return: the parameters, in the order of ``policy.parameters()``
    """
    if user_loss is not None:
        forget_dependencies(policy)
    used = policy_parameters(policy).keys() | critic_parameters(policy).keys()
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if user_loss is not None:
        with th.random.fork_rng(), evaluation_mode(policy):
            loss = user_loss()
        used |= set(_names_in_graph(loss, named))
        forget_dependencies(policy)  # as they are with what a user may take away again
    return [p for name, p in named.items() if name in used]


def trainable_parameters(policy: th.nn.Module) -> list[th.nn.Parameter]:
    """The parameters of a policy that are not frozen, in their order; P numbers in all."""
    return [p for p in policy.parameters() if p.requires_grad]


def forget_dependencies(policy: ActorCriticPolicy) -> None:
    """Find the parameters anew: a hook, or a switch of the policy's own, may have changed what depends on what."""
    _dependencies.pop(policy, None)


def _parameters_of(
    policy: ActorCriticPolicy, output: str, compute: Callable[[PyTorchObs], th.Tensor]
) -> dict[str, th.nn.Parameter]:
    """
    Parameters that an output depends on.

    Found out once per update, and anew when the policy has other parameters or other ones are frozen.
    """
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    present = tuple((name, id(p)) for name, p in named.items())
    known = _dependencies.setdefault(policy, {})
    if output not in known or known[output][0] != present:
        # Not validated: an observation from a space without bounds may be too large for the network, and what depends
        # on what can be seen all the same.
        devices = [policy.device] if policy.device.type == "cuda" else []
        with th.random.fork_rng(devices), evaluation_mode(policy), unvalidated_distributions(), th.enable_grad():
            known[output] = present, _names_in_graph(compute(_any_observations(policy)).sum(), named)
    return {name: named[name] for name in known[output][1]}


def _names_in_graph(value: th.Tensor, named: dict[str, th.nn.Parameter]) -> list[str]:
    """The names of those parameters that a scalar has been computed from."""
    if not value.requires_grad:
        return []
    gradients = th.autograd.grad(value, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def _any_observations(policy: ActorCriticPolicy) -> PyTorchObs:
    """Two observations that the policy can take, drawn from a generator of their own."""
    space = _from_zero(deepcopy(policy.observation_space))
    space.seed(0)
    rows = [space.sample(), space.sample()]
    batch = concatenate(space, rows, create_empty_array(space, n=2))  # type: ignore[arg-type]
    return obs_as_tensor(batch, policy.device)  # type: ignore[arg-type]


def _from_zero(space: spaces.Space) -> spaces.Space:
    """The space with discrete numbers from 0, as SB3's one-hot encoding takes them wherever the space starts."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _from_zero(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(space.n)
    return spaces.MultiDiscrete(space.nvec) if isinstance(space, spaces.MultiDiscrete) else space
