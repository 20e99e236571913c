"""Claim: each baseline is the mean (or the minimiser) it is defined as, and left one out it ignores its own episode."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_pgext.estimators.baselines import constant_baseline, leave_one_out_sum, optimal_baseline, time_baseline
from tests.estimators.batches import episode_lengths, flat_batch

several_episodes = st.lists(st.integers(1, 9), min_size=2, max_size=6)


@given(several_episodes, st.booleans(), st.integers(0, 100))
def test_constant_and_time_by_definition(lengths, leave_one_out, seed):
    episode, time, returns = flat_batch(lengths, seed)
    constant = constant_baseline(returns, episode, leave_one_out)
    by_time = time_baseline(returns, time, leave_one_out)
    for t in range(len(returns)):
        others = [k for k in range(len(returns)) if not leave_one_out or episode[k] != episode[t]]
        alive = [k for k in others if time[k] == time[t]]
        th.testing.assert_close(constant[t], returns[others].mean())
        th.testing.assert_close(by_time[t], returns[alive].mean() if alive else th.zeros((), dtype=th.float64))


@given(several_episodes, st.integers(0, 5))
def test_left_one_out_a_baseline_ignores_its_own_episode(lengths, i):
    """Exactly: what the episode returned must not change a bit of its baseline, however large it is."""
    i %= len(lengths)
    episode, time, returns = flat_batch(lengths)
    own = episode == i
    changed = th.where(own, 1e12 * returns, returns)
    scores = th.randn(len(lengths), 3, dtype=th.float64)
    for baseline in (
        lambda r: constant_baseline(r, episode, True)[own],
        lambda r: time_baseline(r, time, True)[own],
        lambda r: optimal_baseline(scores, scores * r[time == 0].unsqueeze(1), True)[i],
    ):
        assert th.equal(baseline(returns), baseline(changed))


def test_without_leaving_out_the_own_episode_counts():
    episode, time, returns = flat_batch([3, 3])
    changed = th.where(episode == 0, 2 * returns, returns)
    for baseline in (
        lambda r: constant_baseline(r, episode, False),
        lambda r: time_baseline(r, time, False),
    ):
        assert not th.isclose(baseline(returns), baseline(changed))[episode == 0].any()


@given(episode_lengths)
def test_leave_one_out_sum(lengths):
    _, _, x = flat_batch(lengths)
    expected = th.stack([x[:i].sum() + x[i + 1 :].sum() for i in range(len(x))])
    th.testing.assert_close(leave_one_out_sum(x), expected)


@pytest.mark.parametrize("group", [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])
def test_groups_are_left_out_together(group):
    """Of each baseline the definition; with groups of one episode it is as without."""
    episode, time, returns = flat_batch([3, 1, 4, 2, 3, 2])
    group = th.tensor(group)
    scores, credited = th.randn(2, 6, 3, dtype=th.float64)
    constant = constant_baseline(returns, episode, True, group)
    by_time = time_baseline(returns, time, True, group[episode])
    for t in range(len(returns)):
        others = [k for k in range(len(returns)) if group[episode[k]] != group[episode[t]]]
        alive = [k for k in others if time[k] == time[t]]
        th.testing.assert_close(constant[t], returns[others].mean())
        th.testing.assert_close(by_time[t], returns[alive].mean() if alive else th.zeros((), dtype=th.float64))
    optimal = optimal_baseline(scores, credited, True, group)
    for i in range(6):
        others = group != group[i]
        products, squares = (credited * scores)[others].sum(0), scores[others].square().sum(0)
        th.testing.assert_close(optimal[i], products / squares)
    one_each = th.arange(6)
    th.testing.assert_close(time_baseline(returns, time, True, one_each[episode]), time_baseline(returns, time, True))


def test_leave_one_out_sum_keeps_small_numbers_beside_a_large_one():
    x = th.tensor([1e10, 1.0, 2.0])  # float32: 1e10 + 3 - 1e10 = 0
    assert leave_one_out_sum(x)[0] == 3.0


def test_the_optimal_baseline_has_the_smallest_variance(device):
    """Among constants, on the very batch it is estimated from: E[(A - bS)²] is smallest, by a scan over b."""
    generator = th.Generator().manual_seed(0)
    scores = th.randn(500, 4, generator=generator, dtype=th.float64)
    credited = scores * (3 + th.randn(500, 1, generator=generator, dtype=th.float64) + scores)
    best = optimal_baseline(scores.to(device), credited.to(device), leave_one_out=False)[0].cpu()
    second_moment = ((credited - best * scores) ** 2).mean(0)
    for shift in (-1.0, -0.1, -0.01, 0.01, 0.1, 1.0):
        assert (((credited - (best + shift) * scores) ** 2).mean(0) > second_moment).all()


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_optimal_baseline_of_a_parameter_without_score_is_zero(leave_one_out):
    scores = th.tensor([[0.0, 1.0], [0.0, 2.0]])
    baseline = optimal_baseline(scores, 3 * scores, leave_one_out)
    th.testing.assert_close(baseline, th.tensor([[0.0, 3.0], [0.0, 3.0]]))
