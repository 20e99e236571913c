"""The one progress display of a study."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sb3_pgext.compare.runs import Outcome, finished, progress
from sb3_pgext.compare.study import Run
from sb3_pgext.zoo.console import LINE_SECONDS, Every

_REFRESH_SECONDS = 0.5


@contextmanager
def progress_shown(ended: list[Outcome], runs: list[Run], folder: Path, console: Console) -> Iterator[None]:
    """
    Show the progress of runs: a bar on a terminal, else a line now and then.

    :param ended: the outcomes, to which each is appended when its run ends
    :param runs: all runs that are to be trained
    :param folder: the folder of all runs
    :param console: where to show it
    """
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(stop, ended, runs, folder, console), daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def _watch(stop: threading.Event, ended: list[Outcome], runs: list[Run], folder: Path, console: Console) -> None:
    """Show the progress until told to stop, and once more then."""
    all_steps = sum(run.n_timesteps for run in runs)
    started = time.monotonic()
    line_is_due = Every(LINE_SECONDS)
    bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=all_steps)
    with bar:
        stopped = False
        while not stopped:
            stopped = stop.wait(_REFRESH_SECONDS)
            seconds = time.monotonic() - started
            steps, steps_left = _steps(ended, runs, folder)
            n_ended = len({o.run.folder_name for o in ended} | {r.folder_name for r in runs if finished(r, folder)})
            text = f"{n_ended}/{len(runs)} runs, {_speed(steps, steps_left, seconds)}, {_clock(seconds)} elapsed"
            bar.update(task, completed=all_steps - steps_left, description=text)
            if not console.is_terminal and (stopped or line_is_due()):
                console.print(text, soft_wrap=True)


def _steps(ended: list[Outcome], runs: list[Run], folder: Path) -> tuple[int, int]:
    """Count the steps that have been taken, as far as reported, and those left, of which a failed run has none."""
    failed = {outcome.run.folder_name for outcome in ended if outcome.error is not None}
    successful = {outcome.run.folder_name: outcome.run.n_timesteps for outcome in ended if outcome.error is None}
    taken = progress(runs, folder) | successful
    left = sum(run.n_timesteps - taken[run.folder_name] for run in runs if run.folder_name not in failed)
    return sum(taken.values()), left


def _speed(steps: int, steps_left: int, seconds: float) -> str:
    if steps == 0:
        return "starting"
    speed = steps / seconds
    return f"{speed:,.0f} steps/s, {_clock(steps_left / speed)} left"


def _clock(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
