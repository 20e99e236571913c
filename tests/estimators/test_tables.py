"""Claim: the values, visits and best policies of tables are those that enumeration and iteration find."""

import itertools

import pytest
import torch as th

from sb3_pgext.estimators.tables import Tables


def make(seed=0, n_states=3, n_actions=2, gamma=0.9, horizon=None):
    generator = th.Generator().manual_seed(seed)
    transitions = th.rand(n_states, n_actions, n_states, generator=generator, dtype=th.float64)
    transitions = 0.9 * transitions / transitions.sum(2, keepdim=True)
    rewards = th.randn(n_states, n_actions, generator=generator, dtype=th.float64)
    initial = th.tensor([0.5, 0.3, 0.2], dtype=th.float64)
    policy = th.rand(n_states, n_actions, generator=generator, dtype=th.float64)
    return Tables(transitions, rewards, initial, gamma, horizon), policy / policy.sum(1, keepdim=True)


def walked(tables, policy, n_steps):
    """Σ_t γ^t r_t from each state, and Σ_t γ^t P(s_t = s), by going through the steps."""
    n_states, n_actions = tables.rewards.shape
    values, visits = th.zeros(n_states, dtype=th.float64), th.zeros(n_states, dtype=th.float64)
    for start in range(n_states):
        at = {start: 1.0}
        for t in range(n_steps):
            following = dict.fromkeys(range(n_states), 0.0)
            for s, a in itertools.product(at, range(n_actions)):
                p = at[s] * float(policy[s, a])
                values[start] += tables.gamma**t * p * tables.rewards[s, a]
                visits[s] += tables.initial[start] * tables.gamma**t * p
                for s_next in range(n_states):
                    following[s_next] += p * float(tables.transitions[s, a, s_next])
            at = following
    return values, visits


@pytest.mark.parametrize(("horizon", "n_steps"), [(None, 120), (4, 4), (1, 1)])
def test_values_and_visits(horizon, n_steps):
    tables, policy = make(horizon=horizon)
    values, visits = walked(tables, policy, n_steps)
    th.testing.assert_close(tables.values(policy)[0], values)
    th.testing.assert_close(sum(tables.visits(policy, tables.gamma)), visits)
    following = tables.values(policy)[1]
    q = tables.action_values(following)
    th.testing.assert_close((policy * q).sum(1), values)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_policy_without_a_horizon_is_one_of_the_deterministic_ones(seed):
    tables, _ = make(seed, gamma=0.95)
    n_states, n_actions = tables.rewards.shape
    deterministic = itertools.product(range(n_actions), repeat=n_states)
    each = [th.nn.functional.one_hot(th.tensor(choice), n_actions).double() for choice in deterministic]
    best = th.stack([tables.values(policy)[0] for policy in each]).amax(0)
    th.testing.assert_close(tables.best_values(), best)


def test_the_best_policy_of_a_horizon_may_change_with_the_time():
    tables, _ = make(1, horizon=3)

    def best(s, steps_left):
        if steps_left == 0:
            return 0.0
        return max(
            float(tables.rewards[s, a])
            + tables.gamma * sum(float(tables.transitions[s, a, n]) * best(n, steps_left - 1) for n in range(3))
            for a in range(2)
        )

    assert tables.best_values().tolist() == pytest.approx([best(s, 3) for s in range(3)])


def test_an_infinite_return_is_refused():
    tables = Tables(th.ones(1, 1, 1).double(), th.ones(1, 1).double(), th.ones(1).double(), gamma=1.0)
    with pytest.raises(ValueError, match=r"gamma=1\.0: allowed is a number < 1"):
        tables.values(th.ones(1, 1).double())
