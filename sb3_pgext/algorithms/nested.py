"""Tensors in dicts and tuples, nested in any way: observations, minibatches, what a loss leaves for the log."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch as th

__all__ = ["leaves", "minibatches", "rebuilding", "rows"]


def leaves(data: Any) -> list[Any]:
    """
    :param data: a tensor, or dicts and tuples of them
    :return: all tensors in it, or whatever else is at their place, in the order of the entries
    """
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in leaves(value)]
    if isinstance(data, tuple):
        return [leaf for value in data for leaf in leaves(value)]
    return [data]


def rebuilding(data: Any) -> Callable[[Iterator[Any]], Any]:
    """
    The reverse of :func:`leaves`, in a hundredth of a step's time, which torch's own way is not.

    :param data: an example of the structure
    :return: a function of an iterator of leaves to such a structure
    """
    if isinstance(data, dict):
        of_keys = {key: rebuilding(value) for key, value in data.items()}
        return lambda values: {key: rebuild(values) for key, rebuild in of_keys.items()}
    if isinstance(data, tuple):
        of_entries = [rebuilding(value) for value in data]
        make = getattr(data, "_make", tuple)  # of a named one
        return lambda values: make([rebuild(values) for rebuild in of_entries])
    return next


def rows(data: Any, indices: th.Tensor | slice) -> Any:
    """
    :param data: a tensor, or dicts and tuples of tensors, ``(M, …)`` each
    :param indices: which rows
    :return: the same structure of only these rows
    """
    return rebuilding(data)(leaf[indices] for leaf in leaves(data))


def minibatches(data: Any, order: th.Tensor, batch_size: int) -> Iterator[Any]:
    """
    :param data: see :func:`rows`
    :param order: of the rows, ``(M,)``
    :param batch_size: number of rows of each minibatch; the last one may be shorter
    :return: the minibatches, one after the other
    """
    rebuild = rebuilding(data)
    columns: Sequence[Sequence[th.Tensor]] = [leaf[order].split(batch_size) for leaf in leaves(data)]
    for minibatch in zip(*columns, strict=True):
        yield rebuild(iter(minibatch))
