"""Pages to read and to pass on: ``report.html``, which needs nothing beside it, and ``summary.md``."""

import base64
import html
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
import yaml

from sb3_pgext.compare.aggregate import Aggregate
from sb3_pgext.compare.plots import FIGURES
from sb3_pgext.compare.report import SummaryTable, bootstrap_note
from sb3_pgext.compare.runs import Outcome
from sb3_pgext.compare.statistics import Estimate
from sb3_pgext.compare.study import Run, Study
from sb3_pgext.rollouts.files import replacing
from sb3_pgext.zoo.versions import VERSIONS

__all__ = ["Failure", "aggregate_table", "grouped", "write_pages"]


def aggregate_table(statistics: Aggregate, study: Study) -> SummaryTable:
    """
    Put statistics over environments into words.

    :param statistics: of all environments together
    :param study: whose they are
    :return: the table
    """
    rows = [
        [label, _estimate_text(final), _estimate_text(statistics.improvements.get(label))]
        for label, final in statistics.final.items()
    ]
    n = len(study.environments)
    caption = "Score: 0 before training, 1 the best final return of any run in the environment. "
    caption += f"Brackets: 95 % stratified bootstrap intervals.{bootstrap_note(statistics.seeds)}"
    if missing := [label for label in study.labels if label not in statistics.final]:
        caption += f" Left out, for want of finished runs: {', '.join(missing)}."
    title = f"{study.environments[0] if n == 1 else f'{n} environments together'}, {statistics.seeds} seeds: scores"
    header = ["run", "final score\nIQM", f"P(better than\n{statistics.baseline})"]
    return SummaryTable(title, header, rows, caption)


def _estimate_text(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


@dataclass(frozen=True)
class Failure:
    """
    A failure that runs have in common.

    :param runs: which runs, in words
    :param error: what they failed with
    :param log: log file of the first, relative to the folder of the results
    """

    runs: str
    error: str
    log: Path


def grouped(failures: Sequence[Outcome], folder: Path) -> list[Failure]:
    """
    Put runs that failed with the same error together.

    :param failures: the runs that did not finish
    :param folder: the folder of the results
    :return: one failure for each error
    """
    by_error: dict[str, list[Outcome]] = {}
    for failure in failures:
        by_error.setdefault(failure.error or "", []).append(failure)
    return [
        Failure(_in_words([outcome.run for outcome in same]), error, same[0].log.relative_to(folder))
        for error, same in by_error.items()
    ]


def _in_words(runs: Sequence[Run]) -> str:
    """Name runs, the seeds of a label on an environment together."""
    seeds: dict[str, list[str]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        seeds.setdefault(f"{run.label} on {run.environment}", []).append(str(run.seed))
    return "; ".join(f"{where}, seed{'s' if len(each) > 1 else ''} {', '.join(each)}" for where, each in seeds.items())


def write_pages(
    study: Study, tables: Sequence[SummaryTable], figures: Sequence[Path], failures: Sequence[Failure], folder: Path
) -> None:
    """
    Write ``report.html`` and ``summary.md``.

    :param study: a study
    :param tables: what to show first
    :param figures: files of the figures, without suffix; the SVG goes into the page
    :param failures: as of :func:`grouped`
    :param folder: where the pages go
    """
    templates = jinja2.PackageLoader("sb3_pgext.compare", "templates")
    environment = jinja2.Environment(loader=templates, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"markdown": _markdown, "code": _code, "yaml": partial(yaml.safe_dump, sort_keys=False)}
    content = {
        "study": study,
        "tables": tables,
        "figures": [{"name": path.name, "caption": FIGURES[path.name], "svg": _inline(path)} for path in figures],
        "failures": failures,
        # The seeds are the only difference between the runs of a label on an environment.
        "configs": {(run.environment, run.label): run for run in study.runs}.values(),
        "versions": VERSIONS,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "evaluations": _evaluations(study),
        "gym_packages": dict.fromkeys(package for run in study.runs for package in run.gym_packages),
    }
    for name, autoescape in (("report.html", True), ("summary.md", False)):
        page = environment.overlay(autoescape=autoescape).get_template(f"{name}.jinja").render(content)
        with replacing(folder / name) as file:
            file.write(page.encode())


_MARKUP = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=\()|:(?=//)")
"""Characters that Markdown does not take literally: underscores at the edge of a word, brackets and colons in links."""


def _markdown(text: object) -> str:
    """Write a text as plain Markdown, within a line or the cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(" ".join(str(text).split()), quote=False))


def _code(text: object) -> str:
    """Write a text as code in a line of Markdown, between more backticks than stand in it anywhere."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`*", line))))
    return f"{fence} {line} {fence}"


def _inline(figure: Path) -> str:
    """Write the SVG as the address of an image."""
    svg = figure.with_suffix(".svg").read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _evaluations(study: Study) -> dict[str, str]:
    """Say how the runs on each environment were evaluated; labels of other budgets may differ."""
    texts: dict[str, dict[str, None]] = {}
    for run in study.runs:
        e, kind = run.evaluation, "deterministic" if run.evaluation.deterministic else "sampled"
        texts.setdefault(run.environment, {})[f"every {e.frequency:,} steps, {e.episodes} {kind} episodes"] = None
    return {environment: " or ".join(of_runs) for environment, of_runs in texts.items()}
