"""Claim: statistics over environments are those of a hand calculation and of rliable, from the runs that all have."""

import numpy as np
import pandas as pd
import pytest
from rliable import metrics

from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.statistics import bootstrapped, interquartile_mean
from sb3_pgext.compare.study import Evaluation, Run, Study

_ENVIRONMENTS = ["X-v0", "Y-v0"]
_LABELS = ["first", "second", "third"]


def _study(finals: dict[str, np.ndarray], baseline: str | None = None, budgets: dict[str, int] | None = None):
    """Runs that start at -10, end at these returns, ``(S, E)``, and are half-way in between."""
    runs, rows = [], []
    for label, returns in finals.items():
        budget = (budgets or {}).get(label, 100)
        for (seed, e), final in np.ndenumerate(returns):
            runs.append(Run(label, "ppo", _ENVIRONMENTS[e], seed, budget, Evaluation(50), {}))
            for t, value in ((0, -10.0), (budget // 2, (final - 10) / 2), (budget, final)):
                rows.append(
                    {"run": label, "environment": _ENVIRONMENTS[e], "seed": seed, "timesteps": t}
                    | {"mean_return": value}
                )
    return Study("s", tuple(runs), {}, baseline), pd.DataFrame(rows)


@pytest.fixture
def finals():
    rng = np.random.default_rng(0)
    return {label: rng.normal(10 * i, 5, (6, 2)) for i, label in enumerate(_LABELS)}


def _scores(finals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    best = np.max([returns.max(axis=0) for returns in finals.values()], axis=0)
    return {label: (returns + 10) / (best + 10) for label, returns in finals.items()}


def test_final_scores_are_rliables_interquartile_mean(finals) -> None:
    statistics = aggregate(*_study(finals))
    assert statistics.seeds == 6
    for label, scores in _scores(finals).items():
        estimate = statistics.final[label]
        assert estimate.value == pytest.approx(metrics.aggregate_iqm(scores))
        assert estimate.low < estimate.value < estimate.high
        # At the end of the training the curve is there, in the middle half-way.
        curve = statistics.curves[label].value
        assert curve[-1] == pytest.approx(estimate.value)
        assert curve[10] == pytest.approx(estimate.value / 2)
        assert curve[0] == 0


def test_profiles_are_shares_of_runs(finals) -> None:
    statistics = aggregate(*_study(finals))
    for label, scores in _scores(finals).items():
        shares = [(scores > threshold).mean() for threshold in statistics.thresholds]
        np.testing.assert_allclose(statistics.profiles[label].value, shares)


@pytest.mark.parametrize("baseline", [None, "third"])
def test_probability_of_improvement_is_rliables(finals, baseline) -> None:
    statistics = aggregate(*_study(finals, baseline))
    assert statistics.baseline == (baseline or "first")
    assert list(statistics.improvements) == [label for label in _LABELS if label != statistics.baseline]
    scores = _scores(finals)
    for label, estimate in statistics.improvements.items():
        by_rliable = metrics.probability_of_improvement(scores[label], scores[statistics.baseline])
        assert estimate.value == pytest.approx(by_rliable)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_intervals_cover_the_true_interquartile_mean() -> None:
    """Of ten seeds on two environments; the middle half of two normals of the same mean has that mean."""
    scores = np.random.default_rng(1).normal(3.0, 1.0, (10, 2, 1000))
    estimate = bootstrapped(scores, interquartile_mean)
    coverage = ((estimate.low < 3.0) & (estimate.high > 3.0)).mean()
    assert 0.9 < coverage < 0.97


def test_only_seeds_that_have_finished_everywhere_count(finals) -> None:
    study, results = _study(finals)
    complete = aggregate(*_study({label: np.delete(returns, 2, axis=0) for label, returns in finals.items()}))
    lost = (results["run"] == "second") & (results["environment"] == "Y-v0") & (results["seed"] == 2)
    statistics = aggregate(study, results[~lost])
    assert statistics.seeds == 5
    assert statistics.final["second"].value == pytest.approx(complete.final["second"].value)


def test_labels_that_are_missing_somewhere_are_left_out(finals) -> None:
    study, results = _study(finals)
    lost = (results["run"] == "second") & (results["environment"] == "Y-v0")
    assert list(aggregate(study, results[~lost]).final) == ["first", "third"]
    only_one = results[results["run"] == "first"]
    assert aggregate(study, only_one) is None


def test_too_few_seeds_for_a_bootstrap(finals) -> None:
    assert aggregate(*_study({label: returns[:4] for label, returns in finals.items()})) is None


def test_a_shorter_training_has_no_curve_beyond_its_end(finals) -> None:
    statistics = aggregate(*_study(finals, budgets={"second": 50}))
    assert np.isfinite(statistics.curves["first"].value).all()
    curve = statistics.curves["second"].value
    assert np.isfinite(curve[:11]).all()
    assert np.isnan(curve[11:]).all()
    assert curve[10] == pytest.approx(statistics.final["second"].value)


def test_where_nobody_has_learnt_anything_scores_are_differences() -> None:
    statistics = aggregate(*_study({label: np.full((5, 2), -10.0 - i) for i, label in enumerate(_LABELS)}))
    assert [float(e.value) for e in statistics.final.values()] == [0, -1, -2]
