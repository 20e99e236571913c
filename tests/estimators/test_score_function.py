"""Claim: the score-function gradients equal the double sum over episodes and steps, differentiated term by term."""

import pytest
import torch as th

from sb3_pgext.estimators import score_function
from sb3_pgext.estimators.score_function import (
    episode_scores,
    optimal_baseline_gradient,
    score_function_surrogate,
)
from tests.estimators.batches import flat_batch


@pytest.fixture
def batch():
    """A linear softmax policy on random features, and its log-probabilities."""
    episode, time, returns = flat_batch([3, 1, 4, 2])
    generator = th.Generator().manual_seed(1)
    features = th.randn(len(time), 3, generator=generator, dtype=th.float64)
    weight = th.nn.Parameter(th.randn(3, 2, generator=generator, dtype=th.float64))
    bias = th.nn.Parameter(th.zeros(2, dtype=th.float64))
    actions = th.randint(2, (len(time), 1), generator=generator)
    log_prob = (features @ weight + bias).log_softmax(1).gather(1, actions).flatten()
    return episode, time, returns, log_prob, [weight, bias]


def score(log_prob, t, parameters):
    """∇log π(a_t|s_t), flat."""
    return th.cat([g.flatten() for g in th.autograd.grad(log_prob[t], parameters, retain_graph=True)])


def test_surrogate_gradient_is_the_mean_over_episodes(batch):
    _, time, returns, log_prob, parameters = batch
    weights = 0.9**time
    expected = sum(weights[t] * returns[t] * score(log_prob, t, parameters) for t in range(len(time))) / 4
    surrogate = score_function_surrogate(log_prob, returns, 4, weights)
    gradient = th.cat([g.flatten() for g in th.autograd.grad(surrogate, parameters, retain_graph=True)])
    th.testing.assert_close(gradient, expected)
    plain = score_function_surrogate(log_prob, returns, 4)
    th.testing.assert_close(plain, score_function_surrogate(log_prob, returns, 4, th.ones_like(returns)))


@pytest.mark.parametrize("max_entries", [1, 25, 2**16])
def test_episode_scores(batch, monkeypatch, max_entries):
    """Whatever the size of the chunks."""
    monkeypatch.setattr(score_function, "_MAX_BACKWARD_ENTRIES", max_entries)
    episode, time, returns, log_prob, parameters = batch
    result = episode_scores(log_prob, returns, episode, 4, parameters)
    for i in range(4):
        steps = [t for t in range(len(time)) if episode[t] == i]
        th.testing.assert_close(result[i], sum(returns[t] * score(log_prob, t, parameters) for t in steps))


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_optimal_baseline_gradient(batch, leave_one_out, importance):
    episode, time, returns, log_prob, parameters = batch
    weights, W = 0.9**time, 0.5 + time if importance else th.ones(len(time))
    n_parameters = sum(p.numel() for p in parameters)
    S, A = th.zeros(2, 4, n_parameters, dtype=th.float64)
    for t in range(len(time)):
        S[episode[t]] += weights[t] * W[t] * score(log_prob, t, parameters)
        A[episode[t]] += weights[t] * returns[t] * score(log_prob, t, parameters)
    expected = th.zeros(n_parameters, dtype=th.float64)
    for i in range(4):
        others = [j for j in range(4) if not leave_one_out or j != i]
        baseline = (A[others] * S[others]).sum(0) / (S[others] ** 2).sum(0)
        expected += (A[i] - baseline * S[i]) / 4
    W = W if importance else None
    result = optimal_baseline_gradient(log_prob, returns, episode, 4, parameters, leave_one_out, weights, W)
    th.testing.assert_close(result, expected)
