"""
Claim: ranks that learn together begin with the same parameters, whatever each has drawn, and have equal ones to the
bit after many updates; each draws its own environments and actions from (seed, rank); steps, statistics, callbacks and
logs are of all ranks.
"""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_pgext import (
    ISPG,
    NPG,
    REINFORCE,
    VPG,
    ClippedCriticPPO,
    DiscreteSAC,
    ExponentialWeights,
    OffPolicyActorCritic,
    SearchGradient,
)
from tests.conformance.models import collected, small, vector_of
from tests.parallel.batches import uneven
from tests.parallel.ranks import on_ranks, results_of

SMALL = {"policy_kwargs": {"net_arch": [8]}}
OF_Q = {"learning_starts": 20, "batch_size": 8, "device": "cpu", **SMALL}
MAKE = {
    "reinforce": lambda: small(REINFORCE, uneven(2), baseline="state", batch_size=10, **SMALL),
    "reinforce optimal": lambda: small(REINFORCE, uneven(2), baseline="optimal", **SMALL),
    "vpg": lambda: small(VPG, uneven(2), learning_rate_kl_target=1e-4, **SMALL),
    "npg": lambda: small(NPG, uneven(2), line_search=True, **SMALL),
    "ppo_cc": lambda: small(ClippedCriticPPO, uneven(2), clip_range_vf=0.2, target_kl=0.01, **SMALL),
    "ispg": lambda: small(ISPG, uneven(2), weights="causal", self_normalize=True, **SMALL),
    "opac": lambda: OffPolicyActorCritic("MlpPolicy", uneven(2), seed=0, **OF_Q),
    "sacd": lambda: DiscreteSAC("MlpPolicy", uneven(2, "discrete"), seed=0, **OF_Q),
    "es": lambda: small(SearchGradient, uneven(2, "discrete"), policy="LinearPolicy"),
    "ew": lambda: ExponentialWeights("MlpPolicy", make_vec_env("sb3_pgext/Chain-v0", 2), n_steps=20, seed=0),
}


class StopAfter(BaseCallback):
    """Stop the training after so many updates."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def _on_rollout_start(self):
        self.n -= 1

    def _on_step(self):
        return self.n >= 0


@pytest.mark.parametrize(
    ("key", "n_updates"),
    [
        *((key, 50 if key == "ppo_cc" else 8) for key in MAKE),
        *(pytest.param(key, 50, marks=pytest.mark.prove) for key in MAKE),
    ],
)
def test_parameters_after_many_updates(key, n_updates):
    def trained(rank):
        model = MAKE[key]()
        start = vector_of(model)
        model.learn(10**6, StopAfter(n_updates))
        tensors = [*model.policy.state_dict().values(), *map(th.as_tensor, (model.num_timesteps, model._n_updates))]
        return start, tensors

    (start, tensors), (start_of_other, of_other) = results_of(2, trained)
    if key not in ("es", "ew"):  # which start with zeros
        assert not th.equal(start, start_of_other)
    assert tensors[-1] >= n_updates - 1 - 20 // 2 * (key in ("opac", "sacd"))
    assert all(th.equal(x, y) for x, y in zip(tensors, of_other, strict=True))


class Actions(BaseCallback):
    """What a rank has seen and done."""

    on_every_rank = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append((np.array(self.locals["new_obs"]), np.array(self.locals["actions"])))
        return True


@pytest.mark.parametrize("seed", [0, 5])
def test_seeds(seed):
    """Also a seed of 0; and rank 0 draws what a process alone does."""

    def seen(rank):
        model, actions = small(VPG, uneven(2), seed=seed, **SMALL), Actions()
        model.learn(20, actions)
        return actions.seen

    def equal(one, other):
        return all(np.array_equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))

    first, second = results_of(2, seen), results_of(2, seen)
    assert all(map(equal, first, second))
    assert not equal(*first)
    alone = seen(0)
    assert equal(first[0], alone[: len(first[0])])
    observations = [np.concatenate([x for x, _ in of_rank]) for of_rank in first]
    shared = {row.tobytes() for row in observations[0]} & {row.tobytes() for row in observations[1]}
    assert not shared


def test_without_a_seed_ranks_draw_differently():
    draws = results_of(2, lambda rank: th.rand(3).tolist())
    assert draws[0] != draws[1]


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
def test_statistics_of_all_observations(algorithm):
    """Each row that a rank has seen is counted once."""

    def trained(rank):
        env = Noting(uneven(2))
        model = small(algorithm, VecNormalize(env), **SMALL)
        model.learn(100)
        normalizer = model.get_vec_normalize_env()
        return normalizer.obs_rms, normalizer.ret_rms, env.rows

    results = results_of(2, trained)
    rows = np.concatenate([row for *_, rows in results for row in rows])
    (obs_rms, ret_rms, _), (other_obs_rms, other_ret_rms, _) = results
    assert obs_rms.count == pytest.approx(len(rows), abs=0.01)
    np.testing.assert_allclose(obs_rms.mean, rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(obs_rms.var, rows.var(0), atol=1e-4)
    for own, other in ((obs_rms, other_obs_rms), (ret_rms, other_ret_rms)):
        assert np.array_equal(own.mean, other.mean)
        assert np.array_equal(own.var, other.var)
        assert own.count == other.count


class Noting(VecEnvWrapper):
    """Notes all observations, as they are."""

    def __init__(self, venv):
        super().__init__(venv)
        self.rows = []

    def reset(self):
        observations = self.venv.reset()
        self.rows.append(observations.copy())
        return observations

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        self.rows.append(observations.copy())
        return observations, *rest


class Spy(BaseCallback):
    """Counts its calls, and stops the training in a rollout of a number."""

    def __init__(self, stop_in=10**9):
        super().__init__()
        self.stop_in, self.n_rollouts, self.at = stop_in, 0, []

    def _on_rollout_start(self):
        self.n_rollouts += 1
        self.at.append(self.model.num_timesteps)

    def _on_step(self):
        return self.n_rollouts < self.stop_in


class Everywhere(Spy):
    on_every_rank = True


@pytest.mark.parametrize("stopping_rank", [0, 1])
@pytest.mark.parametrize("algorithm", [REINFORCE, VPG, SearchGradient])
def test_callbacks(algorithm, stopping_rank):
    """
    Those of the user are called on rank 0 alone, but for those that ask for more; wherever one stops the training, it
    stops everywhere.
    """

    def trained(rank):
        model = small(
            algorithm, uneven(2, "discrete"), **({"policy": "LinearPolicy"} if algorithm is SearchGradient else SMALL)
        )
        alone, everywhere = Spy(), Everywhere(3 if rank == stopping_rank else 10**9)
        model.learn(10**6, [alone, CallbackList([everywhere])], progress_bar=False)
        return alone.n_rollouts, everywhere.at, model.num_timesteps

    (n_rollouts, at, n_steps), (n_rollouts_of_other, at_of_other, n_steps_of_other) = results_of(2, trained)
    assert (n_rollouts, n_rollouts_of_other) == (3, 0)
    assert at == at_of_other
    assert n_steps == n_steps_of_other


def test_steps_are_those_of_all_ranks():
    """As many updates as one process with all environments takes."""

    def trained(rank, n_envs=2):
        model, spy = small(VPG, uneven(n_envs), **SMALL), Everywhere()
        model.learn(200, spy)
        return spy.at, model.num_timesteps, model._n_updates, model._current_progress_remaining

    alone = trained(0, 4)
    assert alone[1] == 200
    assert results_of(2, trained) == [alone, alone]


def test_steps_of_whole_episodes():
    def trained(rank):
        model, counted = small(REINFORCE, uneven(2), **SMALL), []
        model.learn(100, Counting(counted))
        return sum(counted), model.num_timesteps, [info["r"] for info in model.ep_info_buffer]

    (one, total, returns), (other, total_of_other, returns_of_other) = results_of(2, trained)
    assert one + other == total == total_of_other
    assert returns == returns_of_other
    assert len(returns) > 8


class Counting(BaseCallback):
    """Counts the steps of this rank."""

    on_every_rank = True

    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def _on_step(self):
        self.counted.append(self.training_env.num_envs)
        return True


def test_files_and_logs_of_rank_0(tmp_path):
    def trained(rank):
        folder = tmp_path / str(rank)
        model = small(REINFORCE, uneven(2), tensorboard_log=str(folder / "log"), verbose=1, **SMALL).learn(50)
        model.save(folder / "model")
        files = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        return files, len(model.logger.output_formats)

    assert results_of(2, trained) == [(["log", "model.zip"], 2), ([], 0)]


def test_recorded_episodes_are_shared(tmp_path):
    """Each rank learns from a part; there must be one episode for each."""

    def dataset_of(n_episodes):
        model = small(ISPG, uneven(2), **SMALL, n_episodes=n_episodes)
        collected(model)
        return model.dataset()

    def learnt(rank, dataset, **options):
        model = small(ISPG, uneven(2), baseline="constant", min_ess=0.0, **SMALL, **options)
        return vector_of(model.learn_from(dataset, 2))

    dataset = dataset_of(6)
    first, other = results_of(2, learnt, dataset)
    assert th.equal(first, other)
    th.testing.assert_close(first, learnt(0, dataset))
    error, *_ = on_ranks(3, learnt, dataset_of(2))
    assert isinstance(error, ValueError)
    assert "number of episodes=2: allowed is at least 3" in str(error)
