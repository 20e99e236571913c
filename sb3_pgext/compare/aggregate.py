"""All environments of a study in one number: Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021.

Returns of different environments are made comparable by scores: in each environment 0 is the policy before training,
the mean over all runs, and 1 the best final return of any run.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sb3_pgext.compare.report import enough_seeds, learning_curves
from sb3_pgext.compare.statistics import Estimate, bootstrapped, interquartile_mean
from sb3_pgext.compare.study import Study

__all__ = ["Aggregate", "aggregate"]

_N_FRACTIONS = 21
_N_THRESHOLDS = 101


@dataclass(frozen=True)
class Aggregate:
    """
    Statistics over environments and seeds, each with its stratified bootstrap 95 % interval, by label.

    :param seeds: number of seeds that all labels have finished on all environments, S
    :param final: interquartile mean of the final scores, ``()``
    :param fractions: shares of the training, ``(T,)``
    :param curves: interquartile mean of the scores there, ``(T,)``; of labels that train for less in some environment
        than others do, NaN afterwards
    :param thresholds: scores, ``(X,)``
    :param profiles: share of the runs whose final score is above each, ``(X,)``
    :param baseline: label that the others are compared with
    :param improvements: probability that a run of the label has a higher final score than one of the baseline, the mean
        over environments, ``()``; of all labels but the baseline
    """

    seeds: int
    final: dict[str, Estimate]
    fractions: np.ndarray
    curves: dict[str, Estimate]
    thresholds: np.ndarray
    profiles: dict[str, Estimate]
    baseline: str
    improvements: dict[str, Estimate]


def aggregate(study: Study, results: pd.DataFrame) -> Aggregate | None:
    """
    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :return: the statistics of the labels that have finished runs on all environments; None if these are less than two,
        or have too few seeds to be bootstrapped
    """
    labels = [label for label in study.labels if _is_complete(study, results, label)]
    results = results[results["run"].isin(labels)]
    if len(labels) < 2:
        return None
    results = results[results["seed"].isin(_common_seeds(results))]
    if results.empty or not enough_seeds(results):
        return None

    final = {label: _final_scores(study, results, label) for label in labels}
    fractions = np.linspace(0, 1, _N_FRACTIONS)
    curves = {label: _score_curves(study, results, label, fractions) for label in labels}
    thresholds = np.linspace(min(0.0, *(scores.min() for scores in final.values())), 1, _N_THRESHOLDS)
    baseline = study.baseline if study.baseline in labels else labels[0]

    def shares_above(scores: np.ndarray) -> np.ndarray:
        return np.asarray((scores.reshape(-1, 1) > thresholds).mean(axis=0))

    return Aggregate(
        seeds=len(next(iter(final.values()))),
        final={label: bootstrapped(scores, interquartile_mean) for label, scores in final.items()},
        fractions=fractions,
        curves={label: bootstrapped(scores, interquartile_mean) for label, scores in curves.items()},
        thresholds=thresholds,
        profiles={label: bootstrapped(scores, shares_above) for label, scores in final.items()},
        baseline=baseline,
        improvements={
            label: bootstrapped((final[label], final[baseline]), _improvement) for label in labels if label != baseline
        },
    )


def _is_complete(study: Study, results: pd.DataFrame, label: str) -> bool:
    """Whether enough seeds of a label have finished on all environments."""
    mine = results[results["run"] == label]
    return set(mine["environment"]) == set(study.environments) and enough_seeds(mine)


def _common_seeds(results: pd.DataFrame) -> set[int]:
    """rliable's strata are environments of the same number of runs: a seed that failed somewhere is left out."""
    return set.intersection(*(set(group["seed"]) for _, group in results.groupby(["run", "environment"])))


def _scale(results: pd.DataFrame, environment: str) -> tuple[float, float]:
    """Return of score 0, and the returns from there to score 1."""
    here = results[results["environment"] == environment]
    untrained = here[here["timesteps"] == 0]["mean_return"].mean()
    last = here.sort_values("timesteps").groupby(["run", "seed"])["mean_return"].last()
    span = last.max() - untrained
    return float(untrained), float(span) if span > 0 else 1.0  # 1: where nobody has learnt anything


def _final_scores(study: Study, results: pd.DataFrame, label: str) -> np.ndarray:
    """``(S, E)``."""
    columns = []
    for environment in study.environments:
        untrained, span = _scale(results, environment)
        columns.append((learning_curves(results, label, environment)[1][:, -1] - untrained) / span)
    return np.stack(columns, axis=1)


def _score_curves(study: Study, results: pd.DataFrame, label: str, fractions: np.ndarray) -> np.ndarray:
    """Scores at these shares of the longest training in each environment, ``(S, E, T)``."""
    columns = []
    for environment in study.environments:
        untrained, span = _scale(results, environment)
        timesteps, returns = learning_curves(results, label, environment)
        longest = results[results["environment"] == environment]["timesteps"].max()
        curves = [np.interp(fractions * longest, timesteps, of_seed, right=np.nan) for of_seed in returns]
        columns.append((np.stack(curves) - untrained) / span)
    scores = np.stack(columns, axis=1)
    scores[..., np.isnan(scores).any(axis=(0, 1))] = np.nan
    return scores


def _improvement(scores: np.ndarray, of_baseline: np.ndarray) -> np.ndarray:
    """
    rliable's probability of improvement, by counting pairs: its test of significance for each of thousands of
    resamples would take minutes.
    """
    difference = scores[:, None] - of_baseline[None]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean())
