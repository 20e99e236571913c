"""The policy as it acts, on the steps of a batch."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sb3_pgext.engine.compiled import compiled_function
from sb3_pgext.engine.graphs import is_plain
from sb3_pgext.engine.nested import leaves, rebuilding, rows

__all__ = ["any_distribution", "differentiable", "evaluated", "evaluation_mode", "separable_parts"]

AT_ONCE = 1024
"""Rows that go through the networks together: what these keep of each takes more memory than the row itself."""


@contextmanager
def evaluation_mode(policy: BasePolicy) -> Iterator[None]:
    """As while acting: without dropout, which would draw random numbers, the statistics of batch norm as they are."""
    modes = {module: module.training for module in policy.modules()}
    policy.set_training_mode(False)
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
def evaluated(policy: BasePolicy, function: Callable[..., Any], batch: tuple[Any, ...], key: Hashable = None) -> Any:
    """
    A function of each row of a batch, some rows at a time, in :func:`evaluation_mode`.

    :param policy: the network that it evaluates
    :param function: rows of the batch → tensors, nested in any way, of as many rows; a function of the policy's
        parameters and its arguments alone
    :param batch: tensors ``(M, …)``, nested in any way
    :param key: everything else that it depends on and that may change, to compile it; None does not
    :return: what the function returns, of all M rows, constant
    """
    parts = _parts(batch, AT_ONCE)
    with evaluation_mode(policy):
        compiled = None if key is None else compiled_function(policy, function, parts[0], key)
        n_rows = [len(leaves(part)[0]) for part in parts]  # of the last part, there may be fewer
        results = [
            function(*part) if compiled is None or n < n_rows[0] else compiled(part)
            for n, part in zip(n_rows, parts, strict=True)
        ]
    return _together(results)


def differentiable(policy: BasePolicy, function: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
    """
    The same for a gradient that is asked for once. Of a large batch, what the networks keep of each row is computed
    anew when the gradient is, in :func:`separable_parts`.

    :param policy: the network that the function evaluates
    :param function: see :func:`evaluated`
    :param batch: see :func:`evaluated`
    :return: what the function returns, of all M rows, differentiable
    """
    parts = separable_parts(policy, batch, AT_ONCE)
    if len(parts) == 1:
        return function(*batch)

    def of_part(*part: Any) -> Any:
        return function(*rebuilding(part)(leaf.clone() for leaf in leaves(part)))  # it goes in twice, as it is now

    return _together([checkpoint(of_part, *part, use_reentrant=False) for part in parts])


def separable_parts(policy: BasePolicy, batch: tuple[Any, ...], n_rows: int) -> list[tuple[Any, ...]]:
    """
    :param policy: a network
    :param batch: tensors ``(M, …)``, nested in any way
    :param n_rows: how many rows go together
    :return: parts of so many rows, of which the last one may have fewer; the whole batch, as the only one, where the
        policy may look at other rows than its own while it is trained: with parts of a user's own or running statistics
    """
    if not is_plain(policy) or _looks_at_other_rows(policy):
        return [batch]
    return _parts(batch, n_rows)


def _looks_at_other_rows(policy: BasePolicy) -> bool:
    """Running statistics are buffers; batch norm may do without."""
    return any(True for _ in policy.buffers()) or any(isinstance(m, _BatchNorm) for m in policy.modules())


def _parts(batch: tuple[Any, ...], n_rows: int) -> list[tuple[Any, ...]]:
    rebuild = rebuilding(batch)
    return [rebuild(iter(part)) for part in zip(*(leaf.split(n_rows) for leaf in leaves(batch)), strict=True)]


def _together(results: list[Any]) -> Any:
    """All rows of the parts' results."""
    if len(results) == 1:
        return results[0]
    columns = zip(*map(leaves, results), strict=True)
    return rebuilding(results[0])(th.cat(column) for column in columns)
