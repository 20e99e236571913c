"""The console that the commands print on."""

import sys
import time
from collections.abc import Iterable

from rich.console import Console

_FILE_WIDTH = 120
"""Columns of what is printed where there is no terminal to fit it to."""

LINE_SECONDS = 15.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""


def output_console() -> Console:
    """
    Make a console of the present standard output, which it keeps: trainings redirect ``sys.stdout``.

    :return: the console
    """
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def show_notes(notes: Iterable[str], console: Console) -> None:
    """
    Print notes that you should see before anything is trained.

    :param notes: the notes
    :param console: where to print them
    """
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


class Every:
    """
    A clock that is due once in so many seconds.

    :param seconds: from its making, and from one call that is due, to the next
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def __call__(self) -> bool:
        now = time.monotonic()
        if due := now >= self._next:
            self._next = now + self._seconds
        return due
