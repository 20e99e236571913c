"""``sb3-pgext variance``: how noisy, and how biased, the gradient is under each value of an option."""

from pathlib import Path

import joblib

from sb3_pgext.rollouts.files import replacing
from sb3_pgext.variance.report import plot_variances, printed_table, statistics_table
from sb3_pgext.variance.sampling import sample_all
from sb3_pgext.variance.study import VarianceStudy
from sb3_pgext.zoo.console import output_console, show_notes
from sb3_pgext.zoo.names import slug


def variance(study: VarianceStudy, out: Path | None = None, jobs: int | None = None) -> None:
    """
    Train once, freeze the policy at the given steps, and sample its gradient under each value of the option.

    Writes ``variance.csv`` and ``variance.png`` and ``.svg``, and prints the table. Per value and step count: the trace
    of the covariance of ĝ, its signal-to-noise ratio, the cosine of single estimates with the mean of the others, and
    the bias, against the exact gradient of a finite MDP or the mean gradient of the reference; each as in
    :class:`sb3_pgext.diagnostics.GradientStatistics`.

    :param study: what to measure
    :param out: folder of the results; default: ``runs/variance/<algorithm>_<environment>_<option>``
    :param jobs: worker processes; default: one per core
    """
    out = out or Path("runs/variance") / slug(f"{study.algo}_{study.environment}_{study.option}")
    out.mkdir(parents=True, exist_ok=True)
    console = output_console()
    show_notes(study.notes, console)
    for name, value in study.common.items():
        console.print(f"{name}={value!r} for all values of {study.option}, so that they differ in nothing else")
    normalized = {**study.config, **study.common}.get("normalize_advantage", False)
    if normalized and study.option != "normalize_advantage":
        console.print(
            "normalize_advantage=True scales the estimate; --params normalize_advantage=false measures it plain"
        )
    table = statistics_table(study, *sample_all(study, jobs or joblib.cpu_count(), console))
    with replacing(out / "variance.csv") as file:
        table.to_csv(file, index=False)
    plot_variances(table, study, out / "variance")
    console.print(printed_table(table, study))
    console.print(f"written to {out}: variance.csv, variance.png and .svg")
