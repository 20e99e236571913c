"""Claim: a dataset is read as it was written, by us or by others; a file that is not one is refused."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG
from sb3_pgext.rollouts import EpisodeBatch, EpisodeDataset
from sb3_pgext.rollouts.dataset import require_suitable
from tests.environments import AnySpaces
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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rewards": np.array(1.0)}, r"shape of 'rewards'=\(\)"),
        ({"lengths": np.array([[2], [3]])}, r"shape of 'lengths'=\(2, 1\)"),
        ({"log_prob": np.zeros((5, 1))}, r"shape of 'log_prob'=\(5, 1\)"),
        ({"actions": np.array(list("abcde"))}, "dtype of 'actions'=<U1"),
        ({"observations": np.array(["a"] * 5)}, "dtype of 'observations'=<U1"),
        ({"observations": np.array(0.0)}, "'observations'"),
        ({"lengths": np.array([2 + 1j, 3])}, "dtype of 'lengths'=complex128"),
        ({"rewards": np.array([None] * 5)}, "pickle"),
    ],
)
def test_arrays_of_another_kind_are_refused_by_name(tmp_path, changes, named):
    path = written_by_others(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=named) as caught:
        EpisodeDataset.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["npy", b"", b"no zip at all", b"PK\x03\x04 nearly a zip", "cut short", "damaged"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    path = tmp_path / "episodes.npz"
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        EpisodeDataset(batch_of([300]), th.zeros(300)).save(path)
        whole = bytearray(path.read_bytes())
        if content == "damaged":
            whole[200:260] = bytes(60)
        path.write_bytes(whole if content == "damaged" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"allowed is an \.npz file") as caught:
        EpisodeDataset.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        EpisodeDataset.load(tmp_path / "episodes.npz")


def test_a_header_is_what_it_says_not_how_it_is_written(tmp_path):
    header = '{"version":1,  "format":"sb3-pgext episodes"}'
    EpisodeDataset.load(written_by_others(tmp_path / "theirs.npz", header=header))


def test_a_missing_array_is_named(tmp_path):
    path = written_by_others(tmp_path / "theirs.npz")
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("observations", "log_prob", "lengths", "bootstrap_values"):
        np.savez(path, **{key: array for key, array in arrays.items() if key != name})
        with pytest.raises(ValueError, match=f"{name}.*missing"):
            EpisodeDataset.load(path)


BOX, IMAGE = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2, 2))


@pytest.mark.parametrize(
    ("action_space", "actions", "named"),
    [
        (BOX, th.zeros(5, 2), None),
        (BOX, th.zeros(5), "shape of actions=.*5, 2"),
        (BOX, th.zeros(5, 1), "shape of actions=.*5, 2"),
        (BOX, th.zeros(5, 2, dtype=th.int64), "floating"),
        (BOX, th.full((5, 2), th.nan), "finite"),
        (IMAGE, th.zeros(5, 4), None),
        (spaces.Discrete(3), th.zeros(5, dtype=th.int64), None),
        (spaces.Discrete(3), th.zeros(5, 1, dtype=th.int64), r"shape of actions=.*\(5,\)"),
        (spaces.Discrete(3), th.zeros(5), "dtype of actions.*integer"),
        (spaces.MultiDiscrete([2, 3]), th.zeros(5, 2, dtype=th.int64), None),
        (spaces.MultiBinary(3), th.zeros(5, 3), None),
        (spaces.MultiBinary(3), th.zeros(5), "shape of actions"),
        (spaces.MultiBinary(3), th.full((5, 3), 0.5), "actions=.*allowed is 0 and 1"),
        (spaces.Discrete(3), th.tensor([0, 1, 2, 3, 0]), r"actions at step 3=3: allowed is whole numbers >= 0 and < 3"),
        (spaces.Discrete(3), th.tensor([0, -1, 2, 0, 0]), r"actions at step 1=-1: allowed is"),
        (spaces.MultiDiscrete([2, 3]), th.tensor([[1, 2]] * 4 + [[2, 2]]), r"actions at step 4=\[2, 2\]"),
        (spaces.Box(-1, 1, ()), th.zeros(5, 1), None),
        (spaces.Box(-1, 1, ()), th.zeros(5), r"shape of actions=\(5,\): allowed is \(5, 1\)"),
    ],
)
def test_which_actions_suit_a_model(action_space, actions, named):
    model = SimpleNamespace(observation_space=BOX, action_space=action_space, device="cpu")
    dataset = EpisodeDataset(replace(batch_of([2, 3]), actions=actions), th.zeros(5))
    with nullcontext() if named is None else pytest.raises(ValueError, match=named):
        require_suitable(dataset, model)


def test_which_observations_and_numbers_suit_a_model():
    model = SimpleNamespace(observation_space=BOX, action_space=spaces.Discrete(9), device="cpu")
    of_dicts = SimpleNamespace(**{**vars(model), "observation_space": spaces.Dict({"a": BOX})})
    batch, log_prob = batch_of([2, 3]), th.zeros(5)
    require_suitable(EpisodeDataset(batch, log_prob), model)
    in_dict = replace(batch, observations={"a": batch.observations})
    require_suitable(EpisodeDataset(in_dict, log_prob), of_dicts)
    for unsuitable, mu, to, named in (
        (in_dict, log_prob, model, "observations=.*'a'"),
        (batch, log_prob, of_dicts, "observations=.*'a'"),
        (replace(batch, observations=th.zeros(5, 3)), log_prob, model, "shape of observations"),
        (batch, th.full((5,), -th.inf), model, "log_prob=.*finite"),
        (batch, th.zeros(5, 1), model, "shape of log_prob"),
        (replace(batch, rewards=th.full((5,), th.nan)), log_prob, model, "rewards=.*finite"),
    ):
        with pytest.raises(ValueError, match=named):
            require_suitable(EpisodeDataset(unsuitable, mu), to)


@pytest.mark.parametrize(
    ("space", "observations", "named"),
    [
        (spaces.Discrete(4, start=5), th.tensor([0, 1, 2, 3, 0]), None),
        (spaces.Discrete(4, start=5), th.tensor([0, 1, 2, 3, 4]), r"observations.* at step 4=4: allowed is .* < 4"),
        (spaces.MultiDiscrete([2, 3]), th.tensor([[0, 3]] * 5), r"observations.* at step 0=\[0, 3\]"),
        (BOX, th.full((5, 2), th.inf), "observations.*finite"),
        (spaces.MultiBinary(2), th.full((5, 2), 2.0), "observations.*0 and 1"),
    ],
)
def test_which_observations_are_of_the_space(space, observations, named):
    model = SimpleNamespace(observation_space=space, action_space=spaces.Discrete(9), device="cpu")
    dataset = EpisodeDataset(replace(batch_of([2, 3]), observations=observations), th.zeros(5))
    with nullcontext() if named is None else pytest.raises(ValueError, match=named):
        require_suitable(dataset, model)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"episode": th.tensor([0, 0, 0, 1, 1])}, r"episode=\[0, 0, 0, 1, 1\]: allowed is what the lengths say"),
        ({"episode": th.tensor([1, 1, 0, 0, 0])}, "episode="),
        ({"episode": th.zeros(5, 1, dtype=th.int64)}, "episode="),
        ({"time": th.arange(5)}, r"time=\[0, 1, 2, 3, 4\]"),
        ({"lengths": th.tensor([2, 4])}, "sum of the lengths=6: allowed is 5, the number of steps"),
        ({"lengths": th.tensor([5, 0])}, r"lengths=\[5, 0\]"),
        ({"lengths": th.tensor([2.0, 3.0])}, "lengths=.*whole"),
        ({"truncated": th.tensor([True])}, "shape of truncated"),
        ({"bootstrap_values": th.zeros(5)}, "shape of bootstrap_values"),
    ],
)
def test_numbers_of_episodes_that_contradict_each_other(changes, named):
    model = SimpleNamespace(observation_space=BOX, action_space=spaces.Discrete(9), device="cpu")
    dataset = EpisodeDataset(replace(batch_of([2, 3]), **changes), th.zeros(5))
    with pytest.raises(ValueError, match=named):
        require_suitable(dataset, model)


def test_to_another_device():
    moved = EpisodeDataset(batch_of([2, 3]), th.zeros(5)).to("meta")
    assert moved.log_prob.is_meta
    assert all(tensor is None or tensor.is_meta for tensor in vars(moved.episodes).values())


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_what_was_there_stays_if_writing_fails(tmp_path, monkeypatch, fails):
    dataset = EpisodeDataset(batch_of([2]), th.zeros(2))
    dataset.save(tmp_path / "episodes.npz")

    def disk_full(*args, **options):
        raise OSError("disk full")

    def open_full(self, *args, file_of=Path.open):
        with file_of(self, *args) as file:
            file.write(b"half")
        disk_full()

    if fails == "write":
        monkeypatch.setattr(Path, "open", open_full)
    else:
        monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="disk full"):
        EpisodeDataset(batch_of([9]), th.zeros(9)).save(tmp_path / "episodes.npz")
    monkeypatch.undo()
    assert_same(dataset, EpisodeDataset.load(tmp_path / "episodes.npz"))
    assert [file.name for file in tmp_path.iterdir()] == ["episodes.npz"], "nothing is left over"


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    umask = os.umask(0o022)
    try:
        EpisodeDataset(batch_of([2]), th.zeros(2)).save(tmp_path / "episodes.npz")
    finally:
        os.umask(umask)
    assert (tmp_path / "episodes.npz").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("lengths", [[5, 0], [8, -3], [2.0, 3.0], []])
def test_every_episode_has_a_step(tmp_path, lengths):
    path = tmp_path / "episodes.npz"
    written_by_others(path, lengths=np.array(lengths))
    with pytest.raises(ValueError, match=r"lengths=.*allowed are whole numbers >= 1"):
        EpisodeDataset.load(path)


# --- Minari ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return pytest.importorskip("minari")


def recorded_by_minari(minari, observation_space, action_space, lengths):
    """Random episodes, the last of them cut."""
    from minari.data_collector import EpisodeBuffer

    def observations(n):
        samples = [observation_space.sample() for _ in range(n)]
        is_dict = isinstance(observation_space, spaces.Dict)
        return {key: [x[key] for x in samples] for key in observation_space} if is_dict else samples

    buffers = [
        EpisodeBuffer(
            id=i,
            observations=observations(length + 1),
            actions=[action_space.sample() for _ in range(length)],
            rewards=list(np.arange(length) + 10.0 * i),
            terminations=[False] * (length - 1) + [i + 1 < len(lengths)],
            truncations=[False] * (length - 1) + [i + 1 == len(lengths)],
        )
        for i, length in enumerate(lengths)
    ]
    return minari.create_dataset_from_buffers(
        "ours/random-v0", buffers, observation_space=observation_space, action_space=action_space
    )


@pytest.mark.filterwarnings("ignore:env_spec is None")
@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2,))]
)
@pytest.mark.parametrize("observation_space", [spaces.Box(-1, 1, (3,)), spaces.Dict({"a": spaces.Box(0, 1, (2,))})])
def test_minari_episodes_are_what_a_model_learns_from(minari, observation_space, action_space, device):
    space = observation_space["a"] if isinstance(observation_space, spaces.Dict) else observation_space
    recorded = recorded_by_minari(minari, observation_space, action_space, [3, 1, 4])
    asked = []

    def log_prob(observations, actions):
        asked.append((observations, actions))
        return -th.ones(len(actions), device=actions.device)

    dataset = EpisodeDataset.from_minari(recorded, log_prob, device)
    episodes = dataset.episodes
    assert episodes.rewards.tolist() == [0, 1, 2, 10, 20, 21, 22, 23]
    assert episodes.episode.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert episodes.time.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert episodes.truncated.tolist() == [False, False, True]
    first, *_, last = recorded.iterate_episodes()
    of_last = last.observations["a"] if isinstance(observation_space, spaces.Dict) else last.observations
    ours = episodes.observations["a"] if isinstance(observation_space, spaces.Dict) else episodes.observations
    np.testing.assert_array_equal(ours[4:].cpu(), of_last[:4])
    assert ours.shape == (8, *space.shape)
    np.testing.assert_array_equal(episodes.actions[:3].cpu(), first.actions)
    assert asked[0][1] is episodes.actions
    require_suitable(
        dataset, SimpleNamespace(observation_space=observation_space, action_space=action_space, device=device)
    )


@pytest.mark.filterwarnings("ignore:env_spec is None")
@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2,))]
)
def test_a_model_learns_from_minari_as_the_documentation_says(minari, action_space, device):
    env = DummyVecEnv([lambda: AnySpaces(spaces.Box(-1, 1, (3,)), action_space)])
    behaviour, model = PPO("MlpPolicy", env, n_steps=8, device=device), ISPG("MlpPolicy", env, device=device)
    dataset = EpisodeDataset.from_minari(
        recorded_by_minari(minari, spaces.Box(-1, 1, (3,)), action_space, [3, 1, 4]),
        lambda observations, actions: behaviour.policy.get_distribution(observations).log_prob(actions),
        device=behaviour.device,
    )
    assert model.learn_from(dataset, 1)._n_updates == 1


def test_minari_spaces_without_arrays_are_refused():
    episode = SimpleNamespace(observations=np.zeros((2, 1)), actions=(np.zeros(1), np.zeros(1)), rewards=np.zeros(1))
    with pytest.raises(ValueError, match="type of observations or actions='tuple'"):
        EpisodeDataset.from_minari(SimpleNamespace(iterate_episodes=lambda: [episode]), None)
    with pytest.raises(ValueError, match="number of episodes of the dataset=0"):
        EpisodeDataset.from_minari(SimpleNamespace(iterate_episodes=list), None)
