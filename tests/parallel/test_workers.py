"""Claim: workers work at orders, their errors and deaths are told by number, and they end with the main process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch as th

from sb3_pgext.parallel import workers
from sb3_pgext.parallel.sending import sendable
from sb3_pgext.parallel.workers import Workers


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch):
    monkeypatch.setattr(workers, "START_METHOD", "fork")
    monkeypatch.setattr(workers, "PATIENCE", 5.0)


def adding(link):
    """Adds each order to its own place of the shared vector."""
    link.send(None)
    while (order := link.receive()) is not None:
        if order == "wrong":
            raise ValueError("order='wrong': allowed is a number")
        if order == "fail":
            raise KeyError("missing")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "leave":
            sys.exit(7)
        if order == "hang":
            time.sleep(1000)
        link.shared[link.number] += order
        link.send((link.number, order))


def started(n_workers=2, task=adding):
    return Workers(n_workers, sendable(task), th.zeros(n_workers).share_memory_())


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_orders_and_reports():
    shared = th.zeros(2).share_memory_()
    team = Workers(2, sendable(adding), shared)
    for number, order in ((0, 3), (1, 4), (0, 5)):
        team.send(number, order)
    assert sorted(team.receive()[1] for _ in range(3)) == [(0, 3), (0, 5), (1, 4)]
    assert shared.tolist() == [8, 4]
    processes = team._processes
    assert team.close() == []
    assert [process.exitcode for process in processes] == [0, 0]


def test_reports_of_all_in_turn():
    """A fast worker does not keep the others waiting."""
    team = started()
    for number in (0, 1):
        for _ in range(5):
            team.send(number, 1)
    for _ in range(2):
        while not all(connection.poll() for connection in team._connections):
            pass
        assert [team.receive()[0] for _ in range(2)] == [0, 1]
    team.close()


def test_what_a_worker_is_at_is_finished():
    team = started()
    team.send(1, 2)
    assert team.close() == [(1, (1, 2))]


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        ("wrong", ValueError, r"^worker 1: order='wrong': allowed is a number$"),
        ("fail", RuntimeError, r"^worker 1: KeyError: 'missing'$"),
        ("die", RuntimeError, r"^worker 1 has ended with SIGKILL$"),
        ("leave", RuntimeError, r"^worker 1 has ended with exit code 7$"),
    ],
)
def test_errors_and_deaths(order, kind, message):
    team = started()
    team.send(1, order)
    with pytest.raises(kind, match=message) as raised:
        team.receive()
    if order in ("wrong", "fail"):
        assert "in adding" in str(raised.value.__cause__), "the traceback is not there"
    team._processes[1].join()
    processes = team._processes
    with pytest.raises(RuntimeError, match=r"^worker 1 has ended with"):
        team.send(1, 1)
    assert team.close() == []
    assert not any(process.is_alive() for process in processes)


def test_one_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    team = started()
    team.send(0, "hang")
    (hanging, other), _ = team._processes, team.close()
    assert (hanging.exitcode, other.exitcode) == (-signal.SIGKILL, 0)


def test_an_error_at_the_start_ends_all():
    def stumbling(link):
        if link.number == 1:
            raise ValueError("seed=None: allowed is a number")
        adding(link)

    with pytest.raises(ValueError, match="worker 1: seed=None"):
        started(task=stumbling)


SCRIPT = """
import os, signal, sys, time
import torch as th
from sb3_pgext.parallel.sending import sendable
from sb3_pgext.parallel.workers import Workers

def task(link, ballast=bytes(1_000_000)):
    link.send(None)
    while link.receive() is not None:
        link.send(os.getpid())

{guard}
    team = Workers(2, sendable(task), th.zeros(1))
    for number in (0, 1):
        team.send(number, "who are you?")
    print(*(team.receive()[1] for _ in (0, 1)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if "die" in sys.argv else team.close()
"""


def run(tmp_path, *arguments, guard="if __name__ == '__main__':"):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard=guard))
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("how", ["close", "die"])
def test_spawned_workers_end_with_the_main_process(tmp_path, how):
    finished = run(tmp_path, how)
    assert finished.returncode == (0 if how == "close" else -signal.SIGKILL), finished.stderr
    pids = [int(pid) for pid in finished.stdout.split()]
    assert len(set(pids)) == 2
    end = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "they outlive it"


def test_a_script_that_would_start_itself_is_told(tmp_path):
    finished = run(tmp_path, guard="if True:")
    assert finished.returncode == 1
    assert "RuntimeError: worker 0 has ended with exit code 1" in finished.stderr
    assert "a script that starts workers needs `if __name__ == '__main__':`" in finished.stderr


def pids_of_workers():
    """Of spawned ones."""
    team = Workers(1, sendable(telling), th.zeros(1))
    team.send(0, "who are you?")
    found = team.receive()
    team.close()
    return found[1] != os.getpid()


def telling(link):
    link.send(None)
    while link.receive() is not None:
        link.send(os.getpid())


def test_a_process_of_joblibs_can_have_workers():
    """As where the runs of a study are spread over processes."""
    assert joblib.Parallel(n_jobs=2, timeout=120)([joblib.delayed(pids_of_workers)()] * 2) == [True, True]
