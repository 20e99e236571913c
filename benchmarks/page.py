"""Write docs/benchmark.md: what the family reaches, beside SB3's algorithms and what others have published.

usage: python -m benchmarks.page [FOLDER ...]

Each FOLDER holds the results of one part of the benchmark (``sb3-pgext compare benchmark``, ``benchmark_mujoco``,
``benchmark_replay``), finished or not. Its evaluations take the place of those of the same runs in
docs/results/benchmark.csv.gz, from which the page and its figures are written.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_pgext.compare import statistics
from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.plots import learning_curves_figure, profiles_figure
from sb3_pgext.compare.report import learning_curves
from sb3_pgext.compare.study import Study, find_study, read_study
from sb3_pgext.variance.figures import print_style, write_figure

DOCS = Path("docs")
RESULTS = DOCS / "results" / "benchmark.csv.gz"
PUBLISHED = Path(__file__).parent / "data" / "published.csv"
PARTS = {
    "benchmark": "Classic control and Box2D",
    "benchmark_mujoco": "MuJoCo",
    "benchmark_replay": "With a replay",
}
KEY = ["part", "run", "environment", "seed"]
INTRODUCTION = """# Benchmark

<!-- Written by `python -m benchmarks.page`. -->

The final return is that of the last evaluation: ten episodes of the deterministic policy. Brackets are 95 % bootstrap
intervals of the interquartile mean over seeds; with fewer than five seeds they are the lowest and the highest. "Over
the training" is the area under the curve. Minutes are of training on one shared core, without evaluations.
Configurations are those of `zoo_configs` and, of SB3's algorithms, rl_zoo3's; the comments of `zoo_configs` say how
ours were tuned. A task without a row has not been run yet. All evaluations:
[benchmark.csv.gz](results/benchmark.csv.gz).
"""
OF_OTHERS = """## What others have published

Not the same tasks, steps or measures. [Tianshou][1]'s figure is the largest mean over ten seeds that was seen in the
training, [rl_zoo3][2]'s the final return of a single run.

[1]: https://github.com/thu-ml/tianshou/tree/master/examples/mujoco
[2]: https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md
"""


def collected(folders: list[Path]) -> pd.DataFrame:
    """Take the results of studies into those that are kept, and write them."""
    kept = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
    for folder in folders:
        new = pd.read_csv(folder / "results.csv").assign(part=folder.name)
        if folder.name not in PARTS:
            raise SystemExit(f"{folder}: the folder's name must be that of a part: {', '.join(PARTS)}")
        kept = [old[~old.set_index(KEY).index.isin(new.set_index(KEY).index)] for old in kept] + [new]
    results = pd.concat(kept, ignore_index=True).round({"mean_return": 3, "std_return": 3, "training_seconds": 2})
    results = results.sort_values([*KEY, "timesteps"], kind="stable")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    results.to_csv(RESULTS, index=False, compression={"method": "gzip", "mtime": 0})
    return results


def estimate_text(scores: np.ndarray) -> str:
    """The interquartile mean with its interval; of few seeds the mean, the lowest and the highest."""
    few = len(scores) < statistics.MIN_SEEDS_FOR_BOOTSTRAP
    e = (statistics.mean_with_range if few else statistics.iqm_with_bootstrap_interval)(scores)
    digits = 0 if abs(e.value) >= 100 else 1
    return f"{e.value:,.{digits}f} [{e.low:,.{digits}f}, {e.high:,.{digits}f}]"


def table(part: Study, results: pd.DataFrame, environment: str) -> list[str]:
    """The lines of the table of an environment."""
    lines = [f"### {environment}", "", "| | seeds | steps | final return | over the training | minutes |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for label in part.labels:
        timesteps, returns = learning_curves(results, label, environment)
        if not len(returns):
            continue
        seconds = results[(results["run"] == label) & (results["environment"] == environment)]
        minutes = seconds.groupby("seed")["training_seconds"].max().median() / 60
        area = statistics.area_under_curve(timesteps, returns)
        cells = [label, len(returns), f"{timesteps[-1]:,}", estimate_text(returns[:, -1]), estimate_text(area)]
        lines.append(f"| {' | '.join(map(str, cells))} | {minutes:.1f} |")
    return [*lines, ""]


def figures(name: str, part: Study, results: pd.DataFrame) -> list[str]:
    """Draw the curves of a part and, with enough seeds in all environments, its profiles; the lines that show them."""
    with print_style():
        drawn = {"curves": learning_curves_figure(part, results)}
        of_all = aggregate(part, results) if len(part.environments) > 1 else None
        if of_all is not None:
            drawn["profiles"] = profiles_figure(part, of_all)
        lines = []
        for kind, figure in drawn.items():
            write_figure(figure, RESULTS.parent / f"{name}_{kind}")
            (RESULTS.parent / f"{name}_{kind}.svg").unlink()
            lines += [f"![{PARTS[name]}: {kind}](results/{name}_{kind}.png)", ""]
    return lines


def published_table() -> list[str]:
    """The lines of what others have published."""
    lines = ["| task | algorithm | source | steps | seeds | return |", "|---|---|---|---:|---:|---:|"]
    rows = pd.read_csv(PUBLISHED).itertuples()
    return lines + [f"| {r.task} | {r.algorithm} | {r.source} | {r.steps:,} | {r.seeds} | {r.value:,} |" for r in rows]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    results = collected(parser.parse_args().folders)
    lines = [INTRODUCTION]
    for name, title in PARTS.items():
        of_part = results[results["part"] == name]
        if of_part.empty:
            continue
        study = read_study(find_study(name))
        environments = set(of_part["environment"])
        part = replace(study, runs=tuple(run for run in study.runs if run.environment in environments))
        lines += [f"## {title}", "", "```bash", f"sb3-pgext compare {name}", "```", ""]
        lines += figures(name, part, of_part)
        lines += [line for environment in part.environments for line in table(part, of_part, environment)]
    lines += [OF_OTHERS, *published_table()]
    (DOCS / "benchmark.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
