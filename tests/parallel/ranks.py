"""Ranks for tests: forked processes, as torchrun would start them."""

import multiprocessing
import os
import pickle
import traceback
from multiprocessing.connection import wait

import torch.distributed as dist

from sb3_pgext import parallel

PATIENCE = 300.0
"""Seconds after which a test gives up."""


def on_ranks(size, function, *arguments, join=True, store=None):
    """
    Call a function on several ranks.

    :param size: number of ranks
    :param function: of the rank, and of the arguments; it may be a closure, as the processes are forked
    :param join: whether the ranks join a group before that
    :param store: where they meet; None for a new one
    :return: what it returns, by rank; the error itself where it raises one, None where the process has been killed
    """
    store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    pipes, processes = {}, []
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        of_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        of_torchrun |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        variables = {name: str(value) for name, value in of_torchrun.items()}
        process = context.Process(target=_run, args=(theirs, variables, join, function, rank, *arguments))
        process.start()
        theirs.close()
        pipes[mine] = rank
        processes.append(process)
    results = [None] * size
    while pipes:
        ready = wait(list(pipes), PATIENCE)
        if not ready:
            for process in processes:
                process.kill()
            raise TimeoutError(f"ranks {sorted(pipes.values())} have not answered")
        for pipe in ready:
            rank = pipes.pop(pipe)
            try:
                results[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                results[rank] = None
    for process in processes:
        process.join()
    return results


def _run(pipe, variables, join, function, rank, *arguments):
    os.environ.update(variables)
    try:
        if join:
            parallel.init()
        result = function(rank, *arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    pipe.send_bytes(pickle.dumps(result))
    pipe.close()


def results_of(size, function, *arguments):
    """:func:`on_ranks`, where none fails."""
    results = on_ranks(size, function, *arguments)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
