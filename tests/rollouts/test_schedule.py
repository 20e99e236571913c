"""Claim: exactly N episodes are started, each sub-environment has its fixed share, and all of them are finished."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_pgext.rollouts import episodes
from sb3_pgext.rollouts.episodes import EpisodeSchedule


def play(n_episodes, n_envs, lengths, max_episode_steps=None):
    """The (sub-environment, length) of the batch's episodes; ``lengths(e)`` draws that of e's next episode."""
    schedule = EpisodeSchedule(n_episodes, n_envs, max_episode_steps)
    left = np.array([lengths(e) for e in range(n_envs)])
    counts, batch = np.zeros(n_envs, dtype=int), []
    while not schedule.complete:
        left -= 1
        dones = left == 0
        counts += schedule.recording
        ended, cut = schedule.step(dones)
        assert not (cut & ~ended).any()
        assert not (cut & dones).any()
        batch += [(int(e), int(counts[e])) for e in np.flatnonzero(ended)]
        counts[ended] = 0
        left = np.where(dones, [lengths(e) for e in range(n_envs)], left)
        if schedule.stalled:
            schedule.restart()
            left = np.array([lengths(e) for e in range(n_envs)])
            counts[:] = 0
    assert not counts.any(), "an episode was started and not finished"
    return batch


@given(st.integers(1, 20), st.integers(1, 9), st.randoms(use_true_random=False))
def test_each_sub_environment_plays_its_share(n_episodes, n_envs, random):
    """Also when their episodes are of very different length, and N is no multiple of their number."""
    batch = play(n_episodes, n_envs, lambda e: random.randint(1, 3 + 20 * (e == 0)))
    shares = [sum(env == e for env, _ in batch) for e in range(n_envs)]
    assert sum(shares) == n_episodes
    assert shares == [len(range(e, n_episodes, n_envs)) for e in range(n_envs)]


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 8), st.randoms(use_true_random=False))
def test_episodes_are_cut_at_the_limit(n_episodes, n_envs, limit, random):
    batch = play(n_episodes, n_envs, lambda e: random.choice([1, 5, 10**9]), limit)
    assert len(batch) == n_episodes
    assert {length for _, length in batch} <= {min(1, limit), min(5, limit), limit}


def test_an_episode_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(episodes, "MAX_STEPS_WITHOUT_END", 10)
    schedule = EpisodeSchedule(2, 2)
    for _ in range(10):
        schedule.step(np.array([True, False]))
    with pytest.raises(RuntimeError, match=r"no end and no limit.*max_episode_steps"):
        schedule.step(np.array([True, False]))


def test_a_limit_beyond_the_longest_allowed_is_the_users_choice(monkeypatch):
    monkeypatch.setattr(episodes, "MAX_STEPS_WITHOUT_END", 10)
    schedule = EpisodeSchedule(1, 1, max_episode_steps=20)
    for _ in range(20):
        ended, cut = schedule.step(np.array([False]))
    assert ended.all()
    assert cut.all()
