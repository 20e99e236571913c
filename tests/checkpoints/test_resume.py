"""Claim: a training that is resumed from any of its checkpoints ends as the uninterrupted one, to the bit."""

import random
import shutil
import threading
import warnings
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from packaging.version import Version
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

import sb3_pgext
from sb3_pgext import ISPG, REINFORCE, VPG, CheckpointCallback, ClippedCriticPPO, GymnasiumVecEnv, load, resume
from sb3_pgext.checkpoints.files import found
from tests.checkpoints.models import SMALL, assert_same, small
from tests.environments import ACTIONS, IMAGE, VECTOR, AnySpaces

_PICKLES_SYNC = pytest.mark.skipif(
    Version(gym.__version__) < Version("1.4"), reason="below 1.4 gymnasium's SyncVectorEnv cannot be pickled"
)

TOTAL = 1000


def trained(model, folder, every=100, total=TOTAL):
    return model.learn(total, callback=CheckpointCallback(every, folder, keep=100))


def a_checkpoint(folder):
    """Neither the first nor the last: there is something before and after it."""
    return random.Random(str(folder.name)).choice(found(folder)[1:-1])


def resumed(path, total=TOTAL, **arguments):
    disturb()
    model = resume(path, **arguments)
    assert 0 < model.num_timesteps < total
    return model.learn(total - model.num_timesteps, reset_num_timesteps=False)


def disturb():
    """As a new process would: all generators are elsewhere."""
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    th.manual_seed(7)


TASKS = {
    "CartPole-v1": {},
    "Pendulum-v1": {},
    "HalfCheetah-v5": {"normalize": True, "env_kwargs": {"max_episode_steps": 30}},
}


@pytest.mark.parametrize(
    ("algorithm", "env_id"),
    [
        *((algorithm, env_id) for algorithm in SMALL for env_id in ("CartPole-v1", "Pendulum-v1")),
        # One of each kind of collection: MuJoCo and the normalisation know no more of the algorithm.
        *((algorithm, "HalfCheetah-v5") for algorithm in (ISPG, ClippedCriticPPO)),
    ],
    ids=str,
)
def test_each_algorithm_from_each_update(algorithm, env_id, tmp_path):
    if env_id == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    total = 600
    model = trained(small(algorithm, env_id, **TASKS[env_id]), tmp_path, every=1, total=total)
    between = found(tmp_path)[1:-1]
    assert len(between) >= 3
    for checkpoint in between:
        assert_same(model, resumed(checkpoint, total=total))


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize("sde_sample_freq", [-1, 4])
def test_the_noise_of_gsde(algorithm, sde_sample_freq, tmp_path):
    model = trained(small(algorithm, "Pendulum-v1", use_sde=True, sde_sample_freq=sde_sample_freq), tmp_path)
    assert_same(model, resumed(a_checkpoint(tmp_path)))


@pytest.mark.parametrize("gradient", ["sampled", "all_action"])
@pytest.mark.parametrize(("env_id", "draws"), [("CartPole-v1", {}), ("Pendulum-v1", {"n_action_samples": 3})])
def test_a_critic_of_q(env_id, draws, gradient, tmp_path):
    model = trained(small(VPG, env_id, critic="q", gradient=gradient, **draws), tmp_path, total=600)
    assert_same(model, resumed(a_checkpoint(tmp_path), total=600))


def test_the_noise_that_was_drawn_last(tmp_path):
    model = trained(small(VPG, "Pendulum-v1", use_sde=True), tmp_path, total=200)
    other = resume(tmp_path)
    assert np.array_equal(model.predict(model._last_obs)[0], other.predict(model._last_obs)[0])


@pytest.mark.parametrize("algorithm", [ISPG, ClippedCriticPPO])
def test_observations_of_several_parts(algorithm, tmp_path):
    parts = OrderedDict(vector=VECTOR, kind=spaces.Discrete(3), image=IMAGE)  # not in the order of the alphabet
    env = DummyVecEnv([lambda: AnySpaces(spaces.Dict(parts), ACTIONS["box"])])
    model = algorithm("MultiInputPolicy", env, seed=0, device="cpu", **SMALL[algorithm])
    trained(model, tmp_path, every=20, total=200)
    assert_same(model, resumed(a_checkpoint(tmp_path), total=200))


@pytest.mark.parametrize("actions", ACTIONS)
def test_actions_of_each_kind(actions, tmp_path):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS[actions])])
    model = trained(VPG("MlpPolicy", env, n_steps=16, seed=0, device="cpu"), tmp_path, every=10, total=64)
    assert_same(model, resumed(a_checkpoint(tmp_path), total=64))


def test_stacked_frames(tmp_path):
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 2, seed=0)), 3)
    model = trained(VPG("MlpPolicy", env, seed=1, n_steps=32, device="cpu"), tmp_path)
    assert_same(model, resumed(a_checkpoint(tmp_path)))


@pytest.mark.parametrize("mode", [pytest.param("sync", marks=_PICKLES_SYNC), "vector_entry_point"])
def test_environments_stepped_at_once(mode, tmp_path):
    env = VecMonitor(vectorised(3, mode))
    model = trained(VPG("MlpPolicy", env, seed=1, n_steps=32, device="cpu"), tmp_path)
    assert_same(model, resumed(a_checkpoint(tmp_path)))


def test_resumed_again_and_again(tmp_path):
    model = trained(small(VPG), tmp_path / "uninterrupted")

    class Stop(CheckpointCallback):
        def _on_rollout_start(self):
            super()._on_rollout_start()
            if self.model.num_timesteps >= self.until:
                raise KeyboardInterrupt

    other = small(VPG)
    for until in (300, 500, 800, 10_000):
        callback = Stop(100, tmp_path / "interrupted")
        callback.until = until
        try:
            other.learn(TOTAL - other.num_timesteps, callback=callback, reset_num_timesteps=False)
        except KeyboardInterrupt:
            other = resume(tmp_path / "interrupted")
            assert other.num_timesteps >= until
    assert_same(model, other)


def test_an_environment_of_the_same_make_gets_the_saved_state(tmp_path):
    model = trained(small(VPG, normalize=True), tmp_path)
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    other = resumed(a_checkpoint(tmp_path), env=env)
    assert other.get_env() is env
    assert_same(model, other)


def test_the_generators_of_the_process(tmp_path):
    trained(small(VPG), tmp_path, total=200)

    def draws():
        disturb()
        model = resume(tmp_path)
        drawn = np.random.rand(3)  # noqa: NPY002
        return random.random(), drawn.tolist(), th.rand(3).tolist(), model.action_space.sample()

    first = draws()
    random.random()
    assert draws() == first
    disturb()
    assert random.random() != first[0], "those of the training, not of before"


def test_a_baseline_of_the_users_own_keeps_what_it_has_learnt(tmp_path):
    class Average:
        """Of all returns so far."""

        def __init__(self):
            self.total, self.count = 0.0, 0

        def __call__(self, episodes, returns):
            return th.full_like(returns, self.total / max(1, self.count))

        def fit(self, episodes, returns):
            self.total += float(returns.sum())
            self.count += len(returns)

    model = trained(small(REINFORCE, baseline=Average()), tmp_path)
    assert_same(model, resumed(a_checkpoint(tmp_path)))


def test_frozen_parameters_stay_frozen(tmp_path):
    model = small(VPG)
    model.policy.action_net.bias.requires_grad_(False)
    trained(model, tmp_path)
    assert_same(model, resumed(a_checkpoint(tmp_path)))


def test_monitor_files_are_continued(tmp_path):
    for folder in ("uninterrupted", "interrupted"):
        env = make_vec_env("CartPole-v1", 2, seed=3, monitor_dir=str(tmp_path / folder))
        trained(VPG("MlpPolicy", env, seed=1, n_steps=32, device="cpu"), tmp_path / "checkpoints" / folder, total=500)
        env.close()
    expected = load_results(str(tmp_path / "uninterrupted"))
    checkpoint = a_checkpoint(tmp_path / "checkpoints" / "interrupted")
    shutil.rmtree(tmp_path / "interrupted")
    (tmp_path / "interrupted").mkdir()
    model = resume(checkpoint)
    model.learn(500 - model.num_timesteps, reset_num_timesteps=False)
    model.get_env().close()
    continued = load_results(str(tmp_path / "interrupted"))  # in new files with a header of their own
    assert 0 < len(continued) < len(expected)
    known = {(int(row.l), row.r) for row in expected.itertuples()}
    assert all((int(row.l), row.r) in known for row in continued.itertuples())


@pytest.mark.parametrize("times", [1, 2])
def test_episodes_after_the_checkpoint_are_not_in_the_monitor_file_twice(times, tmp_path):
    env = VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")]), str(tmp_path / "at_once"))
    trained(VPG("MlpPolicy", env, seed=1, n_steps=32, device="cpu"), tmp_path / "a", total=500)
    env.close()
    file = tmp_path / "at_once.monitor.csv"
    expected = file.read_text()
    checkpoint = a_checkpoint(tmp_path / "a")
    for _ in range(times):
        before = file.read_text()
        model = resume(checkpoint)
        assert file.read_text() == before, "only learning changes it"
        model.learn(500 - model.num_timesteps, reset_num_timesteps=False)
        model.get_env().close()
        assert [row[:-1] for row in rows(file.read_text())] == [row[:-1] for row in rows(expected)], "but for the time"


def test_the_file_of_a_given_environment_is_its_own(tmp_path):
    """Also of one that has other episodes in it already, or writes none."""

    def monitored(name):
        file = str(tmp_path / name)
        return VecMonitor(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"), file, override_existing=False)]))

    def written(name):
        return (tmp_path / f"{name}.monitor.csv").read_text()

    other = monitored("other")
    VPG("MlpPolicy", other, seed=2, n_steps=32, device="cpu").learn(500)
    env = monitored("saved")
    trained(VPG("MlpPolicy", env, seed=1, n_steps=32, device="cpu"), tmp_path / "checkpoints", total=500)
    before = {name: written(name) for name in ("saved", "other")}
    checkpoint = a_checkpoint(tmp_path / "checkpoints")
    for env in (monitored("other"), VecMonitor(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]))):
        model = resume(checkpoint, env=env)
        model.learn(500 - model.num_timesteps, reset_num_timesteps=False)
        env.close()
        assert written("saved") == before["saved"]
        assert written("other").startswith(before["other"])
        assert len(written("other")) > len(before["other"])


def rows(text):
    return [line.split(",") for line in text.splitlines()[2:]]


class WithLock(gym.Wrapper):
    """Cannot be pickled."""

    def __init__(self, env):
        super().__init__(env)
        self.lock = threading.Lock()


def locked():
    return WithLock(gym.make("CartPole-v1"))


def test_an_environment_that_cannot_be_pickled_restarts_its_episodes(tmp_path):
    model = VPG("MlpPolicy", VecNormalize(DummyVecEnv([locked])), n_steps=64, seed=0, device="cpu")
    with pytest.warns(
        UserWarning, match=r"will restart its episodes: .* cannot be pickled \(cannot pickle '_thread.lock'"
    ):
        trained(model, tmp_path)
    checkpoint = a_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"env=None: allowed is an environment, .* cannot be pickled"):
        resume(checkpoint)
    env = VecNormalize(DummyVecEnv([locked]))
    with pytest.warns(UserWarning, match=r"the episodes restart.*cannot be pickled"):
        other = resume(checkpoint, env=env)
    assert env.obs_rms.count > 1, "the statistics are there all the same"
    other.learn(100, reset_num_timesteps=False)
    assert env.envs[0].unwrapped.np_random_seed not in (None, 0), "not the first episodes again"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_environments_in_other_processes_restart_their_episodes(tmp_path):
    env = SubprocVecEnv([locked], start_method="fork")
    model = VPG("MlpPolicy", env, n_steps=64, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="SubprocVecEnv keeps the state of its sub-environments to itself"):
        trained(model, tmp_path, total=128)
    with pytest.warns(UserWarning, match="the episodes restart"):
        resume(tmp_path, env=env).learn(64, reset_num_timesteps=False)
    env.close()


def test_an_environment_of_another_make_restarts_its_episodes(tmp_path):
    trained(small(VPG, "Pendulum-v1"), tmp_path)
    with pytest.warns(UserWarning, match="of another make"):
        other = resume(a_checkpoint(tmp_path), env=make_vec_env("Pendulum-v1", 2, env_kwargs={"g": 3.0}))
    assert other.env.envs[0].unwrapped.g == 3.0
    other.learn(64, reset_num_timesteps=False)


def vectorised(n_envs=2, mode="vector_entry_point", **arguments):
    if mode == "sync":
        arguments["vector_kwargs"] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return GymnasiumVecEnv(gym.make_vec("CartPole-v1", n_envs, vectorization_mode=mode, **arguments))


OF_PICKLED_SYNC = ("argument of sub-environments", "vectorised environment")
MAKES = {
    "number": (vectorised, lambda: vectorised(4)),
    "registered argument": (vectorised, lambda: vectorised(sutton_barto_reward=True)),
    "argument of sub-environments": (
        lambda: vectorised(mode="sync"),
        lambda: vectorised(mode="sync", sutton_barto_reward=True),
    ),
    "kind": (vectorised, lambda: vectorised(mode="sync")),
    "vectorised environment": (lambda: vectorised(mode="sync"), lambda: make_vec_env("CartPole-v1", 2)),
    "wrapper": (vectorised, lambda: VecMonitor(vectorised())),
    "argument of gymnasium's wrapper": (
        lambda: DummyVecEnv([lambda: gym.wrappers.RescaleObservation(gym.make("Acrobot-v1"), -1, 1)]),
        lambda: DummyVecEnv([lambda: gym.wrappers.RescaleObservation(gym.make("Acrobot-v1"), -1, np.float32(1))]),
    ),
}


@pytest.mark.parametrize(
    "difference",
    [pytest.param(name, marks=_PICKLES_SYNC) if name in OF_PICKLED_SYNC else name for name in MAKES],
)
def test_the_given_environment_is_never_replaced_by_a_different_one(difference, tmp_path):
    make_saved, make_given = MAKES[difference]
    model = VPG("MlpPolicy", make_saved(), n_steps=16, seed=0, device="cpu").learn(64)
    sb3_pgext.save(model, tmp_path / "model")
    same = make_saved()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(tmp_path / "model", env=same).get_env() is same
    given = make_given()
    base = given.unwrapped
    inside = list(vars(base)["envs"]) if isinstance(base, DummyVecEnv) else base.env
    with pytest.warns(UserWarning, match="is of another make"):
        other = resume(tmp_path / "model", env=given)
    assert (list(vars(base)["envs"]) if isinstance(base, DummyVecEnv) else base.env) == inside
    assert other.n_envs == given.num_envs
    other.learn(64, reset_num_timesteps=False)  # it has not been closed


def test_an_environment_that_does_not_fit_is_refused(tmp_path):
    trained(small(VPG, normalize=True), tmp_path, total=128)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        resume(tmp_path, env=gym.make("Pendulum-v1"))
    for function in (load, resume):
        with pytest.raises(ValueError, match="allowed is one in a VecNormalize"):
            function(tmp_path, env=gym.make("CartPole-v1"))


def test_a_saved_model_predicts_as_it_did(tmp_path):
    model = small(ISPG, normalize=True).learn(300)
    sb3_pgext.save(model, tmp_path / "model")
    other = load(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(other.predict(observations, deterministic=True)[0], expected)
    env = VecNormalize(make_vec_env("CartPole-v1", 3))
    assert load(tmp_path / "model", env=env).learn(100).n_envs == 3
    with pytest.raises(ValueError, match="allowed is one where nothing is yet"):
        sb3_pgext.save(model, tmp_path / "model")


def test_the_device_is_chosen_anew(tmp_path, device):
    trained(small(ISPG), tmp_path, total=300)
    assert resume(tmp_path).device.type == "cpu", "where it was"
    model = resume(tmp_path, device=device)
    model.learn(200, reset_num_timesteps=False)
    assert model.policy.device.type == device
    assert {batch.log_prob.device.type for batch in model.replay_buffer.batches} == {device}
