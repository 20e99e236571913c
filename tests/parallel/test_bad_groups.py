"""
Claim: a group that is half there, and ranks that do not train the same, are told so by one of them before anything is
learnt; when a rank dies, or fails, the others end and say which one it was.
"""

import os
import signal
from functools import partial

import pytest
import torch as th
import torch.distributed as dist
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import A3C, NPG, REINFORCE, VPG, parallel
from sb3_pgext.parallel import group, ranks, start
from tests.conformance.models import make_env, small
from tests.parallel.ranks import on_ranks

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": None}, "RANK=None: allowed is one beside"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE=None: allowed is one beside"),
        ({"MASTER_PORT": None}, "MASTER_PORT=None: allowed is one beside"),
        ({"RANK": "2"}, "RANK='2': allowed is a number from 0 to 1"),
        ({"RANK": "-1"}, "RANK='-1': allowed is a number from 0 to 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': allowed is a number of ranks"),
    ],
)
def test_a_group_that_is_half_there(changed, message, monkeypatch):
    for name, value in {**WHOLE, **changed}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parallel.init()


def test_without_torchrun():
    assert not parallel.init().several


def test_a_rank_that_does_not_arrive(monkeypatch):
    monkeypatch.setattr(group, "ARRIVAL", group.timedelta(seconds=0.5))

    def joined(rank):
        if rank != 1:
            parallel.init()

    first, _, third = on_ranks(3, joined, join=False)
    for rank, error in ((0, first), (2, third)):
        assert isinstance(error, RuntimeError)
        assert str(error) == f"rank {rank} of 3 waits for ranks [1] in vain"


def models():
    """What rank 0 makes, and what another one makes; and the message."""
    make = partial(small, VPG)
    yield (make, partial(small, NPG)), "algorithm={0: 'VPG', 1: 'NPG'}"
    yield (make, partial(make, gamma=0.9)), "gamma={0: '0.99', 1: '0.9'}"
    yield (make, partial(make, learning_rate=lambda progress: progress)), "learning_rate={"
    yield (make, partial(make, make_env(n_envs=3))), "n_envs={0: '2', 1: '3'}"
    yield (make, lambda: make(make_env(action_space=spaces.Discrete(4)))), "action_space={0: 'Discrete(3)', 1: "
    yield (make, partial(make, policy_kwargs={"net_arch": [8]})), "policy_kwargs={"


@pytest.mark.parametrize(
    ("makers", "message"), models(), ids=lambda x: x.partition("=")[0] if isinstance(x, str) else ""
)
def test_ranks_that_disagree(makers, message):
    """One clear message, on one rank."""
    first, other = on_ranks(2, lambda rank: makers[rank]().learn(20))
    assert isinstance(first, ValueError)
    assert str(first).startswith(message)
    assert str(first).endswith("by rank: allowed is the same on all ranks")
    assert isinstance(other, SystemExit)
    assert other.code == 1


def test_an_algorithm_with_workers_of_its_own():
    message = "number of ranks=2: allowed is 1, without torchrun: A3C starts its workers itself"
    for error in on_ranks(2, lambda rank: A3C("MlpPolicy", "CartPole-v1", device="cpu")):
        assert isinstance(error, ValueError)
        assert str(error) == message


def test_versions_that_differ(monkeypatch):
    def learnt(rank):
        monkeypatch.setattr(start, "version", lambda name: f"1.{rank}")
        small(VPG).learn(20)

    first, other = on_ranks(2, learnt)
    assert "version of sb3-pgext={0: \"'1.0'\", 1: \"'1.1'\"}" in str(first)
    assert isinstance(other, SystemExit)


def test_an_environment_that_one_rank_has_not():
    def learnt(rank):
        env = make_vec_env("CartPole-v1") if rank == 0 else "NoSuchThing-v0"
        VPG("MlpPolicy", env, n_steps=10).learn(20)

    first, other = on_ranks(2, learnt)
    assert isinstance(other, ValueError)
    assert "NoSuchThing" in str(other)
    assert str(first).startswith("rank 0 of 2 stops: rank 1 is gone.")


class KillItself(BaseCallback):
    """As `kill -9` would."""

    on_every_rank = True

    def __init__(self, dies):
        super().__init__()
        self.dies = dies

    def _on_step(self):
        if self.dies and self.num_timesteps > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


@pytest.mark.parametrize(("size", "dead"), [(2, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
def test_a_rank_that_dies(algorithm, size, dead, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", 5.0)
    results = on_ranks(size, lambda rank: small(algorithm).learn(10**6, KillItself(rank == dead)))
    for rank, result in enumerate(results):
        if rank == dead:
            assert result is None
        else:
            assert isinstance(result, RuntimeError)
            assert str(result).startswith(f"rank {rank} of {size} stops: rank {dead} is gone.")


def test_a_rank_that_fails():
    def learnt(rank):
        env = make_env()
        if rank == 1:
            env.envs[0].unwrapped.step = lambda action: 1 / 0
        small(VPG, env).learn(20)

    first, other = on_ranks(2, learnt)
    assert isinstance(other, ZeroDivisionError)
    assert str(first).startswith("rank 0 of 2 stops: rank 1 is gone.")


def test_a_group_that_is_started_anew():
    """torchrun gives it the store that the dead ranks have left."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dead = [on_ranks(2, lambda rank: os.kill(os.getpid(), signal.SIGKILL), store=store) for _ in range(2)]
    assert dead == [[None, None]] * 2
    assert on_ranks(2, lambda rank: parallel.present().sum(th.ones(1)).item(), store=store) == [2.0, 2.0]
