"""Claim: the printed summary, ``summary.md`` and ``report.html`` say all that was found, and mark up nothing of it."""

import io
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.page import Failure, aggregate_table, grouped, write_pages
from sb3_pgext.compare.report import SummaryTable, print_summary, summary_table, summary_tables
from sb3_pgext.compare.runs import Outcome
from sb3_pgext.compare.study import Evaluation, Run, Study


def _study(
    labels: list[str], seeds: int = 5, environment: str = "X-v0", gym_packages: Collection[str] = ()
) -> tuple[Study, pd.DataFrame]:
    runs = tuple(
        Run(label, "ppo", environment, seed, 100_000, Evaluation(50_000), {}, dict.fromkeys(gym_packages, ""))
        for seed in range(seeds)
        for label in labels
    )
    rows = [
        {"run": run.label, "algorithm": "ppo", "environment": environment, "seed": run.seed, "timesteps": t}
        | {"mean_return": -1234.5 - run.seed + t, "true_timesteps": t, "training_seconds": t / (2_000 + run.seed)}
        for run in runs
        for t in (0, 50_000, 100_000)
    ]
    return Study("s", runs, {environment: 475.0}), pd.DataFrame(rows)


def _tables(study: Study, results: pd.DataFrame) -> list[SummaryTable]:
    statistics = aggregate(study, results)
    assert statistics is not None
    return [*summary_tables(study, summary_table(study, results)), aggregate_table(statistics, study)]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_narrow_terminal_breaks_lines_and_drops_nothing(width: int) -> None:
    labels = ["ppo_cc_value_clip_max_without_normalize", "ppo_cc_value_clip_none_without_normalize"]
    tables = _tables(*_study(labels))
    for table in tables:
        console = Console(file=io.StringIO(), width=width)
        print_summary([table], console)
        printed = console.file.getvalue()
        assert "…" not in printed
        assert sorted("".join(printed.replace("─", "").split())) == sorted(_characters(table))
        # On 40 columns the terminal breaks them itself.
        assert width == 40 or max(map(len, printed.splitlines())) <= width


def _characters(table: SummaryTable) -> str:
    cells = [cell for row in [table.header, *table.rows] for cell in row]
    return "".join("".join([table.title, *cells, table.caption]).split())


def test_a_label_that_a_narrow_terminal_has_room_for_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_summary(_tables(*_study(["PPO (SB3)", "REINFORCE + state"])), console)
    assert console.file.getvalue().count("REINFORCE + state") == 2


def test_a_run_that_was_suspended_counts_neither_for_the_speed_nor_for_the_time() -> None:
    study, results = _study(["a"])
    results["training_seconds"] = results["timesteps"] / 2_000
    results.loc[results["seed"] == 3, "training_seconds"] = 3600.0
    summary = summary_table(study, results)
    assert summary["seconds"].item() == 50.0
    assert summary["steps_per_second"].item() == 2_000.0
    (table,) = summary_tables(study, summary)
    assert table.rows[0][-2:] == ["2,000", "50.0 s"]
    assert "Speed and time: medians over seeds" in table.caption


@pytest.mark.parametrize(("seeds", "said"), [(5, True), (9, True), (10, False)])
def test_bootstrap_intervals_of_few_seeds_are_said_to_be_too_narrow(seeds: int, said: bool) -> None:
    for table in _tables(*_study(["a", "b"], seeds)):
        assert ("too narrow" in table.caption) == said


def test_few_seeds_have_their_range_for_an_interval() -> None:
    study, results = _study(["a"], seeds=3)
    results["mean_return"] = results["seed"].map({0: 13.0, 1: 500.0, 2: 384.0})
    (table,) = summary_tables(study, summary_table(study, results))
    assert table.rows[0][1] == "299.0 (13.0 to 500.0)"
    assert table.caption.startswith("In parentheses: the lowest and the highest seed.")
    assert "95 %" not in table.caption
    (of_one,) = summary_tables(study, summary_table(study, results[results["seed"] == 0]))
    assert of_one.rows[0][1] == "13.00"
    assert "parentheses" not in of_one.caption


def test_the_same_failure_is_one_entry_below_the_results(tmp_path: Path) -> None:
    study, results = _study(["a", "b"], seeds=3)
    outcomes = [Outcome(run, "ValueError: no", tmp_path / f"runs/{run.label}{run.seed}/log.txt") for run in study.runs]
    outcomes[-1] = replace(outcomes[-1], error="OSError: disk")
    first, second = grouped(outcomes, tmp_path)
    assert first == Failure(
        "a on X-v0, seeds 0, 1, 2; b on X-v0, seeds 0, 1", "ValueError: no", Path("runs/a0/log.txt")
    )
    assert second == Failure("b on X-v0, seed 2", "OSError: disk", Path("runs/b2/log.txt"))
    write_pages(study, summary_tables(study, summary_table(study, results)), [], [first, second], tmp_path)
    for name in ("report.html", "summary.md"):
        page = (tmp_path / name).read_text()
        assert page.count("ValueError: no") == 1
        assert page.index("X-v0, 3 seeds") < page.index("Runs that failed")
        assert str(tmp_path) not in page


def test_each_cell_of_a_table_names_its_column_for_narrow_screens(tmp_path: Path) -> None:
    study, results = _study(["a", "b"])
    write_pages(study, _tables(study, results), [], [], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<td data-label="final return IQM">' in page
    assert "content: attr(data-label)" in page


@pytest.mark.parametrize(("seeds", "title"), [(1, "X-v0, 1 seed"), (2, "X-v0, 2 seeds")])
def test_the_title_counts_the_seeds(seeds: int, title: str) -> None:
    study, results = _study(["a"], seeds)
    assert summary_tables(study, summary_table(study, results))[0].title == title


_MARKED_UP = [
    "*bold* [x](http://y) `c`",
    "_a_ __b__ ~~c~~ a|b",
    "# 1",
    "- 2",
    "<b> &amp; \\",
    "ends in \\*",
]


@pytest.mark.parametrize("label", _MARKED_UP)
def test_nothing_of_a_label_is_markup_in_the_summary(label: str, tmp_path: Path) -> None:
    study, results = _study([label, "b"], environment="__X__-v0")
    error = f"ValueError: {label} ``` <i>"
    write_pages(
        study, _tables(study, results), [], [Failure(f"{label} on __X__-v0, seed 0", error, Path("log.txt"))], tmp_path
    )
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse((tmp_path / "summary.md").read_text())
    contents = [token.children for token in tokens if token.type == "inline"]
    kinds = [child.type for children in contents for child in children]
    assert set(kinds) <= {"text", "strong_open", "strong_close", "code_inline", "softbreak"}
    assert kinds.count("strong_open") == kinds.count("code_inline") == 1
    texts = ["".join(child.content for child in children) for children in contents]
    assert texts[:3] == ["s", f"Runs of {label}, b on __X__-v0.", "__X__-v0, 5 seeds"]
    assert texts[-2:] == ["Runs that failed", f"{label} on __X__-v0, seed 0: {error}"]
    assert texts.count(label) == 2
    assert texts.count(f"P(better than {label})") == 1
    assert "__X__-v0, 5 seeds" in texts


def test_ordinary_labels_and_numbers_stand_in_the_summary_as_they_are(tmp_path: Path) -> None:
    labels = ["PPO (SB3)", "REINFORCE + state", "ppo_value_clip = 0.2", "NPG [a], λ: 0.95!"]
    study, results = _study(labels)
    tables = _tables(study, results)
    write_pages(study, tables, [], [], tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    assert f"Runs of {', '.join(labels)} on X-v0." in summary
    for table in tables:
        for row in table.rows:
            assert f"| {' | '.join(row)} |" in summary


def test_a_heading_has_something_under_it(tmp_path: Path) -> None:
    study, results = _study(["a", "b"])
    write_pages(study, [], [], [Failure("a on X-v0, seed 0", "ValueError: no", Path("log.txt"))], tmp_path)
    assert "Results" not in (tmp_path / "report.html").read_text()
    assert "Figures" not in (tmp_path / "summary.md").read_text()
    figure = tmp_path / "learning_curves"
    figure.with_suffix(".svg").write_text("<svg/>")
    write_pages(study, _tables(study, results), [figure], [], tmp_path)
    assert "<h2>Results</h2>" in (tmp_path / "report.html").read_text()
    assert "## Figures" in (tmp_path / "summary.md").read_text()


def test_the_pages_say_whose_configurations_are_used(tmp_path: Path) -> None:
    study = replace(_study(["a"])[0], notes=("the configuration of a is for X-v1 that of X-v0",))
    write_pages(study, [], [], [], tmp_path)
    for name in ("report.html", "summary.md"):
        assert "Note: the configuration of a is for X-v1 that of X-v0." in (tmp_path / name).read_text()


def test_the_report_names_the_modules_of_the_environments(tmp_path: Path) -> None:
    write_pages(_study(["a"], gym_packages=("my_envs", "other.envs"))[0], [], [], [], tmp_path)
    assert "<dt>gym_packages</dt><dd>my_envs, other.envs</dd>" in (tmp_path / "report.html").read_text()
    write_pages(_study(["a"])[0], [], [], [], tmp_path)
    assert "gym_packages" not in (tmp_path / "report.html").read_text()
