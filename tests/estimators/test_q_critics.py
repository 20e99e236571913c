"""Claim: each estimate and target with a critic of Q is its definition, summed state by state and action by action."""

import math

import pytest
import torch as th

from sb3_pgext.estimators.q_critics import (
    all_action_surrogate,
    drawn_action_surrogate,
    expected_q,
    minimum,
    reparameterized_surrogate,
    sampled_surrogate,
    td_targets,
    truncated_ratios,
)

B, A, K = 5, 4, 3
ALPHA = 0.3


def numbers(*shape, seed=0):
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def policy(seed=1):
    """Logits (B, A), to be differentiated for, and the log-probabilities."""
    logits = numbers(B, A, seed=seed).requires_grad_()
    return logits, logits.log_softmax(1)


def gradient(surrogate, logits):
    return th.autograd.grad(surrogate, logits)[0]


def score(logits, state, action):
    """∇ log π(a|s) of a softmax: 1{a} - π(.|s), in the row of the state."""
    row = [math.exp(x) for x in logits[state].tolist()]
    result = th.zeros(B, A, dtype=th.float64)
    for other in range(A):
        result[state, other] = (other == action) - row[other] / sum(row)
    return result


def probability(logits, state, action):
    row = [math.exp(x) for x in logits[state].tolist()]
    return row[action] / sum(row)


def test_minimum():
    critics = [numbers(B, A, seed=seed) for seed in range(3)]
    smallest = [[min(q[s, a].item() for q in critics) for a in range(A)] for s in range(B)]
    assert minimum(critics).tolist() == smallest
    assert minimum(critics[:1]) is critics[0]


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_expected_q(alpha):
    logits, log_probs = policy()
    q = numbers(B, A)
    expected = []
    for s in range(B):
        pi = [probability(logits, s, a) for a in range(A)]
        expected.append(sum(pi[a] * (q[s, a].item() - alpha * math.log(pi[a])) for a in range(A)))
    assert expected_q(q, log_probs, alpha).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("discount", [0.9, th.tensor([0.9, 0.81, 0.9, 0.5, 1.0], dtype=th.float64)])
def test_td_targets(discount):
    rewards, values = numbers(B), numbers(B, seed=1)
    terminated = th.tensor([0.0, 1.0, 0.0, 0.0, 1.0], dtype=th.float64)
    of_each = [discount] * B if isinstance(discount, float) else discount.tolist()
    expected = [
        r if ended else r + gamma * v
        for r, ended, v, gamma in zip(rewards.tolist(), terminated.tolist(), values.tolist(), of_each, strict=True)
    ]
    assert td_targets(rewards, terminated, values, discount).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_sampled(weighted):
    logits, log_probs = policy()
    actions, q, baseline = th.tensor([0, 3, 1, 1, 2]), numbers(B), numbers(B, seed=2)
    weights = numbers(B, seed=3).exp() if weighted else None
    log_prob = log_probs.gather(1, actions.unsqueeze(1)).flatten()
    expected = th.zeros(B, A, dtype=th.float64)
    for s in range(B):
        weight = weights[s].item() if weighted else 1.0
        expected += weight * score(logits, s, actions[s].item()) * (q[s] - baseline[s]).item() / B
    th.testing.assert_close(gradient(sampled_surrogate(log_prob, q, baseline, weights), logits), expected)


@pytest.mark.parametrize("limit", [None, 1.2])
def test_truncated_ratios(limit):
    log_prob, old = numbers(B).requires_grad_(), numbers(B, seed=1)
    expected = [math.exp(x - y) for x, y in zip(log_prob.tolist(), old.tolist(), strict=True)]
    expected = expected if limit is None else [min(ratio, limit) for ratio in expected]
    ratios = truncated_ratios(log_prob, old, limit)
    assert ratios.tolist() == pytest.approx(expected)
    assert not ratios.requires_grad


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_all_action(alpha):
    """With α > 0 the gradient is that of the soft value: Σ_a ∇π(a|s) (Q - α log π)."""
    logits, log_probs = policy()
    q = numbers(B, A)
    expected = th.zeros(B, A, dtype=th.float64)
    for s in range(B):
        for a in range(A):
            pi = probability(logits, s, a)
            expected += pi * score(logits, s, a) * (q[s, a].item() - alpha * math.log(pi)) / B
    th.testing.assert_close(gradient(all_action_surrogate(log_probs, q, alpha), logits), expected)


def test_drawn_action():
    """Each draw beside the mean of the others' Q."""
    logits, log_probs = policy()
    actions, q = th.tensor([[0, 3, 1, 1, 2], [1, 3, 0, 2, 2], [2, 0, 0, 3, 1]]), numbers(K, B)
    expected = th.zeros(B, A, dtype=th.float64)
    for s in range(B):
        for k in range(K):
            others = [q[j, s].item() for j in range(K) if j != k]
            expected += score(logits, s, actions[k, s].item()) * (q[k, s].item() - sum(others) / len(others)) / K / B
    surrogate = drawn_action_surrogate(log_probs.gather(1, actions.T).T, q)
    th.testing.assert_close(gradient(surrogate, logits), expected)


def test_drawn_actions_of_all_cases_are_the_all_action_gradient():
    """Unbiased: the mean over all pairs of draws, each with its probability, is the gradient over all actions."""
    logits, log_probs = policy()
    q = numbers(B, A)
    mean = th.zeros(B, A, dtype=th.float64)
    for first in range(A):
        for second in range(A):
            pair = [first, second]
            weight = (log_probs[:, pair].sum(1)).exp().detach()  # (B,)
            surrogate = (drawn_action_surrogate(log_probs[s : s + 1, pair].T, q[s : s + 1, pair].T) for s in range(B))
            for s, of_state in enumerate(surrogate):
                mean += weight[s] * th.autograd.grad(of_state, logits, retain_graph=True)[0] / B
    th.testing.assert_close(mean, gradient(all_action_surrogate(log_probs, q), logits))


def test_reparameterized():
    """Through the action of a Gaussian, a = μ + σε: of Q = -(a - 1)², by the chain rule."""
    mean, log_std = numbers(B).requires_grad_(), numbers(B, seed=1).requires_grad_()
    noise = numbers(B, seed=2)
    action = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    of_mean, of_std = th.autograd.grad(
        reparameterized_surrogate(-(action - 1).square(), log_prob, ALPHA), [mean, log_std]
    )
    for s in range(B):
        slope = -2 * (action[s].item() - 1)
        assert of_mean[s].item() == pytest.approx(slope / B)
        assert of_std[s].item() == pytest.approx((slope * log_std[s].exp().item() * noise[s].item() + ALPHA) / B)
