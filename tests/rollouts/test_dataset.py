"""Claim: a dataset is read as it was written, by us or by others; a file that is not one is refused."""

import json

import numpy as np
import pytest
import torch as th

from sb3_pgext.rollouts import EpisodeBatch, EpisodeDataset
from tests.rollouts.test_replay import batch_of


def assert_same(a, b):
    for name, tensor in vars(a.episodes).items():
        other = getattr(b.episodes, name)
        if tensor is None:
            assert other is None
        elif isinstance(tensor, dict):
            assert tensor.keys() == other.keys()
            assert all(th.equal(tensor[key], other[key]) for key in tensor)
        else:
            assert tensor.dtype == other.dtype
            assert th.equal(tensor, other), name
    assert th.equal(a.log_prob, b.log_prob)


def test_round_trip(tmp_path, device):
    dataset = EpisodeDataset(batch_of([3, 1, 4], n_actions=2), -th.arange(8.0))
    dataset.save(tmp_path / "episodes.npz")
    loaded = EpisodeDataset.load(tmp_path / "episodes.npz", device)
    assert loaded.log_prob.device.type == device
    assert_same(dataset, EpisodeDataset.load(tmp_path / "episodes.npz"))
    assert [file.name for file in tmp_path.iterdir()] == ["episodes.npz"], "nothing is left over"


def test_dicts_of_observations(tmp_path):
    batch = batch_of([3, 1])
    observations = {"a": batch.observations, "b": batch.actions}
    dataset = EpisodeDataset(EpisodeBatch(**{**vars(batch), "observations": observations}), th.zeros(4))
    dataset.save(tmp_path / "episodes")
    assert_same(dataset, EpisodeDataset.load(tmp_path / "episodes"))


def written_by_others(path, **changes):
    """As the format is documented, without our code."""
    arrays = {
        "header": json.dumps({"format": "sb3-pgext episodes", "version": 1}),
        "observations": np.zeros((5, 3), np.float32),
        "actions": np.zeros(5, np.int64),
        "rewards": np.ones(5, np.float32),
        "log_prob": np.full(5, -1, np.float32),
        "lengths": np.array([2, 3]),
        "truncated": np.array([False, True]),
        "values": np.zeros(5, np.float32),
        "bootstrap_values": np.zeros(2, np.float32),
    }
    np.savez(path, **{**arrays, **changes})
    return path


def test_a_file_of_others(tmp_path):
    loaded = EpisodeDataset.load(written_by_others(tmp_path / "theirs.npz"))
    assert loaded.episodes.episode.tolist() == [0, 0, 1, 1, 1]
    assert loaded.episodes.time.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"header": "{}"}, r"header='\{\}'.*sb3-pgext episodes"),
        ({"rewards": np.ones(4)}, "length 4 of 'rewards'.*5"),
        ({"lengths": np.array([2, 2])}, "length 5 of .*4"),
        ({"truncated": np.array([True])}, "length 1 of 'truncated'.*2"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        EpisodeDataset.load(written_by_others(tmp_path / "bad.npz", **changes))


def test_what_was_there_stays_if_writing_fails(tmp_path):
    dataset = EpisodeDataset(batch_of([2]), th.zeros(2))
    dataset.save(tmp_path / "episodes.npz")
    broken = EpisodeDataset(batch_of([9]), None)
    with pytest.raises(AttributeError):
        broken.save(tmp_path / "episodes.npz")
    assert_same(dataset, EpisodeDataset.load(tmp_path / "episodes.npz"))
