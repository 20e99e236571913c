"""Ranks: the processes of one run, and means over what all of them have."""

import os
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

from sb3_pgext.estimators.statistics import standardize

__all__ = ["Ranks"]

Collective = TypeVar("Collective", bound=Callable[..., Any])

PATIENCE = 20.0
"""Seconds in which a rank that is still there notices that another one is gone."""


def _collective(method: Collective) -> Collective:
    """Name the ranks that are gone where torch says that a connection is."""

    @wraps(method)
    def named(self: "Ranks", *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except RuntimeError as error:
            raise RuntimeError(f"rank {self.rank} of {self.size} stops: {self._gone()}. {error}") from error

    return named  # type: ignore[return-value]


class Ranks:
    """
    The processes that train together. Each calls the same methods in the same order.

    A process alone is rank 0 of 1, for which a sum or a mean over the ranks is what it has itself.

    :param rank: of this process, from 0
    :param size: number of ranks, R
    :param store: torch's, where the ranks leave notes for each other
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None):
        self.rank, self.size, self.store = rank, size, store

    @property
    def several(self) -> bool:
        """True if this process is not alone."""
        return self.size > 1

    def seed(self, seed: int | None) -> int | None:
        """
        The seed of this rank's generators.

        :param seed: the run's; None for none
        :return: a number that depends on both, and is the run's own for rank 0
        """
        if seed is None or self.rank == 0:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def own_file(self, file: Any) -> Any:
        """
        The file of what each rank has for itself.

        :param file: a path; or an open file, which stays as it is
        :return: the path on rank 0, elsewhere beside it, with the number of the rank in its name
        """
        if self.rank == 0 or not isinstance(file, (str, os.PathLike)):
            return file
        path = Path(file)
        return path.with_name(f"{path.stem}_rank{self.rank}{path.suffix}")

    def sum(self, x: th.Tensor) -> th.Tensor:
        """
        The sum over the ranks.

        :param x: any shape, the same on all ranks
        :return: the same on all ranks, constant
        """
        if not self.several:
            return x
        total = x.detach().clone()
        self._all_reduce(total)
        return total

    def largest(self, n: int) -> int:
        """
        The largest of numbers.

        :param n: of this rank
        :return: of all ranks
        """
        return int(self.gathered(th.tensor([n])).max())

    def mean(self, x: th.Tensor, n: int) -> th.Tensor:
        """
        The mean over the rows of all ranks, differentiable: this rank's share of the gradient, for :meth:`sum`.

        :param x: the mean over n rows of this rank, any shape, the same on all ranks
        :param n: number of rows: steps, or episodes, as the estimator has it
        :return: the mean over all rows, the same on all ranks
        """
        return _Mean.apply(x, n, self) if self.several else x

    def average(self, tensors: Sequence[th.Tensor], n: int) -> None:
        """
        :meth:`mean` of several tensors in place, by one message.

        :param tensors: means over n rows of this rank, constant
        :param n: number of rows; may be 0
        """
        means, _ = self._means(tensors, n)
        th._foreach_copy_(list(tensors), means)

    def standardized(self, *parts: th.Tensor) -> list[th.Tensor]:
        """
        Subtract the mean over all ranks and divide by the standard deviation, each part by its own.

        :param parts: ``(M_k,)`` each, as many on all ranks
        :return: the parts, as :func:`~sb3_pgext.estimators.statistics.standardize` makes them of all ranks' rows
        """
        if not self.several:
            return [standardize(x) for x in parts]
        counts, sums = self.sum(th.stack([x.new_tensor([len(x), x.sum()]) for x in parts])).T
        means = sums / counts
        squares = self.sum(th.stack([(x - mean).square().sum() for x, mean in zip(parts, means, strict=True)]))
        stds = (squares / (counts - 1)).sqrt()
        of_parts = zip(parts, means, stds, counts.tolist(), strict=True)
        return [(x - mean) / (std + 1e-8) if count > 1 else x for x, mean, std, count in of_parts]

    def gathered(self, x: th.Tensor) -> th.Tensor:
        """
        The rows of all ranks, those of rank 0 first.

        :param x: ``(K_r, …)``
        :return: ``(K, …)``, constant
        """
        return th.cat(self._gathered(x)) if self.several else x

    def together(self, function: Callable[..., th.Tensor], *columns: th.Tensor | None) -> th.Tensor:
        """
        Apply a function to the rows of all ranks.

        :param function: columns → one row for each of the first column
        :param columns: ``(K_r, …)``; each may have a length of its own. None stays None
        :return: the rows that belong to this rank, constant
        """
        if not self.several:
            return function(*columns)
        of_ranks = [None if x is None else self._gathered(x) for x in columns]
        assert of_ranks[0] is not None
        result = function(*(x and th.cat(x) for x in of_ranks))
        return result.split([len(x) for x in of_ranks[0]])[self.rank]

    def numbered(self, numbers: th.Tensor) -> th.Tensor:
        """
        Episodes numbered through all ranks.

        :param numbers: ``(K_r,)``, from 0 to the number of episodes of this rank, less 1
        :return: from 0 to that of all ranks, less 1, ``(K_r,)``
        """
        if not self.several:
            return numbers
        counts = self.gathered(numbers.max().view(1) + 1)
        return numbers + counts[: self.rank].sum()

    def elsewhere(self, x: th.Tensor) -> th.Tensor:
        """
        The sum over the other ranks, in which nothing is lost to rounding where this rank's own dominates.

        :param x: any shape, the same on all ranks
        :return: 0 for a process alone
        """
        if not self.several:
            return th.zeros_like(x)
        others = self._gathered(x.unsqueeze(0))
        return th.cat([*others[: self.rank], *others[self.rank + 1 :]]).sum(0)

    @_collective
    def objects(self, value: Any) -> list[Any]:
        """
        An object of each rank.

        :param value: can be pickled
        :return: those of all ranks, in their order
        """
        values = [value]
        if self.several:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    @_collective
    def at_first(self, value: Any) -> list[Any]:
        """
        An object of each rank, on rank 0.

        :param value: can be pickled
        :return: those of all ranks, in their order; nothing on the other ranks
        """
        if not self.several:
            return [value]
        values = [None] * self.size if self.rank == 0 else []
        dist.gather_object(value, values or None, 0)
        return values

    @_collective
    def from_first(self, value: Any) -> Any:
        """
        The object of rank 0.

        :param value: can be pickled; that of the other ranks does not matter
        :return: that of rank 0
        """
        values = [value]
        if self.several:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def _means(self, tensors: Sequence[th.Tensor], n: int) -> tuple[list[th.Tensor], th.Tensor]:
        """The means over all ranks, and the number of their rows."""
        parts = [x.detach().flatten() for x in tensors]
        flat = th.cat([*parts, parts[0].new_ones(1)])
        flat = flat * n if n else th.zeros_like(flat)  # a mean over no rows is NaN
        self._all_reduce(flat)
        means = (flat[:-1] / flat[-1]).split([len(part) for part in parts])
        return [mean.view_as(x) for mean, x in zip(means, tensors, strict=True)], flat[-1]

    @_collective
    def _all_reduce(self, x: th.Tensor) -> None:
        dist.all_reduce(x)

    @_collective
    def _gathered(self, x: th.Tensor) -> list[th.Tensor]:
        """The rows of each rank."""
        length = th.tensor([len(x)], device=x.device)
        lengths = [th.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        counts = [int(n) for n in th.cat(lengths)]
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x.detach()
        of_ranks = [th.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(of_ranks, padded)
        return [rows[:n] for rows, n in zip(of_ranks, counts, strict=True)]

    def _gone(self) -> str:
        """The ranks that leave no note although a connection is broken."""
        if self.store is None:
            return "a rank is gone"
        try:
            self.store.set(f"noticed/{self.rank}", "")
            end = time.monotonic() + PATIENCE
            silent = [r for r in range(self.size) if r != self.rank]
            while len(silent) > 1 and time.monotonic() < end:
                time.sleep(0.1)
                silent = [r for r in silent if not self.store.check([f"noticed/{r}"])]
        except RuntimeError:  # it is on rank 0, or in torchrun
            return "rank 0 is gone"
        return f"rank {', '.join(map(str, silent))} is gone" if silent else "a rank is gone"


class _Mean(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, n: int, ranks: Ranks) -> th.Tensor:
        (mean,), count = ranks._means([x], n)
        ctx.share = n / count
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor, None, None]:
        return gradients[0] * ctx.share, None, None
