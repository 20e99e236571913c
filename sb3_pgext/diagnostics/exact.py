r"""Exact quantities of a policy on a finite MDP (``docs/mathematics.md``, section 8), in float64.

π (S×A) is taken from any policy network, :math:`J = d^\top V`. π is differentiable in θ, so the gradient of J is exact
by automatic differentiation.
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
from sb3_pgext.estimators.tables import Tables

__all__ = [
    "action_probabilities",
    "exact_actor_gradient",
    "exact_fisher",
    "exact_policy_gradient",
    "exact_return",
    "exact_values",
    "exact_visitation",
    "tables_of",
]

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
    model = tables_of(mdp, gamma)
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
    model = tables_of(mdp, gamma)
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
    model = tables_of(mdp, gamma)
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


def exact_visitation(policy: ActorCriticPolicy, mdp: gym.Env) -> th.Tensor:
    r"""
    The distribution of the states of a batch: :math:`d(s) \propto \sum_t P(s_t = s)`, each step counting the same.

    :param policy: any actor-critic policy for the MDP's spaces, or the discrete actor of an off-policy one
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :return: d, ``(S,)``, float64
    :raises ValueError: as :func:`exact_return`
    """
    visits = th.stack(tables_of(mdp, 1.0).visits(action_probabilities(policy, mdp), discount=1.0)).sum(0)
    return visits / visits.sum()


def exact_actor_gradient(
    policy: ActorCriticPolicy, mdp: gym.Env, gamma: float, states: th.Tensor, q: th.Tensor | None = None
) -> th.Tensor:
    r"""
    :math:`\sum_s d(s) \sum_a \nabla\pi(a|s) \, Q(s,a)`, what an actor with a critic of Q moves along in states from d,
    such as those of another policy's replay (``docs/mathematics.md``, section 9).

    :param policy: any actor-critic policy for the MDP's spaces, or the discrete actor of an off-policy one
    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount of Q, in [0, 1]
    :param states: d, ``(S,)``
    :param q: ``(S, A)``, constant; None for the exact one of the policy
    :return: ``(P,)``, float64, in the order of :func:`~sb3_pgext.algorithms.parameters.policy_parameters`
    :raises ValueError: as :func:`exact_return`
    """
    q = exact_values(policy, mdp, gamma)[1] if q is None else q
    policy = _in_float64(policy)
    probabilities = _action_probabilities(policy, tables_of(mdp, gamma))
    return flat_gradient(states @ (probabilities * q).sum(1), list(policy_parameters(policy).values()))


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
    model = tables_of(mdp, gamma)
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
    return _action_probabilities(_in_float64(policy), tables_of(mdp, 1.0)).detach()


def tables_of(mdp: gym.Env, gamma: float) -> Tables:
    """
    The tables of an MDP.

    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount, in [0, 1]
    :return: its tables, float64; a time limit on an endless task is no part of the task
    :raises ValueError: it is none, or in other wrappers
    """
    while isinstance(mdp, NEUTRAL_WRAPPERS):
        mdp = mdp.env
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"mdp={mdp!r}: allowed is a TabularMDP, in no wrappers that change what it is")
    require_fraction("gamma", gamma)
    horizon = mdp.horizon if mdp.at_horizon == "terminate" else None
    transitions, rewards, initial = map(th.as_tensor, (mdp.transitions, mdp.expected_rewards, mdp.initial))
    return Tables(transitions, rewards, initial, gamma, horizon)


def _in_float64(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A copy that computes in float64 on the CPU, although SB3 turns observations into float32."""
    # The distribution last evaluated may hold a graph, which cannot be copied, and is replaced at the next evaluation.
    policy = deepcopy(policy, {id(policy.action_dist): copy(policy.action_dist)}).to("cpu").double()
    policy.set_training_mode(False)

    extractor = getattr(policy, "pi_features_extractor", policy.features_extractor)  # an actor alone has one
    extractor.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
    return policy


def _log_probabilities(policy: ActorCriticPolicy, model: Tables) -> th.Tensor:
    """log π(a|s), ``(S, A)``, differentiable."""
    n_states, n_actions = model.rewards.shape
    states = th.arange(n_states).repeat_interleave(n_actions)
    actions = th.arange(n_actions).repeat(n_states)
    return policy.get_distribution(states).log_prob(actions).view(n_states, n_actions)


def _action_probabilities(policy: ActorCriticPolicy, model: Tables) -> th.Tensor:
    return _log_probabilities(policy, model).exp()
