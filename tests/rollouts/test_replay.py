"""
Claim: the replay keeps the last batches and nothing else, asks each policy about each batch once, and stays within its
memory.
"""

import pytest
import torch as th

from sb3_pgext.rollouts import EpisodeBatch, EpisodeReplay, replay
from sb3_pgext.rollouts.replay import concatenated


def batch_of(lengths, n_observations=2, n_actions=None, offset=0.0):
    lengths = th.tensor(lengths)
    n_steps = int(lengths.sum())
    numbers = offset + th.arange(n_steps, dtype=th.float32)
    actions = numbers.long() if n_actions is None else numbers.unsqueeze(1).repeat(1, n_actions)
    return EpisodeBatch(
        observations=numbers.unsqueeze(1).repeat(1, n_observations),
        actions=actions,
        rewards=numbers.clone(),
        values=numbers.clone(),
        episode=th.arange(len(lengths)).repeat_interleave(lengths),
        time=th.arange(n_steps) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths),
        lengths=lengths,
        truncated=lengths > 2,
        bootstrap_values=offset + lengths.float(),
    )


def filled(n_batches, n_added):
    result = EpisodeReplay(n_batches)
    for k in range(n_added):
        result.add(batch_of([2, 3]), th.full((5,), float(k)), {"weight": th.tensor([float(k)])})
    return result


def tensors_of(result):
    for batch in result.batches:
        yield from (tensor for tensor in vars(batch.episodes).values() if tensor is not None)
        yield batch.log_prob
        yield from batch.policy.values()
    yield from result._cache.values()


@pytest.mark.parametrize("n_batches", [1, 3])
def test_the_last_batches_are_kept(n_batches):
    result = filled(n_batches, 5)
    assert [batch.number for batch in result.batches] == list(range(5 - n_batches, 5))
    assert [batch.log_prob[0].item() for batch in result.batches] == list(range(5 - n_batches, 5))


def test_each_policy_is_asked_once_about_each_batch():
    asked = []

    def evaluate(episodes, policy):
        asked.append(policy["weight"].item())
        return episodes.rewards * policy["weight"]

    result = filled(3, 3)
    for _ in range(2):
        for batch in result.batches:
            for other in result.batches:
                log_prob = result.log_prob(batch, other, evaluate)
                own = batch is other
                assert th.equal(log_prob, batch.log_prob if own else batch.episodes.rewards * other.number)
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]
    result.keep(result.batches[1:])
    assert result._cache.keys() == {(1, 2), (2, 1)}
    result.add(batch_of([4]), th.zeros(4), {"weight": th.tensor([3.0])})
    for other in result.batches:
        result.log_prob(result.batches[-1], other, evaluate)
    assert sorted(asked) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_what_does_not_fit_is_computed_anew(monkeypatch):
    monkeypatch.setattr(replay, "MAX_CACHED", 12)
    result, asked = filled(3, 3), []

    def evaluate(episodes, policy):
        asked.append(1)
        return episodes.rewards * policy["weight"]

    for _ in range(2):
        for batch in result.batches:
            for other in result.batches:
                if other is not batch:
                    assert th.equal(result.log_prob(batch, other, evaluate), batch.episodes.rewards * other.number)
    assert len(asked) == 6 + 4
    assert sum(map(len, result._cache.values())) == 10


def test_a_hundred_large_batches_in_200_mb():
    """10,000 steps each, 17 observations and 6 actions, the policy of 64 and 64 units, all pairs asked for."""
    result = EpisodeReplay(100)
    n_numbers = 17 * 64 + 64 + 64 * 64 + 64 + 64 * 6 + 6 + 6
    for _ in range(105):
        result.add(batch_of([1000] * 10, 17, 6), th.zeros(10_000), {"all": th.zeros(n_numbers)})
    for batch in result.batches:
        for other in result.batches[::10]:
            result.log_prob(batch, other, lambda episodes, policy: th.zeros(len(episodes)))
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(result))
    assert len(result.batches) == 100
    assert 100e6 < size < 200e6


def test_concatenated():
    """Taken apart again, the batches are as they were."""
    batches = [batch_of([2, 3]), batch_of([1], offset=10.0), batch_of([4, 1, 1], offset=20.0)]
    joined = concatenated(batches)
    assert joined.episode.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5]
    assert joined.n_episodes == 6
    for name in ("observations", "actions", "rewards", "values", "time"):
        parts = getattr(joined, name).split([5, 1, 6])
        assert all(th.equal(part, getattr(batch, name)) for part, batch in zip(parts, batches, strict=True))
    for name in ("lengths", "truncated", "bootstrap_values"):
        parts = getattr(joined, name).split([2, 1, 3])
        assert all(th.equal(part, getattr(batch, name)) for part, batch in zip(parts, batches, strict=True))
    assert concatenated(batches[:1]) is batches[0]


def test_concatenated_dicts():
    batch = batch_of([2])
    of_dicts = EpisodeBatch(**{**vars(batch), "observations": {"a": batch.observations, "b": batch.actions}})
    joined = concatenated([of_dicts, of_dicts])
    assert joined.observations["b"].tolist() == [0, 1, 0, 1]
    assert joined.observations["a"].shape == (4, 2)
