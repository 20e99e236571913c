"""Claim: exponential weights and inverse propensities are what their definitions say, and have the right means."""

import itertools
import math

import pytest
import torch as th

from sb3_pgext.estimators.exponential_weights import (
    bandit_feedback,
    exponential_weights,
    regret_bound,
    step_size_of_bound,
)


def random_policy(seed, n_states=3, n_actions=4):
    generator = th.Generator().manual_seed(seed)
    logits = th.randn(n_states, n_actions, generator=generator, dtype=th.float64)
    q = th.randn(n_states, n_actions, generator=generator, dtype=th.float64)
    return logits, q


@pytest.mark.parametrize("eta", [1e-3, 0.5, 7.0])
def test_a_round_multiplies_the_probabilities(eta):
    logits, q = random_policy(0)
    found = exponential_weights(logits, q, eta).softmax(1)
    for s, (row, values) in enumerate(zip(logits.softmax(1).tolist(), q.tolist(), strict=True)):
        weights = [p * math.exp(eta * value) for p, value in zip(row, values, strict=True)]
        for a, weight in enumerate(weights):
            assert found[s, a].item() == pytest.approx(weight / sum(weights), rel=1e-12)


def test_constants_of_a_state_change_no_policy():
    logits, q = random_policy(1)
    shifted = q + th.tensor([[3.0], [-500.0], [0.1]], dtype=th.float64)
    th.testing.assert_close(exponential_weights(logits, q, 0.3), exponential_weights(logits, shifted, 0.3))


def test_logits_stay_finite():
    """As sums they would go up for ever, and lose their digits."""
    logits, q = th.zeros(1, 2), th.tensor([[1e6, 1e6 - 1]])
    for _ in range(1000):
        logits = exponential_weights(logits, q, 1.0)
    assert logits.tolist() == [[0.0, -1000.0]]


def slow_feedback(states, actions, returns, probabilities, baseline, control):
    n_states, n_actions = control.shape
    estimate = th.zeros(n_states, n_actions, dtype=th.float64)
    for s in range(n_states):
        visits = [t for t in range(len(states)) if states[t] == s]
        for a in range(n_actions):
            for t in visits:
                taken = (returns[t] - baseline - control[s, a]) / probabilities[s, a] if actions[t] == a else 0.0
                estimate[s, a] += (taken + control[s, a]) / len(visits)
    return estimate


@pytest.mark.parametrize("baseline", [0.0, 1.0])
@pytest.mark.parametrize("with_control", [False, True])
def test_the_estimate_is_its_definition(baseline, with_control):
    logits, q = random_policy(2)
    generator = th.Generator().manual_seed(3)
    states = th.randint(2, (20,), generator=generator)  # the third state is not visited
    log_probs = logits.log_softmax(1)
    actions = th.multinomial(log_probs[states].exp(), 1, generator=generator).flatten()
    returns = th.randn(20, generator=generator, dtype=th.float64)
    control = q if with_control else th.zeros_like(q)
    found = bandit_feedback(states, actions, returns, log_probs[states, actions], baseline, control)
    expected = slow_feedback(states, actions, returns, log_probs.exp(), baseline, control)
    th.testing.assert_close(found, expected)
    assert not found[2].any()


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("with_control", [False, True])
def test_its_mean_over_all_actions_is_q(n_draws, baseline, with_control):
    """Up to the constant b: enumerated, whatever the control variate."""
    logits, q = random_policy(4, n_states=1, n_actions=3)
    control = th.tensor([[0.3, -1.0, 2.0]], dtype=th.float64) if with_control else th.zeros_like(q)
    log_probs, mean = logits.log_softmax(1)[0], 0.0
    for actions in map(th.tensor, itertools.product(range(3), repeat=n_draws)):
        states = th.zeros(n_draws, dtype=th.int64)
        estimate = bandit_feedback(states, actions, q[0, actions], log_probs[actions], baseline, control)
        mean = mean + log_probs[actions].sum().exp() * estimate
    th.testing.assert_close(mean, q - baseline)


def test_a_control_variate_that_is_q_leaves_no_variance():
    logits, q = random_policy(5, n_states=1)
    for a in range(4):
        action = th.tensor([a])
        estimate = bandit_feedback(th.tensor([0]), action, q[0, action], logits.log_softmax(1)[0, action], 0.0, q)
        th.testing.assert_close(estimate, q)


@pytest.mark.parametrize("largest", [1.0, 3.0])
@pytest.mark.parametrize(("feedback", "gamma"), [("full", None), ("full", 0.9), ("bandit", None)])
def test_the_step_size_makes_the_bound_smallest(feedback, gamma, largest):
    best = step_size_of_bound(5, 300, feedback, largest, one_state=gamma is None)
    at_best = regret_bound(5, 300, best, feedback, largest, gamma)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert regret_bound(5, 300, factor * best, feedback, largest, gamma) > at_best


def test_bounds_by_hand():
    assert regret_bound(2, 1000, 0.1, "full") == pytest.approx(math.log(2) / 0.1 + 0.1 * 1000 / 8)
    assert regret_bound(2, 1000, 0.1, "bandit") == pytest.approx(math.log(2) / 0.1 + 0.1 * 1000)
    assert regret_bound(4, 50, 0.1, "full", 10.0, 0.9) == pytest.approx(10 * (math.log(4) / 0.1 + 0.1 * 50 * 100))
