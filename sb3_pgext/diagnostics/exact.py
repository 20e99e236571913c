r"""Exact quantities of a policy on a finite MDP (``docs/mathematics.md``, section 8), in float64.

With π (S×A) taken from any policy network, :math:`P_\pi = \sum_a \pi P` and :math:`r_\pi = \sum_a \pi R`:
:math:`V = (I - \gamma P_\pi)^{-1} r_\pi`, :math:`J = d^\top V`, or a backward recursion with a finite horizon. π is
differentiable in θ, so the gradient of J is exact by automatic differentiation.
"""

from copy import copy, deepcopy

import gymnasium as gym
import torch as th
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.arguments import require_fraction
from sb3_pgext.envs import TabularMDP
from sb3_pgext.estimators.statistics import flat_gradient

__all__ = ["action_probabilities", "exact_fisher", "exact_policy_gradient", "exact_return", "exact_values"]

NEUTRAL_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, Monitor)
"""Wrappers that leave observations, actions, rewards and ends as they are."""


def exact_return(policy: ActorCriticPolicy, mdp: gym.Env, gamma: float) -> float:
    r"""
    :math:`J(\theta) = E[\sum_t \gamma^t r_t]`.

    :param policy: any actor-critic policy for the MDP's spaces
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount, in [0, 1]
    :return: J
    :raises ValueError: the return is infinite: with ``gamma=1`` and no horizon there are states without a way out
    """
    model = _Model(mdp, gamma)
    return float(model.initial @ model.values(action_probabilities(policy, mdp))[0])


def exact_values(policy: ActorCriticPolicy, mdp: gym.Env, gamma: float) -> tuple[th.Tensor, th.Tensor]:
    """
    The value functions; with a finite horizon those at the first step.

    :param policy: any actor-critic policy for the MDP's spaces
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount, in [0, 1]
    :return: V ``(S,)`` and Q ``(S, A)``, float64
    :raises ValueError: as :func:`exact_return`
    """
    model = _Model(mdp, gamma)
    probabilities = action_probabilities(policy, mdp)
    values = model.values(probabilities)
    return values[0], model.action_values(values[1])


def exact_policy_gradient(
    policy: ActorCriticPolicy, mdp: gym.Env, gamma: float, discount_weighting: bool = True
) -> th.Tensor:
    r"""
    :math:`\nabla_\theta J`; with ``discount_weighting=False`` the expectation of the estimator without
    :math:`\gamma^t`, :math:`E[\sum_t \nabla\log\pi(a_t|s_t) \, Q_t(s_t, a_t)]`, which is no gradient unless γ = 1.

    :param policy: any actor-critic policy for the MDP's spaces
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount, in [0, 1]
    :param discount_weighting: :math:`w_t = \gamma^t` or 1
    :return: ``(P,)``, float64, in the order of :func:`~sb3_pgext.algorithms.base.policy_parameters`
    :raises ValueError: as :func:`exact_return`
    """
    model = _Model(mdp, gamma)
    policy = _in_float64(policy)
    probabilities = _action_probabilities(policy, model)
    parameters = list(policy_parameters(policy).values())
    if discount_weighting:
        return flat_gradient(model.initial @ model.values(probabilities)[0], parameters)
    values = model.values(probabilities.detach())
    visits = model.visits(probabilities.detach(), discount=1.0)
    surrogates = [
        at_time_t @ (probabilities * model.action_values(following)).sum(1)
        for at_time_t, following in zip(visits, values[1:], strict=True)
    ]
    return flat_gradient(th.stack(surrogates).sum(), parameters)


def exact_fisher(policy: ActorCriticPolicy, mdp: gym.Env, gamma: float) -> th.Tensor:
    r"""
    :math:`F = E_s E_{a\sim\pi}[\nabla\log\pi \, \nabla\log\pi^\top]`, s from the visitation with weights
    :math:`\gamma^t`, normalised to a distribution (``gamma=1``: the states of a batch, each step counting the same).

    :param policy: any actor-critic policy for the MDP's spaces
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount of the visitation, in [0, 1]
    :return: ``(P, P)``, float64
    :raises ValueError: as :func:`exact_return`
    """
    model = _Model(mdp, gamma)
    policy = _in_float64(policy)
    log_probabilities = _log_probabilities(policy, model)
    parameters = list(policy_parameters(policy).values())
    eye = th.eye(log_probabilities.numel(), dtype=th.float64).view(-1, *log_probabilities.shape)
    rows = th.autograd.grad(log_probabilities, parameters, eye, is_grads_batched=True)
    scores = th.cat([row.flatten(1) for row in rows], dim=1)  # (SA, P)
    probabilities = log_probabilities.detach().exp()
    visits = th.stack(model.visits(probabilities, gamma)).sum(0)
    weights = (visits / visits.sum()).unsqueeze(1) * probabilities
    return scores.T @ (weights.view(-1, 1) * scores)


def action_probabilities(policy: ActorCriticPolicy, mdp: gym.Env) -> th.Tensor:
    """
    :param policy: any actor-critic policy for the MDP's spaces
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :return: π(a|s), ``(S, A)``, float64, constant
    """
    return _action_probabilities(_in_float64(policy), _Model(mdp, 1.0)).detach()


class _Model:
    """The MDP as tensors, and the linear algebra on it."""

    def __init__(self, mdp: gym.Env, gamma: float):
        while isinstance(mdp, NEUTRAL_WRAPPERS):
            mdp = mdp.env
        if not isinstance(mdp, TabularMDP):
            raise ValueError(f"mdp={mdp!r}: allowed is a TabularMDP, in no wrappers that change what it is")
        require_fraction("gamma", gamma)
        self.transitions = th.as_tensor(mdp.transitions)
        self.rewards = th.as_tensor(mdp.expected_rewards)
        self.initial = th.as_tensor(mdp.initial)
        self.gamma = gamma
        # A time limit on an endless task is no part of the task.
        self.horizon = mdp.horizon if mdp.at_horizon == "terminate" else None

    def values(self, probabilities: th.Tensor) -> list[th.Tensor]:
        """V at each time, ``(S,)``, from the first step to past the last; without a horizon the same one twice."""
        rewards = (probabilities * self.rewards).sum(1)
        transitions = th.einsum("sa,sap->sp", probabilities, self.transitions)
        if self.horizon is None:
            values = self._solve(transitions, rewards, self.gamma)
            return [values, values]
        backward = [th.zeros_like(rewards)]
        for _ in range(self.horizon):
            backward.append(rewards + self.gamma * transitions @ backward[-1])
        return backward[::-1]

    def action_values(self, next_values: th.Tensor) -> th.Tensor:
        """Q ``(S, A)`` of a step after which the values are ``next_values``."""
        return self.rewards + self.gamma * self.transitions @ next_values

    def visits(self, probabilities: th.Tensor, discount: float) -> list[th.Tensor]:
        """Σ_t discount^t P(s_t = s), ``(S,)``: one entry per time with a horizon, without one a single sum."""
        transitions = th.einsum("sa,sap->sp", probabilities, self.transitions)
        if self.horizon is None:
            return [self._solve(transitions.T, self.initial, discount)]
        forward = [self.initial]
        for _ in range(self.horizon - 1):
            forward.append(discount * transitions.T @ forward[-1])
        return forward

    @staticmethod
    def _solve(transitions: th.Tensor, right: th.Tensor, discount: float) -> th.Tensor:
        """(I - discount P)⁻¹ right."""
        radius = discount * th.linalg.eigvals(transitions.detach()).abs().max()
        if radius >= 1 - 1e-12:
            raise ValueError(
                f"gamma={discount!r}: allowed is a number < 1 where there are states without a way out and no horizon"
            )
        return th.linalg.solve(th.eye(len(right), dtype=right.dtype) - discount * transitions, right)


def _in_float64(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A copy that computes in float64 on the CPU, although SB3 turns observations into float32."""
    # The distribution last evaluated may hold a graph, which cannot be copied, and is replaced at the next evaluation.
    policy = deepcopy(policy, {id(policy.action_dist): copy(policy.action_dist)}).to("cpu").double()
    policy.set_training_mode(False)

    policy.pi_features_extractor.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
    return policy


def _log_probabilities(policy: ActorCriticPolicy, model: _Model) -> th.Tensor:
    """log π(a|s), ``(S, A)``, differentiable."""
    n_states, n_actions = model.rewards.shape
    states = th.arange(n_states).repeat_interleave(n_actions)
    actions = th.arange(n_actions).repeat(n_states)
    return policy.get_distribution(states).log_prob(actions).view(n_states, n_actions)


def _action_probabilities(policy: ActorCriticPolicy, model: _Model) -> th.Tensor:
    return _log_probabilities(policy, model).exp()
