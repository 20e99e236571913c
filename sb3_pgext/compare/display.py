"""The one progress display of a study."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sb3_pgext.compare.runs import progress, work
from sb3_pgext.compare.study import Run
from sb3_pgext.zoo.console import LINE_SECONDS, Every

_REFRESH_SECONDS = 0.5
_SPEED_SECONDS = 600.0
"""The time left follows from the work of the last so many seconds."""


@contextmanager
def progress_shown(runs: list[Run], folder: Path, console: Console) -> Iterator[None]:
    """
    Show the progress of runs: a bar on a terminal, else a line now and then.

    :param runs: all runs that are to be trained
    :param folder: the folder of all runs
    :param console: where to show it
    """
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(stop, runs, folder, console), daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def _watch(stop: threading.Event, runs: list[Run], folder: Path, console: Console) -> None:
    """Show the progress until told to stop, and once more then."""
    line_is_due = Every(LINE_SECONDS)
    columns = BarColumn(), TextColumn("{task.description}")
    with Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=_SPEED_SECONDS
    ) as bar:
        bar.add_task("", total=sum(map(work, runs)))
        (task,) = bar.tasks
        stopped = False
        while not stopped:
            stopped = stop.wait(_REFRESH_SECONDS)
            n_ended, steps, done = progress(runs, folder)
            bar.update(task.id, completed=done)
            speed = f"{steps / (task.elapsed or 1.0):,.0f} steps/s, {_clock(task.time_remaining)} left"
            speed = speed if task.speed else "starting"
            text = f"{n_ended}/{len(runs)} runs, {speed}, {_clock(task.elapsed)} elapsed"
            bar.update(task.id, description=text)
            if not console.is_terminal and (stopped or line_is_due()):
                console.print(text, soft_wrap=True)


def _clock(seconds: float | None) -> timedelta:
    return timedelta(seconds=round(seconds or 0.0))
