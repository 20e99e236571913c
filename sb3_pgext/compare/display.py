"""What a study shows while it runs: its notes, and one progress display for all of it."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sb3_pgext.compare.runs import Outcome, finished, progress
from sb3_pgext.compare.study import Run

_REFRESH_SECONDS = 0.5
LINE_SECONDS = 15.0
"""Between two lines where there is no terminal to draw a bar on."""


def show_notes(notes: Iterable[str], console: Console) -> None:
    """
    :param notes: what the user is to know before anything is trained
    :param console: where to show them
    """
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def show_progress(
    outcomes: Iterable[Outcome], ended: list[Outcome], runs: list[Run], folder: Path, console: Console
) -> None:
    """
    Show the progress of runs until all have ended.

    :param outcomes: the outcomes, as the runs end
    :param ended: to which they are appended
    :param runs: all runs that are to be trained
    :param folder: the folder of all runs
    :param console: where to show it: a bar on a terminal, else a line now and then
    """
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(stop, ended, runs, folder, console), daemon=True)
    watch.start()
    try:
        for outcome in outcomes:
            ended.append(outcome)  # noqa: PERF402 (the other thread watches it grow)
    finally:
        stop.set()
        watch.join()


def _watch(stop: threading.Event, ended: list[Outcome], runs: list[Run], folder: Path, console: Console) -> None:
    """Show the progress until told to stop, and once more then."""
    all_steps = sum(run.n_timesteps for run in runs)
    started = training_since = time.monotonic()
    next_line = started + LINE_SECONDS
    bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=all_steps)
    with bar:
        stopped = False
        while not stopped:
            stopped = stop.wait(_REFRESH_SECONDS)
            now = time.monotonic()
            steps, steps_left = _steps(ended, runs, folder)
            if steps == 0:
                # The workers are still starting, which says nothing about their speed.
                training_since = now
            n_ended = len({o.run.folder_name for o in ended} | {r.folder_name for r in runs if finished(r, folder)})
            text = f"{n_ended}/{len(runs)} runs, {_speed(steps, steps_left, now - training_since)}"
            text += f", {_clock(now - started)} elapsed"
            bar.update(task, completed=all_steps - steps_left, description=text)
            if not console.is_terminal and (stopped or now >= next_line):
                console.print(text, soft_wrap=True)
                next_line = now + LINE_SECONDS


def _steps(ended: list[Outcome], runs: list[Run], folder: Path) -> tuple[int, int]:
    """Environment steps that have been taken, as far as reported, and those still to be: a failed run has none left."""
    failed = {outcome.run.folder_name for outcome in ended if outcome.error is not None}
    successful = {outcome.run.folder_name: outcome.run.n_timesteps for outcome in ended if outcome.error is None}
    taken = progress(runs, folder) | successful
    left = sum(run.n_timesteps - taken[run.folder_name] for run in runs if run.folder_name not in failed)
    return sum(taken.values()), left


def _speed(steps: int, steps_left: int, seconds: float) -> str:
    if steps == 0 or seconds <= 0:
        return "starting"
    speed = steps / seconds
    return f"{speed:,.0f} steps/s, {_clock(steps_left / speed)} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
