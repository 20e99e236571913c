"""The policy as it acts, on the steps of a batch."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.utils.checkpoint import checkpoint

from sb3_pgext.algorithms.compiled import compiled_function
from sb3_pgext.algorithms.graphs import is_plain
from sb3_pgext.algorithms.nested import leaves, rebuilding, rows

__all__ = ["any_distribution", "differentiable", "evaluated", "evaluation_mode"]

AT_ONCE = 1024
"""Rows that go through the networks together: what these keep of each takes more memory than the row itself."""


@contextmanager
def evaluation_mode(policy: th.nn.Module) -> Iterator[None]:
    """As while acting: without dropout, which would draw random numbers, the statistics of batch norm as they are."""
    modes = {module: module.training for module in policy.modules()}
    policy.train(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@th.no_grad()
def any_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    :param policy: whose distribution
    :param observations: ``(M, *observation shape)``
    :return: one of its kind: that of the first observation, in :func:`evaluation_mode`
    """
    with evaluation_mode(policy):
        return policy.get_distribution(rows(observations, slice(1)))


@th.no_grad()
def evaluated(policy: th.nn.Module, function: Callable[..., Any], batch: tuple[Any, ...], key: Hashable = None) -> Any:
    """
    A function of each row of a batch, some rows at a time, in :func:`evaluation_mode`.

    :param policy: the network that it evaluates
    :param function: rows of the batch → tensors, nested in any way, of as many rows; a function of the policy's
        parameters and its arguments alone
    :param batch: tensors ``(M, …)``, nested in any way
    :param key: everything else that it depends on and that may change, to compile it; None does not
    :return: what the function returns, of all M rows, constant
    """
    parts = _parts(batch)
    with evaluation_mode(policy):
        compiled = None if key is None else compiled_function(policy, function, parts[0], key)
        last = len(parts) - 1  # may have fewer rows
        results = [
            function(*part) if compiled is None or (n == last > 0) else compiled(part) for n, part in enumerate(parts)
        ]
    return _together(results)


def differentiable(policy: th.nn.Module, function: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
    """
    The same for a gradient that is asked for once. Of a large batch, what the networks keep of each row is computed
    anew when the gradient is; all at once, where the policy has parts of a user's own, which may look at other rows.

    :param policy: the network that the function evaluates
    :param function: see :func:`evaluated`
    :param batch: see :func:`evaluated`
    :return: what the function returns, of all M rows, differentiable
    """
    parts = _parts(batch)
    if len(parts) == 1 or not is_plain(policy):
        return function(*batch)
    return _together([checkpoint(function, *part, use_reentrant=False) for part in parts])


def _parts(batch: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    rebuild = rebuilding(batch)
    return [rebuild(iter(part)) for part in zip(*(leaf.split(AT_ONCE) for leaf in leaves(batch)), strict=True)]


def _together(results: list[Any]) -> Any:
    """All rows of the parts' results."""
    if len(results) == 1:
        return results[0]
    columns = zip(*map(leaves, results), strict=True)
    return rebuilding(results[0])(th.cat(column) for column in columns)
