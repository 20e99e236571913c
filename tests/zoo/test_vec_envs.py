"""Claim: a configuration or the command line chooses the kind of vectorised environment, and all else still works."""

import contextlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv
from joblib.externals.loky import get_reusable_executor
from rl_zoo3 import train as zoo_train
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_pgext import EnvPoolVecEnv, GymnasiumVecEnv, HalvesVecEnv, WorkerVecEnv
from sb3_pgext.cli import main
from sb3_pgext.compare.evaluation import Measurement
from sb3_pgext.compare.runs import execute, measurements
from sb3_pgext.compare.study import read_study
from sb3_pgext.zoo.experiments import experiment, model_of
from sb3_pgext.zoo.names import check_environment
from sb3_pgext.zoo.vec_envs import make_vec_env

_MINIMAL = {"policy": "MlpPolicy", "n_timesteps": 1000, "n_envs": 3, "n_steps": 16, "batch_size": 16}

# envpool gives Box bounds as doubles.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")


@contextlib.contextmanager
def _model(folder: Path, env_id: str = "CartPole-v1", **config: Any):
    with model_of(experiment("ppo", env_id, _MINIMAL | config, 7, folder)) as model:
        yield model


def _kinds(env: Any) -> list[type]:
    """The wrappers of SB3 around an environment, from the outside, and what is inside."""
    kinds = [type(env)]
    while hasattr(env, "venv"):
        env = env.venv
        kinds.append(type(env))
    return kinds


def test_without_vec_env_nothing_changes(tmp_path: Path) -> None:
    with _model(tmp_path) as model:
        assert _kinds(model.env) == [DummyVecEnv]


@pytest.mark.parametrize(("name", "kind"), [("dummy", DummyVecEnv), ("subproc", SubprocVecEnv)])
def test_rl_zoo3s_own_kinds(name: str, kind: type, tmp_path: Path) -> None:
    with _model(tmp_path, vec_env=name, n_envs=1) as model:
        assert _kinds(model.env) == [kind]


def test_gymnasiums_own_vectorised_environment_where_there_is_one(tmp_path: Path) -> None:
    """With the seed of the run, the settings of the environment, and the file of its episodes."""
    config = {"vec_env": "gymnasium", "env_kwargs": {"sutton_barto_reward": True}}
    with _model(tmp_path, **config) as model:
        assert _kinds(model.env) == [VecMonitor, GymnasiumVecEnv]
        inner = model.env.unwrapped.env.unwrapped
        assert isinstance(inner, CartPoleVectorEnv)
        model.learn(500)
        assert inner._sutton_barto_reward
        assert inner.np_random_seed == 7
    (file,) = tmp_path.glob("ppo/*/0.monitor.csv")
    episodes = load_results(str(file.parent))
    assert len(episodes) > 5
    assert set(episodes["r"]) == {-1.0}


def test_the_sub_environments_one_by_one_where_there_is_none(tmp_path: Path) -> None:
    with _model(tmp_path, "Acrobot-v1", vec_env="gymnasium") as model:
        assert _kinds(model.env) == [GymnasiumVecEnv]
        assert isinstance(model.env.unwrapped.env, SyncVectorEnv)
        model.env.reset()
        assert model.env.get_attr("np_random_seed") == [7, 8, 9]
        assert all(model.env.env_is_wrapped(Monitor))
    assert len(list(tmp_path.glob("ppo/*/*.monitor.csv"))) == 3


def test_or_where_they_have_a_wrapper(tmp_path: Path) -> None:
    wrapper = {"gymnasium.wrappers.RescaleObservation": {"min_obs": -1, "max_obs": 1}}
    with _model(tmp_path, "Acrobot-v1", vec_env="gymnasium", env_wrapper=[wrapper]) as model:
        assert (model.observation_space.high == 1).all()
    wrapper = {"gymnasium.wrappers.TimeAwareObservation": {}}
    with _model(tmp_path, vec_env="gymnasium", env_wrapper=[wrapper]) as model:
        assert isinstance(model.env.unwrapped.env, SyncVectorEnv)
        assert model.observation_space.shape == (5,)


def test_runs_over_sync_vector_env_are_those_over_dummy_vec_env(tmp_path: Path) -> None:
    learnt = []
    for name in ("dummy", "gymnasium"):
        folder = tmp_path / name
        folder.mkdir()
        with _model(folder, "Acrobot-v1", vec_env=name, normalize=True) as model:
            learnt.append(model.learn(100).policy.state_dict())
    for name, parameter in learnt[0].items():
        np.testing.assert_array_equal(parameter, learnt[1][name], err_msg=name)


@pytest.mark.parametrize("vec_env", ["gymnasium", "envpool"])
def test_normalisation_and_frame_stacks_go_around_it(vec_env: str, tmp_path: Path) -> None:
    if vec_env == "envpool":
        pytest.importorskip("envpool")
    with _model(tmp_path, vec_env=vec_env, normalize=True, frame_stack=2) as model:
        adapter = GymnasiumVecEnv if vec_env == "gymnasium" else EnvPoolVecEnv
        assert _kinds(model.env) == [VecFrameStack, VecNormalize, VecMonitor, adapter]
        model.learn(100)
        assert model.get_vec_normalize_env().obs_rms.count > 100
        assert len(model.ep_info_buffer) > 0


def test_envpool(tmp_path: Path) -> None:
    pytest.importorskip("envpool")
    with _model(tmp_path, vec_env="envpool", env_kwargs={"max_episode_steps": 4}) as model:
        assert _kinds(model.env) == [VecMonitor, EnvPoolVecEnv]
        np.testing.assert_array_equal(model.env.reset(), EnvPoolVecEnv("CartPole-v1", 3, seed=7).reset())
        model.learn(48)
        assert {info["l"] for info in model.ep_info_buffer} == {4}


@pytest.mark.parametrize(("name", "half"), [("halves", WorkerVecEnv), ("envpool_halves", EnvPoolVecEnv)])
def test_two_halves(name: str, half: type, tmp_path: Path) -> None:
    """The environment for evaluation has one sub-environment, and no halves."""
    if name == "envpool_halves":
        pytest.importorskip("envpool")
    with _model(tmp_path, vec_env=name, n_envs=2, normalize=True) as model:
        env = model.env.unwrapped
        assert isinstance(env, HalvesVecEnv)
        assert [type(each) for each in env.halves] == [half] * 2
        model.learn(64)
    (tmp_path / "other").mkdir()
    manager = experiment("ppo", "CartPole-v1", _MINIMAL | {"vec_env": name, "n_envs": 2}, 7, tmp_path / "other")
    manager.setup_experiment()
    with contextlib.closing(manager.create_envs(1, eval_env=True)) as env:
        assert not isinstance(env.unwrapped, HalvesVecEnv)


def _first_observations(kind: str) -> np.ndarray:
    with contextlib.closing(make_vec_env(kind, "CartPole-v1", {}, None, {}, None, [_cart_pole] * 2)) as env:
        env.seed(4)
        return env.reset()


def _cart_pole() -> gym.Env:
    return gym.make("CartPole-v1")


def test_workers_of_a_process_of_joblib() -> None:
    """A study trains in such processes, which have a way of their own to start others."""
    with get_reusable_executor(max_workers=1) as executor:
        for kind in ("halves", "subproc"):
            observations = executor.submit(_first_observations, kind).result(120)
            np.testing.assert_array_equal(observations, _first_observations("dummy"))


def test_a_game_that_only_envpool_has(tmp_path: Path) -> None:
    """rl_zoo3 takes its configuration from the entry `atari`."""
    pytest.importorskip("envpool")
    manager = experiment("ppo", "Breakout-v5", _MINIMAL | {"policy": "CnnPolicy", "vec_env": "envpool"}, 0, tmp_path)
    assert manager._is_atari
    with model_of(manager) as model:
        assert model.observation_space.shape == (4, 84, 84)
    with pytest.raises(ValueError, match="vec_env: allowed is 'envpool' only for an environment that gymnasium does"):
        experiment("ppo", "Breakout-v5", _MINIMAL, 0, tmp_path).setup_experiment()
    assert check_environment("Boxing-v5") == "Boxing-v5"
    with pytest.raises(ValueError, match="unknown environment 'Breakou-v5', did you mean 'Breakout-v5'"):
        check_environment("Breakou-v5")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"vec_env": "gym"},
            r"unknown vec_env 'gym' \(known: dummy, envpool, envpool_halves, gymnasium, hal",
        ),
        (
            {"vec_env": "envpool", "env_wrapper": "gymnasium.wrappers.TimeAwareObservation"},
            "env_wrapper: allowed is none with vec_env='envpool'",
        ),
        ({"vec_env": "halves"}, "number of sub-environments=3: allowed is an even one"),
        ({"vec_env": "envpool_halves"}, "n_envs=3: allowed is an even number with vec_env='envpool_halves'"),
        (
            {"vec_env": "gymnasium", "monitor_kwargs": {"allow_early_resets": False}},
            "monitor_kwargs: allow_early_resets: allowed are info_keywords and override_existing",
        ),
    ],
)
def test_what_a_kind_cannot_do_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        experiment("ppo", "CartPole-v1", _MINIMAL | config, 0, tmp_path).setup_experiment()


def _train(*flags: str) -> dict[str, Any]:
    """Train by the command line; the configuration that the run kept."""
    before = zoo_train.ExperimentManager
    assert main(["train", "--algo", "reinforce", "-n", "64", "--eval-freq", "32", *flags]) == 0
    assert zoo_train.ExperimentManager is before
    (kept,) = Path("logs").glob("reinforce/*/*/config.yml")
    return dict(yaml.unsafe_load(kept.read_text()))


def test_the_command_line_chooses_too(tmp_path: Path, monkeypatch) -> None:
    """And is kept with the run, which can be watched."""
    monkeypatch.chdir(tmp_path)
    assert _train("--vec-env", "gymnasium", "--seed", "3")["vec_env"] == "gymnasium"
    assert main(["enjoy", "--no-render", "-n", "20"]) == 0


def test_the_command_line_goes_before_the_configuration(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"policy": "MlpPolicy", "n_timesteps": 64, "n_episodes": 2, "vec_env": "gymnasium"}
    Path("mine.yml").write_text(yaml.safe_dump({"default": config}))
    assert _train("--conf-file", "mine.yml", "--vec-env", "dummy", "-params", "n_episodes:3") == config | {
        "vec_env": "dummy",
        "n_episodes": 3,
    }


def test_a_wrong_kind_on_the_command_line_is_one_line(capsys) -> None:
    assert main(["train", "--vec-env", "envpol"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown vec_env 'envpol', did you mean 'envpool'?")
    assert error.count("\n") == 1


@pytest.mark.parametrize("vec_env", ["gymnasium", "envpool"])
def test_a_study_trains_and_evaluates_over_it(vec_env: str, tmp_path: Path) -> None:
    if vec_env == "envpool":
        pytest.importorskip("envpool")
    path = tmp_path / "mine.yml"
    params = {"vec_env": vec_env, "n_envs": 2, "n_steps": 16, "batch_size": 32}
    study = {
        "environments": ["CartPole-v1"],
        "seeds": 1,
        "n_timesteps": 64,
        "evaluation": {"episodes": 3, "frequency": 32},
        "runs": {"PPO": {"algo": "ppo_cc", "params": params}},
    }
    path.write_text(yaml.safe_dump(study))
    (run,) = read_study(path).runs
    assert run.config["vec_env"] == vec_env
    outcome = execute(run, tmp_path)
    assert outcome.error is None, outcome.log.read_text()
    evaluations = measurements(run, tmp_path)
    assert [evaluation.timesteps for evaluation in evaluations] == [0, 32, 64]
    assert all(isinstance(evaluation, Measurement) and evaluation.mean_return > 5 for evaluation in evaluations)
