"""Claim: each surrogate has the value and the gradient of its definition, and the tables of lecture 002 hold."""

import math

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_pgext.estimators.surrogates import (
    adapted_factor,
    adapted_kl_coef,
    approximate_kl,
    clipped_ratios,
    clipped_surrogate,
    clipped_values,
    kl_penalized_surrogate,
    unclipped_surrogate,
    value_loss,
)

EPSILON = 0.2


def gradient(function, x):
    """f'(x) of a function of one step."""
    x = th.tensor([float(x)], dtype=th.float64, requires_grad=True)
    return th.autograd.grad(function(x), x)[0].item()


def vector(*numbers):
    return th.tensor(numbers, dtype=th.float64)


@pytest.mark.parametrize(
    ("advantage", "ratio", "flows"),
    [
        (+2.0, 1.3, False),  # good action, already likelier by enough: 0
        (+2.0, 1.1, True),
        (+2.0, 0.9, True),
        (+2.0, 0.7, True),  # good action made unlikely: same
        (-2.0, 1.3, True),  # bad action made likely: same
        (-2.0, 1.1, True),
        (-2.0, 0.9, True),
        (-2.0, 0.7, False),  # bad action, already unlikelier by enough: 0
    ],
)
def test_the_lectures_table_of_gradients(advantage, ratio, flows):
    """002, "Recalling lower bound intuition": 0, or the same as of the unclipped surrogate."""
    unclipped = gradient(lambda x: unclipped_surrogate(x, vector(advantage)), ratio)
    clipped = gradient(lambda x: clipped_surrogate(x, vector(advantage), EPSILON), ratio)
    assert unclipped == advantage
    assert clipped == (advantage if flows else 0.0)


@pytest.mark.parametrize(
    ("order", "target", "old", "value", "active", "direction"),
    [
        # V stays within the range: L1 = L2, SB3's and the lecture's critic move towards the target.
        ("V within, target above", 1.0, 0.0, 0.1, "L1", +1),
        ("V within, target below", -1.0, 0.0, 0.1, "L1", -1),
        # V left the range towards its target and has not reached it: L2 is larger and constant.
        ("V_old < V < y", 1.0, 0.0, 0.5, "L2", 0),
        ("y < V < V_old", -1.0, 0.0, -0.5, "L2", 0),
        # V left it on the side away from the target: L1 is larger and brings V back.
        ("y < V_old < V", -1.0, 0.0, 0.5, "L1", -1),
        ("V < V_old < y", 1.0, 0.0, -0.5, "L1", +1),
        # V overshot its target, which lies between: whichever of V and the clipped value is further from it.
        ("V_old < y < V, far beyond", 0.25, 0.0, 0.5, "L1", -1),
        ("V_old < y < V, just beyond", 0.45, 0.0, 0.5, "L2", 0),
        ("V < y < V_old, far beyond", -0.25, 0.0, -0.5, "L1", +1),
        ("V < y < V_old, just beyond", -0.45, 0.0, -0.5, "L2", 0),
    ],
)
def test_the_table_of_the_clipped_critic(order, target, old, value, active, direction):
    """Which loss counts and which way V then moves, for each order of y, V_old and V; ε̂ = 0.2."""

    def loss(value_clip):
        return lambda v: value_loss(v, vector(target), vector(old), value_clip, EPSILON)

    clipped = old + min(max(value - old, -EPSILON), EPSILON)
    expected = {"L1": (target - value) ** 2, "L2": (target - clipped) ** 2}
    assert loss("max")(vector(value)).item() == pytest.approx(expected[active])
    assert expected[active] == pytest.approx(max(expected.values()))
    assert loss("none")(vector(value)).item() == pytest.approx(expected["L1"])
    assert loss("clip")(vector(value)).item() == pytest.approx(expected["L2"])

    descent = -gradient(loss("max"), value)
    assert math.copysign(1, descent) == direction if direction else descent == 0
    within = abs(value - old) <= EPSILON
    assert (gradient(loss("clip"), value) != 0) == within  # SB3's critic stays where it is, also on the wrong side
    assert -gradient(loss("none"), value) == pytest.approx(2 * (target - value))

    critic = (vector(value), vector(target), vector(old))
    assert clipped_values(*critic, "max", EPSILON).item() == float(direction == 0)
    assert clipped_values(*critic, "clip", EPSILON).item() == float(not within)


numbers = st.floats(-3, 3)
steps = st.lists(st.tuples(st.floats(0.1, 3), numbers, numbers, numbers, st.floats(0, 2)), min_size=1, max_size=8)


@given(steps, st.floats(0.01, 0.9))
def test_values_are_means_of_the_definitions(steps, epsilon):
    """Step by step in a Python loop."""
    ratio, advantages, values, targets, kl = (vector(*column) for column in zip(*steps, strict=True))
    n, old_values = len(steps), vector(*(math.sin(k) for k in range(len(steps))))

    def mean(term):
        return sum(term(*step) for step in steps) / n

    def bounded(x, low, high):
        return max(low, min(x, high))

    results = {
        unclipped_surrogate(ratio, advantages): mean(lambda r, a, *_: r * a),
        clipped_surrogate(ratio, advantages, epsilon): mean(
            lambda r, a, *_: min(r * a, bounded(r, 1 - epsilon, 1 + epsilon) * a)
        ),
        kl_penalized_surrogate(ratio, advantages, kl, 3.0): mean(lambda r, a, v, y, d: r * a - 3 * d),
        clipped_ratios(ratio, epsilon).double().mean(): mean(lambda r, *_: abs(r - 1) > epsilon),
        approximate_kl(ratio.log()).mean(): mean(lambda r, *_: r - 1 - math.log(r)),
    }
    for result, expected in results.items():
        assert result.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)

    l1 = [(y - v) ** 2 for _, _, v, y, _ in steps]
    olds = old_values.tolist()
    l2 = [(y - o - bounded(v - o, -epsilon, epsilon)) ** 2 for (_, _, v, y, _), o in zip(steps, olds, strict=True)]
    expected = {"none": l1, "clip": l2, "max": list(map(max, l1, l2))}
    for value_clip, losses in expected.items():
        result = value_loss(values, targets, old_values, value_clip, epsilon).item()
        assert result == pytest.approx(sum(losses) / n)


def test_adaptation_of_the_coefficient():
    """Schulman et al. 2017, section 4, on both sides of both thresholds."""
    assert adapted_kl_coef(1.0, 0.0066, 0.01) == 0.5
    assert adapted_kl_coef(1.0, 0.0067, 0.01) == 1.0
    assert adapted_kl_coef(1.0, 0.0149, 0.01) == 1.0
    assert adapted_kl_coef(1.0, 0.0151, 0.01) == 2.0


def test_adaptation_of_the_learning_rate():
    """On both sides of both thresholds, and no further than the bounds."""
    assert adapted_factor(2.0, 0.0049, 0.01) == 3.0
    assert adapted_factor(2.0, 0.0051, 0.01) == adapted_factor(2.0, 0.0199, 0.01) == 2.0
    assert adapted_factor(3.0, 0.0201, 0.01) == 2.0
    assert adapted_factor(99.0, 0.0, 0.01) == 100.0
    assert adapted_factor(0.011, 1.0, 0.01) == 0.01


def test_gradients_of_all_surrogates_agree_where_the_policies_do():
    """At ρ = 1 clipping does nothing, and a divergence has gradient 0: the policy gradient."""
    log_prob = th.zeros(4, dtype=th.float64, requires_grad=True)
    ratio, advantages = log_prob.exp(), vector(1, -2, 3, 0.5)
    kl = ratio - 1 - log_prob
    surrogates = (
        unclipped_surrogate(ratio, advantages),
        clipped_surrogate(ratio, advantages, EPSILON),
        kl_penalized_surrogate(ratio, advantages, kl, 5.0),
    )
    for surrogate in surrogates:
        th.testing.assert_close(th.autograd.grad(surrogate, log_prob, retain_graph=True)[0], advantages / 4)
