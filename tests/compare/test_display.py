"""Claim: the display counts the runs that ended and the steps of those that have not, on a terminal and in a file."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sb3_pgext.compare.display import _speed, _steps, progress_shown
from sb3_pgext.compare.runs import Outcome, reporter
from sb3_pgext.compare.study import Evaluation, Run

_RUNS = [Run("a", "ppo", "CartPole-v1", seed, 1000, Evaluation(100), {}) for seed in range(3)]


@pytest.fixture(autouse=True)
def _report_at_once(monkeypatch) -> None:
    monkeypatch.setattr("sb3_pgext.compare.runs._PROGRESS_INTERVAL", 0.0)


def _outcome(run: Run, error: str | None = None) -> Outcome:
    return Outcome(run, error, Path("log.txt"))


def test_steps_are_those_of_ended_runs_and_as_reported_of_the_others(tmp_path: Path) -> None:
    running = tmp_path / f"{_RUNS[1].folder_name}.1a2b3c4d.partial"
    running.mkdir()
    reporter(running / "progress")(250)
    assert _steps([_outcome(_RUNS[0])], _RUNS, tmp_path) == (1000 + 250 + 0, 750 + 1000)


def test_a_failed_run_has_taken_what_it_reported_and_has_nothing_left(tmp_path: Path) -> None:
    failed = tmp_path / f"{_RUNS[0].folder_name}.1a2b3c4d.partial"
    failed.mkdir()
    reporter(failed / "progress")(250)
    assert _steps([_outcome(_RUNS[0], "ValueError")], _RUNS, tmp_path) == (250, 2000)


def test_the_time_left_follows_from_the_speed() -> None:
    assert _speed(steps=3000, steps_left=9000, seconds=10.0) == "300 steps/s, 0:00:30 left"
    assert _speed(steps=0, steps_left=12_000, seconds=10.0) == "starting"


def test_a_file_gets_plain_lines(tmp_path: Path) -> None:
    file = io.StringIO()
    outcomes = [_outcome(run) for run in _RUNS]
    ended: list[Outcome] = []
    with progress_shown(ended, _RUNS, tmp_path, Console(file=file)):
        ended.extend(outcomes)
    assert "3/3 runs" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with progress_shown([_outcome(run) for run in _RUNS], _RUNS, tmp_path, console):
        pass
    assert "3/3 runs" in file.getvalue()
    assert "━" in file.getvalue()
