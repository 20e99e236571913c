"""The group of processes that train together, joined from the environment that torchrun leaves."""

import atexit
import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta

import torch as th
import torch.distributed as dist

from sb3_pgext.arguments import require
from sb3_pgext.parallel.ranks import Ranks

__all__ = ["init", "present", "started_by_torchrun"]

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

ARRIVAL = timedelta(minutes=5)
"""How long the ranks wait for each other when they join."""

NEVER = timedelta(days=3650)
"""How long they wait for each other afterwards: rank 0 may evaluate for hours."""

_present = Ranks()


def present() -> Ranks:
    """The ranks of this run: this process alone where nobody has called :func:`init`."""
    return _present


def started_by_torchrun() -> bool:
    """True if torchrun, or whatever sets the same variables, has started this process."""
    return any(name in os.environ for name in _NAMES[:2])


def init() -> Ranks:
    """
    Join the other processes that torchrun has started; from then on, trainings of all of them are one.

    Each calls it once, before a model is made. It takes gloo on CPUs; where there is a GPU for each rank, it takes
    nccl, and local rank r gets the r-th. Without torchrun it does nothing, so that the same script runs alone.

    :return: this process's rank, and how many there are
    :raises ValueError: some of the variables that torchrun sets are missing, or are no numbers
    :raises RuntimeError: a rank does not arrive
    """
    global _present  # noqa: PLW0603  a process has one group, as torch has it
    if _present.size > 1 or not started_by_torchrun():
        return _present
    rank, size = _place(os.environ)
    if size == 1:
        return _present
    backend, n_local = "gloo", int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if n_local <= th.cuda.device_count():  # the same for all: a rank without a GPU of its own has no nccl
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
        backend = "cpu:gloo,cuda:nccl"
    notes = None
    if not dist.is_initialized():
        store, *_ = next(dist.rendezvous("env://", timeout=ARRIVAL))
        store = dist.PrefixStore(_meet(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=NEVER)
        notes = dist.PrefixStore("notes", store)
        atexit.register(dist.destroy_process_group)
    if rank:
        th.seed()  # torch's generator starts with the same number in each process
    _present = Ranks(rank, size, notes)
    return _present


def _place(variables: Mapping[str, str]) -> tuple[int, int]:
    """Rank and number of ranks."""
    given = {name: variables.get(name) for name in _NAMES}
    for name, value in given.items():
        require(value is not None, name, value, f"one beside {given}: torchrun sets all four, or nobody does")
    numbers = [int(value) if value is not None and value.isdecimal() else -1 for value in given.values()]
    rank, size, _, port = numbers
    require(size > 0, "WORLD_SIZE", given["WORLD_SIZE"], "a number of ranks")
    require(0 <= rank < size, "RANK", given["RANK"], f"a number from 0 to {size - 1}")
    require(port > 0, "MASTER_PORT", given["MASTER_PORT"], "the number of a port")
    return rank, size


def _meet(store: dist.Store, rank: int, size: int) -> str:
    """
    Wait until all are there, and agree on a name for this group.

    torchrun starts ranks anew with the store that they had: what is in it may be of ranks that are dead. So each says
    a word of its own, and rank 0, whose word is the name, repeats all that it has heard until each has heard itself.
    """

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    word, end = uuid.uuid4().hex, time.monotonic() + ARRIVAL.total_seconds()
    store.set(f"word/{rank}", word)
    heard: list[str] = []
    while time.monotonic() < end:
        if rank == 0:
            heard = [read(f"word/{r}") for r in range(size)]
            store.set("heard", " ".join(heard))
            if all(read(f"here/{r}") == word for r in range(1, size)):
                store.set("met", word)
                return word
        else:
            heard = read("heard").split(" ")
            if len(heard) == size and heard[rank] == word:
                store.set(f"here/{rank}", heard[0])
                if read("met") == heard[0]:
                    return heard[0]
        time.sleep(0.01)
    missing = [r for r in range(size) if r != rank and not (r < len(heard) and heard[r])]
    raise RuntimeError(f"rank {rank} of {size} waits for ranks {missing} in vain")
