"""
Claim: ranks that are killed go on from their last checkpoint as if nothing had happened, to the bit, each with its own
environments and generators; at another number of ranks a warning says what is new and what is kept.
"""

import os
import signal
import warnings

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import (
    ISPG,
    REINFORCE,
    VPG,
    CheckpointCallback,
    ClippedCriticPPO,
    DiscreteSAC,
    SearchGradient,
    resume,
)
from tests.conformance.models import small, vector_of
from tests.parallel.batches import uneven
from tests.parallel.ranks import on_ranks, results_of

SMALL = {"policy_kwargs": {"net_arch": [8]}}
OF_Q = {"learning_starts": 20, "batch_size": 8, "device": "cpu", "train_freq": 10, **SMALL}
MAKE = {
    "vpg": lambda: small(VPG, VecNormalize(uneven(2)), **SMALL),
    "reinforce": lambda: small(REINFORCE, VecNormalize(uneven(2)), **SMALL),
    "ppo_cc": lambda: small(ClippedCriticPPO, uneven(2), surrogate="adaptive_kl", desired_kl=1e-6, **SMALL),
    "ispg": lambda: small(ISPG, uneven(2), **SMALL),
    "sacd": lambda: DiscreteSAC("MlpPolicy", uneven(2, "discrete"), seed=0, **OF_Q),
    "es": lambda: small(SearchGradient, uneven(2, "discrete"), policy="LinearPolicy"),
}
STEPS = 300


class KilledAfter(BaseCallback):
    """Kill this process after so many steps, as `kill -9` would."""

    on_every_rank = True

    def __init__(self, n):
        super().__init__()
        self.n = n

    def _on_step(self):
        if self.num_timesteps > self.n:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def outcome(model):
    """Everything that an undisturbed training and one that was killed have in common."""
    statistics = model.get_vec_normalize_env()
    mean = 0 if statistics is None else th.as_tensor(statistics.obs_rms.mean)
    numbers = (model.num_timesteps, model._n_updates, getattr(model, "kl_coef", 0.0))
    return [vector_of(model), *map(th.as_tensor, numbers), th.as_tensor(mean), th.get_rng_state()]


def started(rank, key, path, killed_after=None):
    """Begin a training, or go on with it where it has begun, as a script does."""
    folder = path / "checkpoints"
    model = resume(folder) if any(folder.glob("*-step-*")) else MAKE[key]()
    callbacks = [CheckpointCallback(50, folder), KilledAfter(killed_after or STEPS * 2)]
    model.learn(STEPS - model.num_timesteps, callbacks, reset_num_timesteps=False)
    return outcome(model)


@pytest.mark.parametrize("key", MAKE)
def test_a_training_that_is_killed(key, tmp_path):
    """At any time: both ranks, in the middle of a rollout; an adaptive coefficient goes on, too."""
    undisturbed = results_of(2, started, key, tmp_path / "undisturbed")
    assert on_ranks(2, started, key, tmp_path, 180) == [None, None]
    again = results_of(2, started, key, tmp_path)
    for one, other in zip(undisturbed, again, strict=True):
        assert all(th.equal(x, y) for x, y in zip(one, other, strict=True))
    assert th.equal(again[0][0], again[1][0])
    if key == "ppo_cc":
        assert again[0][3] != 1.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (2, 3, "is of 2 ranks, and there are 3 now: .* of ranks [0, 1] go on, the environments of ranks [2] are new"),
        (3, 1, "is of 3 ranks, and there are 1 now: .* of ranks [0] go on, .* of ranks [1, 2] are dropped"),
        (1, 2, "is of 1 ranks, and there are 2 now: .* of ranks [0] go on, the environments of ranks [1] are new"),
    ],
)
def test_another_number_of_ranks(before, after, message, tmp_path):
    def begun(rank):
        model = small(VPG, VecNormalize(uneven(2)), **SMALL).learn(100, CheckpointCallback(50, tmp_path))
        return vector_of(model), model.num_timesteps, model._last_obs

    def resumed(rank):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = resume(tmp_path)
        there = vector_of(model), model.num_timesteps, model._last_obs
        model.learn(100, reset_num_timesteps=False)
        return there, vector_of(model), [str(warning.message) for warning in caught]

    written = on_ranks(before, begun) if before > 1 else [begun(0)]
    read = on_ranks(after, resumed) if after > 1 else [resumed(0)]
    for rank, ((vector, n_steps, last_obs), end, messages) in enumerate(read):
        assert th.equal(vector, written[0][0])
        assert n_steps == written[0][1]
        if rank < before:
            assert (last_obs == written[rank][2]).all()
        else:
            assert last_obs is None
        assert th.equal(end, read[0][1])
        assert len(messages) == (rank == 0)
    (said,) = read[0][2]
    for part in message.split(".*"):
        assert part.strip() in said


@pytest.mark.parametrize("key", ["sacd", "ispg"])
def test_each_rank_has_a_file_for_its_replay(key, tmp_path):
    def kept(rank):
        model = MAKE[key]()
        model.learn(60)
        model.save_replay_buffer(tmp_path / "replay")
        other = MAKE[key]()
        other.load_replay_buffer(tmp_path / "replay")
        return [_numbers_of(m.replay_buffer) for m in (model, other)]

    results = results_of(2, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay.pkl", "replay_rank1.pkl"]
    for saved, loaded in results:
        assert th.equal(saved, loaded)
    assert not th.equal(results[0][0], results[1][0]), "what each has played"


def _numbers_of(replay):
    return replay.batches[-1].log_prob if hasattr(replay, "batches") else th.as_tensor(replay.observations)
