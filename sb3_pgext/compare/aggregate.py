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
    Compute the statistics of the labels that have finished runs on all environments.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :return: the statistics; None if these labels are less than two, or have too few seeds to be bootstrapped
    """
    labels = [label for label in study.labels if _is_complete(study, results, label)]
    results = results[results["run"].isin(labels)]
    if len(labels) < 2:
        return None
    # rliable's strata are environments of the same number of runs: a seed that failed somewhere is left out.
    common = set.intersection(*(set(group["seed"]) for _, group in results.groupby(["run", "environment"])))
    results = results[results["seed"].isin(common)]
    if results.empty or not enough_seeds(results):
        return None

    scores = _scores(results)
    fractions = np.linspace(0, 1, _N_FRACTIONS)
    final, curves = {}, {}
    for label in labels:
        of_environments = [learning_curves(scores, label, environment) for environment in study.environments]
        final[label] = np.stack([of_seeds[:, -1] for _, of_seeds in of_environments], axis=1)  # (S, E)
        curves[label] = np.stack(  # (S, E, T)
            [[np.interp(fractions, t, seed, right=np.nan) for seed in of_seeds] for t, of_seeds in of_environments],
            axis=1,
        )
        curves[label][..., np.isnan(curves[label]).any(axis=(0, 1))] = np.nan
    thresholds = np.linspace(min(0.0, *(of_label.min() for of_label in final.values())), 1, _N_THRESHOLDS)
    baseline = study.baseline if study.baseline in labels else labels[0]

    def shares_above(sample: np.ndarray) -> np.ndarray:
        return np.asarray((sample.reshape(-1, 1) > thresholds).mean(axis=0))

    return Aggregate(
        seeds=len(common),
        final={label: bootstrapped(final[label], interquartile_mean) for label in labels},
        fractions=fractions,
        curves={label: bootstrapped(curves[label], interquartile_mean) for label in labels},
        thresholds=thresholds,
        profiles={label: bootstrapped(final[label], shares_above) for label in labels},
        baseline=baseline,
        improvements={
            label: bootstrapped((final[label], final[baseline]), _improvement) for label in labels if label != baseline
        },
    )


def _is_complete(study: Study, results: pd.DataFrame, label: str) -> bool:
    """Test whether enough seeds of a label have finished on all environments."""
    mine = results[results["run"] == label]
    return set(mine["environment"]) == set(study.environments) and enough_seeds(mine)


def _scores(results: pd.DataFrame) -> pd.DataFrame:
    """Replace returns by scores, and step counts by shares of the longest training in the environment."""
    environment = results["environment"]
    untrained = results[results["timesteps"] == 0].groupby("environment")["mean_return"].mean()
    last = results.sort_values("timesteps").groupby(["environment", "run", "seed"])["mean_return"].last()
    span = last.groupby("environment").max() - untrained
    span = span.where(span > 0, 1.0)  # 1: where nobody has learnt anything
    return results.assign(
        mean_return=(results["mean_return"] - environment.map(untrained)) / environment.map(span),
        timesteps=results["timesteps"] / environment.map(results.groupby("environment")["timesteps"].max()),
    )


def _improvement(scores: np.ndarray, of_baseline: np.ndarray) -> np.ndarray:
    """
    Count the pairs of runs in which the first is better: rliable's probability of improvement, whose test of
    significance for each of thousands of resamples would take minutes.
    """
    difference = scores[:, None] - of_baseline[None]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean())
