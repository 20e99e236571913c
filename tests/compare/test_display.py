"""Claim: the display counts the runs that ended and the steps of those that have not, on a terminal and in a file."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from sb3_pgext.compare.display import progress_shown
from sb3_pgext.compare.runs import progress, reporter, work
from sb3_pgext.compare.study import Evaluation, Run

_RUNS = [Run("a", "ppo", "CartPole-v1", seed, 1000, Evaluation(100), {}) for seed in range(3)]


@pytest.fixture(autouse=True)
def _report_at_once(monkeypatch) -> None:
    monkeypatch.setattr("sb3_pgext.compare.runs._PROGRESS_INTERVAL", 0.0)


def _report(run: Run, folder: Path, steps: int, evaluations: int) -> None:
    running = folder / f"{run.folder_name}.1a2b3c4d.partial"
    running.mkdir()
    reporter(running / "progress")(steps, evaluations)


def test_steps_are_those_of_ended_runs_and_as_reported_of_the_others(tmp_path: Path) -> None:
    assert progress(_RUNS, tmp_path) == (0, 0, 0)
    (tmp_path / _RUNS[0].folder_name).mkdir()
    _report(_RUNS[1], tmp_path, 250, 3)
    # Each of the eleven evaluations, the first at step 0, counts as much as the 100 steps between two of them.
    assert work(_RUNS[0]) == 1000 + 11 * 100
    assert progress(_RUNS, tmp_path) == (1, 1000 + 250, 2100 + 250 + 3 * 100)
    assert progress(_RUNS[:1], tmp_path) == (1, 1000, 2100), "steps of a run of another study"


def test_a_failed_run_has_ended(tmp_path: Path) -> None:
    (tmp_path / f"{_RUNS[0].folder_name}.failed").mkdir()
    assert progress(_RUNS, tmp_path) == (1, 1000, 2100)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_terminal_gets_a_bar_and_a_file_plain_lines(is_terminal: bool, tmp_path: Path) -> None:
    file = io.StringIO()
    with progress_shown(_RUNS, tmp_path, Console(file=file, force_terminal=is_terminal, width=100)):
        for run in _RUNS:
            (tmp_path / run.folder_name).mkdir()
    assert "3/3 runs" in file.getvalue()
    assert ("\x1b" in file.getvalue()) == is_terminal
    assert ("━" in file.getvalue()) == is_terminal


def test_the_time_left_follows_from_the_speed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sb3_pgext.compare.display._REFRESH_SECONDS", 0.01)
    monkeypatch.setattr("sb3_pgext.compare.display.LINE_SECONDS", 0.0)
    file = io.StringIO()
    with progress_shown(_RUNS, tmp_path, Console(file=file, width=100)):
        for run in _RUNS[:2]:
            time.sleep(0.3)
            (tmp_path / run.folder_name).mkdir()
        time.sleep(0.3)
    assert file.getvalue().startswith("0/3 runs, starting, 0:00:00 elapsed")
    last = file.getvalue().splitlines()[-1]
    speed = re.fullmatch(r"2/3 runs, ([\d,]+) steps/s, (\d:\d\d:\d\d) left, 0:00:01 elapsed", last)
    assert speed is not None
    assert 500 < int(speed[1].replace(",", "")) < 20_000
