"""Claim: every configuration that we ship is valid and makes a model, and an invalid one is refused by name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from gymnasium.error import DependencyNotInstalled
from rl_zoo3 import ALGOS

from sb3_pgext.cli import main
from sb3_pgext.zoo import ALGORITHMS
from sb3_pgext.zoo.configs import allowed_keys, check_config, config_path, read_config
from sb3_pgext.zoo.experiments import spaces_of
from sb3_pgext.zoo.overview import check_entry
from sb3_pgext.zoo.shipped import Entry, configs_folder, entries
from tests.environments import DICT, IMAGE, VECTOR


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: f"{entry.algo}-{entry.name}")
def test_each_entry_of_our_configurations_makes_a_model(entry: Entry) -> None:
    check_entry(entry)


def test_the_zoo_can_be_listed(capsys) -> None:
    assert main(["zoo", "list"]) == 0
    printed = capsys.readouterr().out
    for algo, algorithm in ALGORITHMS.items():
        assert algo in printed
        assert algorithm.__name__ in printed
        for name in yaml.safe_load(config_path(algo).read_text()):
            assert name in printed


# rl_zoo3 does not close the environments of a model that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_zoo_can_be_checked(monkeypatch, tmp_path: Path, capsys) -> None:
    for algo in ALGORITHMS:
        environment = "sb3_pgext/Chain-v0" if algo == "ew" else "CartPole-v1"
        _write(tmp_path / f"{algo}.yml", {environment: _MINIMAL, "default": _MINIMAL, "atari": _MINIMAL})
    monkeypatch.setattr("sb3_pgext.zoo.shipped.configs_folder", lambda: tmp_path)
    assert main(["zoo", "check"]) == 0
    n = 3 * len(ALGORITHMS)
    assert f"{n} of {n} configurations are valid" in capsys.readouterr().out
    wrong = {"CartPole-v1": _MINIMAL | {"gamma": 2}, "default": _MINIMAL | {"gama": 1}, "atari": _MINIMAL | {"gama": 1}}
    _write(tmp_path / "vpg.yml", wrong)
    assert main(["zoo", "check"]) == 1
    printed = capsys.readouterr().out
    assert "vpg.yml: CartPole-v1: ValueError: gamma=2: allowed is a number in [0, 1]" in printed
    assert "vpg.yml: default: ValueError:" in printed
    assert "vpg.yml: atari: ValueError: atari: unknown key 'gama', did you mean 'gamma'?" in printed
    assert f"{n - 3} of {n} configurations are valid" in printed


def test_an_environment_that_is_not_installed_is_no_mistake(monkeypatch, tmp_path: Path, capsys) -> None:
    for algo in ALGORITHMS:
        _write(tmp_path / f"{algo}.yml", {"CartPole-v1": _MINIMAL, "Hopper-v5": _MINIMAL})
    monkeypatch.setattr("sb3_pgext.zoo.shipped.configs_folder", lambda: tmp_path)

    def without_mujoco(entry):
        if entry.name == "Hopper-v5":
            raise DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr("sb3_pgext.zoo.overview.check_entry", without_mujoco)
    assert main(["zoo", "check"]) == 0
    printed = capsys.readouterr().out
    assert "Hopper-v5: not installed, not checked: MuJoCo is not installed" in printed
    assert f"{len(ALGORITHMS)} of {len(ALGORITHMS)} configurations are valid" in printed

    def without_mujoco_and_wrong(entry):
        without_mujoco(entry._replace(name="Pendulum-v1") if entry.algo == "vpg" else entry)
        raise ValueError("gama")

    monkeypatch.setattr("sb3_pgext.zoo.overview.check_entry", without_mujoco_and_wrong)
    assert main(["zoo", "check"]) == 1
    assert "vpg.yml: Hopper-v5: ValueError: gama" in capsys.readouterr().out


@pytest.mark.parametrize("algo", sorted(ALGOS))
def test_rl_zoo3s_own_configurations_are_valid(algo: str) -> None:
    entries = yaml.safe_load(config_path(algo).read_text())
    keys = {key for entry in entries.values() for key in entry}
    assert keys <= allowed_keys(ALGOS[algo])


def test_configurations_of_a_checkout_stand_beside_the_package() -> None:
    assert config_path("reinforce") == Path(__file__).parents[2] / "zoo_configs" / "reinforce.yml"
    assert config_path("ppo").parent.parent.name == "rl_zoo3"


def test_configurations_of_an_installed_package_stand_inside_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "zoo_configs").mkdir()
    monkeypatch.setattr("sb3_pgext.__file__", str(tmp_path / "__init__.py"))
    assert configs_folder() == tmp_path / "zoo_configs"


def _write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


_MINIMAL = {"policy": "MlpPolicy", "n_timesteps": 1000}


class _Seen(gym.Env):
    """Shows what it is told to."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, observation_space: gym.Space):
        self.observation_space = observation_space


@pytest.fixture
def seen() -> Iterator[None]:
    """Environments with a Dict, an image and a vector as their observations."""
    kinds = {"Dict-v0": DICT, "Image-v0": IMAGE, "Vector-v0": VECTOR}
    for env_id, space in kinds.items():
        gym.register(env_id, _Seen, kwargs={"observation_space": space})
    yield
    spaces_of.cache_clear()
    for env_id in kinds:
        del gym.registry[env_id]


@pytest.mark.parametrize("algo", ["reinforce", "ppo_cc"])
def test_a_default_configuration_has_the_policy_that_fits_the_observations(algo: str, seen) -> None:
    assert read_config(algo, "Dict-v0")["policy"] == "MultiInputPolicy"
    assert read_config(algo, "Vector-v0")["policy"] == "MlpPolicy"


@pytest.mark.parametrize(
    ("policy", "env_id", "fitting"),
    [
        ("MlpPolicy", "Dict-v0", "MultiInputPolicy"),
        ("MultiInputPolicy", "Vector-v0", "MlpPolicy"),
        ("CnnPolicy", "Vector-v0", "MlpPolicy"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_training(policy, env_id, fitting, seen, tmp_path) -> None:
    path = _write(tmp_path / "mine.yml", {env_id: _MINIMAL | {"policy": policy}})
    with pytest.raises(
        ValueError, match=f"policy='{policy}': allowed is '{fitting}' with the observations of {env_id}"
    ):
        read_config("ppo", env_id, path)
    wrapped = {env_id: _MINIMAL | {"policy": policy, "env_wrapper": "gymnasium.wrappers.FlattenObservation"}}
    assert read_config("ppo", env_id, _write(tmp_path / "mine.yml", wrapped))["policy"] == policy


def test_an_image_may_be_flattened_or_convolved(seen, tmp_path: Path) -> None:
    for policy in ("MlpPolicy", "CnnPolicy"):
        path = _write(tmp_path / "mine.yml", {"Image-v0": _MINIMAL | {"policy": policy}})
        assert read_config("ppo", "Image-v0", path)["policy"] == policy


def test_an_unknown_key_is_refused_with_file_environment_nearest_key_and_all_allowed(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.yml", {"CartPole-v1": _MINIMAL | {"baselin": "none"}})
    with pytest.raises(
        ValueError, match=r"mine\.yml: CartPole-v1: unknown key 'baselin', did you mean 'baseline'"
    ) as error:
        check_config("reinforce", "CartPole-v1", path)
    for key in ("n_episodes", "n_critic_updates", "n_envs", "normalize", "env_wrapper", "callback", "frame_stack"):
        assert f" {key}," in str(error.value)


def test_what_rl_zoo3_sets_itself_may_not_stand_in_a_configuration(tmp_path: Path) -> None:
    for key in ("seed", "device", "env", "verbose", "tensorboard_log"):
        path = _write(tmp_path / "mine.yml", {"CartPole-v1": _MINIMAL | {key: 0}})
        with pytest.raises(ValueError, match=f"unknown key '{key}'"):
            check_config("reinforce", "CartPole-v1", path)


def test_keys_are_those_of_the_algorithm(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.yml", {"CartPole-v1": _MINIMAL | {"n_episodes": 4}})
    check_config("reinforce", "CartPole-v1", path)
    with pytest.raises(ValueError, match="unknown key 'n_episodes'"):
        check_config("ppo", "CartPole-v1", path)
    assert "noise_type" in allowed_keys(ALGOS["td3"])
    assert "noise_type" not in allowed_keys(ALGOS["reinforce"])


def test_an_unknown_parameter_of_the_command_line_is_refused() -> None:
    check_config("reinforce", "CartPole-v1", params={"n_episodes": 4})
    with pytest.raises(ValueError, match="-params: unknown key 'n_episode', did you mean 'n_episodes'"):
        check_config("reinforce", "CartPole-v1", params={"n_episode": 4})


@pytest.mark.parametrize("key", ["policy", "n_timesteps"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.yml", {"default": {k: v for k, v in _MINIMAL.items() if k != key}})
    with pytest.raises(ValueError, match=f"the key '{key}' is missing"):
        read_config("reinforce", "CartPole-v1", path)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "CartPole-v1: [1]", "CartPole-v1: 3", "{", "", "Acrobot-v1: {policy: MlpPolicy}"]
)
def test_a_malformed_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yml"):
        read_config("reinforce", "CartPole-v1", _write(tmp_path / "mine.yml", content))


@pytest.mark.parametrize("name", ["missing.yml", "missing.py", "no_such_module"])
def test_a_missing_file_or_module_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no configuration.*'{name}'"):
        read_config("reinforce", "CartPole-v1", name)


def test_a_python_file_is_read_as_rl_zoo3_reads_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.py", f"hyperparams = {{'CartPole-v1': {_MINIMAL}}}")
    assert read_config("reinforce", "CartPole-v1", path) == _MINIMAL


@pytest.mark.parametrize(
    ("known", "entry"),
    [
        (["Pendulum-v1", "Pendulum-v0", "default"], "Pendulum-v1"),
        (["Pendulum-v0", "Pendulum-v10", "Pendulum-v9", "default"], "Pendulum-v10"),
        (["InvertedPendulum-v1", "Pendulum-v0-x", "PendulumXv1", "default"], "default"),
        (["default", "atari"], "default"),
    ],
)
def test_the_latest_other_version_of_an_environment_comes_before_the_default(known, entry, tmp_path: Path) -> None:
    path = tmp_path / "vpg.yml"
    _write(path, {name: _MINIMAL | {"n_steps": 2 + i} for i, name in enumerate(known)})
    assert read_config("vpg", "Pendulum-v1", str(path))["n_steps"] == 2 + known.index(entry)
    changed = path.stat().st_mtime_ns
    _write(path, {name: _MINIMAL | {"n_steps": 2 + i} for i, name in enumerate(["Pendulum-v1", *known[1:]])})
    os.utime(path, ns=(changed, changed))
    assert read_config("vpg", "Pendulum-v1", str(path))["n_steps"] == 2, "the file has changed"


@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper", "callback"])
def test_what_is_wrapped_is_of_its_own_version_alone(key, tmp_path: Path) -> None:
    path = tmp_path / "vpg.yml"
    wrapped = _MINIMAL | {key: "ae.wrapper.AutoencoderWrapper"}
    _write(path, {"Pendulum-v0": _MINIMAL | {"n_steps": 3}, "Pendulum-v9": wrapped, "default": _MINIMAL})
    assert read_config("vpg", "Pendulum-v1", str(path))["n_steps"] == 3
    _write(path, {"Pendulum-v9": wrapped, "default": _MINIMAL})
    assert read_config("vpg", "Pendulum-v1", str(path)) == _MINIMAL


def test_a_mistake_is_named_by_the_entry_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "vpg.yml"
    _write(path, {"Pendulum-v0": _MINIMAL | {"gama": 1}})
    with pytest.raises(ValueError, match=r"vpg\.yml: Pendulum-v0: unknown key 'gama'"):
        read_config("vpg", "Pendulum-v1", str(path))


@pytest.mark.parametrize("content", [b"CartPole-v1: {policy: M\xe9lange}", b"CartPole-v1: [1, 2"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yml").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.yml: allowed is YAML, in UTF-8"):
        check_config("reinforce", "CartPole-v1", str(tmp_path / "mine.yml"))


@pytest.mark.parametrize(
    "params",
    [
        {"gradient": "sampled", "weight_clip": 2.0},
        {"gradient": "all_action", "n_action_samples": 4},
        {"target_entropy": -0.3},
        {"train_freq": [1, "episode"], "gradient_steps": -1},
        {"replay_buffer_class": "HerReplayBuffer", "replay_buffer_kwargs": "dict(n_sampled_goal=4)"},
        {"noise_type": "normal", "noise_std": 0.1},
    ],
)
def test_what_rl_zoo3_makes_of_a_replay_is_allowed(params: dict[str, Any]) -> None:
    check_config("opac", "Pendulum-v1", params=params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gradient": "allaction"}, "gradient='allaction': allowed is one of"),
        ({"gradient": "all_action", "n_action_samples": None}, "n_action_samples=None: allowed is 2 or more"),
        ({"use_sde": True, "gradient": "sampled"}, "use_sde=True: allowed is False with gradient='sampled'"),
        ({"n_action_samples": 4}, "n_action_samples=4: allowed is None where all actions are enumerated"),
        ({"weight_clip": 2.0}, "weight_clip=2.0: allowed is None with gradient='auto': only 'sampled' has weights"),
        ({"ent_coef": "automatic_x"}, "ent_coef='automatic_x': allowed is a number >= 0, 'auto'"),
        ({"learning_starts": 200, "buffer_size": 100}, "learning_starts=200: allowed is less than the buffer's size"),
        ({"target_entropy": 1.0}, "target_entropy=1.0: allowed is 'auto' or a number in \\[-inf, 0.6931\\]"),
        ({"train_freq": [1, "epoch"]}, r"train_freq=\(1, 'epoch'\): allowed is a number of steps"),
    ],
)
def test_what_a_replay_cannot_be_trained_with_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"-params: {message}"):
        check_config("opac", "Pendulum-v1", params=params)


def test_actions_that_an_algorithm_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sacd\.yml: default: action_space=Box.*: allowed is Discrete, MultiDiscrete"):
        read_config("sacd", "Pendulum-v1")


def test_what_sb3_refuses_is_refused_with_the_place() -> None:
    """SB3's PPO asserts, and names no file."""
    with pytest.raises(ValueError, match=r"-params: `batch_size` must be greater than 1"):
        check_config("ppo_cc", "CartPole-v1", params={"batch_size": 1})
