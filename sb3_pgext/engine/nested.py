"""Tensors in dicts, tuples and lists, nested in any way: observations, minibatches, what a loss leaves for the log."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch as th

__all__ = ["leaves", "minibatches", "rebuilding", "rows"]


def leaves(data: Any) -> list[Any]:
    """
    :param data: a tensor, or dicts, tuples and lists of them
    :return: all tensors in it, or whatever else is at their place, in the order of the entries; those of a dict in the
        order of its keys, as the next one may have the same keys in another order
    """
    if isinstance(data, dict):
        return [leaf for key in sorted(data, key=str) for leaf in leaves(data[key])]
    if isinstance(data, (tuple, list)):
        return [leaf for value in data for leaf in leaves(value)]
    return [data]


def rebuilding(data: Any) -> Callable[[Iterator[Any]], Any]:
    """
    The reverse of :func:`leaves`, in a hundredth of a step's time, which torch's own way is not.

    :param data: an example of the structure
    :return: a function of an iterator of leaves to such a structure
    """
    if isinstance(data, dict):
        of_keys = {key: rebuilding(data[key]) for key in sorted(data, key=str)}
        order = list(data)
        if order == list(of_keys):
            return lambda values: {key: rebuild(values) for key, rebuild in of_keys.items()}

        def rebuilt(values: Iterator[Any]) -> dict[Any, Any]:
            entries = {key: rebuild(values) for key, rebuild in of_keys.items()}
            return {key: entries[key] for key in order}

        return rebuilt
    if isinstance(data, (tuple, list)):
        of_entries = [rebuilding(value) for value in data]
        make = getattr(data, "_make", list if isinstance(data, list) else tuple)  # of a named one
        return lambda values: make([rebuild(values) for rebuild in of_entries])
    return next


def rows(data: Any, indices: th.Tensor | slice) -> Any:
    """
    :param data: a tensor, or dicts, tuples and lists of tensors, ``(M, …)`` each
    :param indices: which rows
    :return: the same structure of only these rows
    """
    chosen = isinstance(indices, th.Tensor)  # which torch has a faster function for
    return rebuilding(data)(leaf.index_select(0, indices) if chosen else leaf[indices] for leaf in leaves(data))


def minibatches(data: Any, batch_size: int) -> Iterator[Any]:
    """
    :param data: see :func:`rows`
    :param batch_size: number of rows of each minibatch; the last one may be shorter
    :return: the minibatches, one after the other
    """
    rebuild = rebuilding(data)
    size = int(batch_size)  # which may be one of numpy's
    columns: Sequence[Sequence[th.Tensor]] = [leaf.split(size) for leaf in leaves(data)]
    for minibatch in zip(*columns, strict=True):
        yield rebuild(iter(minibatch))
