"""Processes that work at one task each, wait for orders and report; whatever ends one of them is told by its number."""

import contextlib
import signal
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle
import torch as th

from sb3_pgext.vec_envs.worker_vec_env import process_context

__all__ = ["Link", "Workers"]

START_METHOD = "spawn"
"""How processes begin: with nothing of this one but what they are given."""

PATIENCE = 20.0
"""Seconds that a worker has to finish what it is at, before it is ended."""


class _Failure(NamedTuple):
    """An error in a worker."""

    kind: type[Exception]
    message: str
    where: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        named = isinstance(error, ValueError)
        message = str(error) if named else f"{type(error).__name__}: {error}"
        return cls(ValueError if named else RuntimeError, message, traceback.format_exc())


class Link:
    """
    A worker's connection to the main process, with the object that all workers got from it, ``shared``.

    :param number: of the worker, from 0
    :param connection: the line
    """

    shared: Any = None

    def __init__(self, number: int, connection: Connection):
        self.number, self._connection = number, connection

    def receive(self) -> Any:
        """
        Wait for the next order.

        :return: the order; None where there is none any more
        :raises SystemExit: the main process has ended
        """
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit from None

    def send(self, report: Any) -> None:
        """
        Report to the main process.

        :param report: what pickle can take
        :raises SystemExit: the main process has ended
        """
        try:
            self._connection.send(report)
        except OSError:
            raise SystemExit from None


def _work(number: int, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the workers
    th.set_num_threads(1)
    link = Link(number, connection)
    try:
        task, link.shared = link.receive()
        cloudpickle.loads(task)(link)
    except Exception as error:
        link.send(_Failure.of(error))


class Workers:
    """
    The main process's side of the lines to its workers.

    They end with the main process, however that ends.

    :param n_workers: how many
    :param task: a function of a :class:`Link`, pickled: it says once that it is ready, then it works at orders until
        there are none
    :param shared: tensors, and objects made of them, which torch moves to shared memory
    :raises ValueError: a worker has found something wrong; the message names it
    :raises RuntimeError: a worker has failed otherwise, or died
    """

    def __init__(self, n_workers: int, task: bytes, shared: Any):
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._ready: deque[Any] = deque()
        context = process_context(START_METHOD)
        try:
            for number in range(n_workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(number, theirs), daemon=True)
                process.start()
                theirs.close()  # the worker's end alone is open: if it dies, reading says so
                self._connections.append(ours)
                self._processes.append(process)
            for number in range(n_workers):
                # Not as its argument: whoever starts a process waits for ever until it has read that, even if it died.
                self.send(number, (task, shared))
            for number in range(n_workers):
                self._report_of(number)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """The number of workers."""
        return len(self._connections)

    def send(self, number: int, order: Any) -> None:
        """
        Give a worker an order.

        :param number: of the worker
        :param order: what pickle can take
        :raises RuntimeError: the worker has died
        """
        try:
            self._connections[number].send(order)
        except OSError:
            raise self._death_of(number) from None

    def receive(self) -> tuple[int, Any]:
        """
        Wait for the next report of any worker.

        :return: the worker's number, and the report
        :raises ValueError: a worker has found something wrong; the message names it
        :raises RuntimeError: a worker has failed otherwise, or died
        """
        if not self._ready:  # one report of each in turn: no worker waits for ever behind a faster one
            self._ready.extend(wait(self._connections))
        number = self._connections.index(self._ready.popleft())
        return number, self._report_of(number)

    def _report_of(self, number: int) -> Any:
        try:
            report = self._connections[number].recv()
        except (EOFError, OSError):
            raise self._death_of(number) from None
        if isinstance(report, _Failure):
            raise report.kind(f"worker {number}: {report.message}") from RuntimeError(f"\n{report.where}")
        return report

    def _death_of(self, number: int) -> RuntimeError:
        process = self._processes[number]
        process.join(1.0)
        code = process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        hint = ""
        if code == 1:
            hint = ". What it printed says why; a script that starts workers needs `if __name__ == '__main__':`"
        return RuntimeError(f"worker {number} has ended with {how}{hint}")

    def close(self) -> list[tuple[int, Any]]:
        """
        End all workers, when they have finished what they are at.

        :return: number and report of those that were at something
        """
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has died
                connection.send(None)
        reports, working = [], dict(zip(self._connections, range(len(self)), strict=True))
        deadline = time.monotonic() + PATIENCE
        while working and (answers := wait(list(working), max(0.0, deadline - time.monotonic()))):
            for connection in set(working).intersection(answers):
                try:
                    report = connection.recv()
                except (EOFError, OSError):
                    del working[connection]
                else:
                    reports.append((working[connection], report))
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join(max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()
        self._connections, self._processes = [], []
        return [(number, report) for number, report in reports if not isinstance(report, _Failure)]
