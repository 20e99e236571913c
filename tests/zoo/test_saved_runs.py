"""Claim: nothing that stands in a saved run is run, unless it is trusted."""

import shutil
from pathlib import Path

import pytest
import yaml
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_pgext.cli import main
from sb3_pgext.zoo.saved_runs import plain_config, plain_yaml, read_run

_CODE = "__import__('pathlib').Path('has_run').touch()"
_OBJECT = "!!python/object/apply:os.mkdir [has_run]"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(text):
    path = Path("config.yml")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        (f'normalize: "{_CODE}"', "normalize"),
        (f'policy_kwargs: "dict(log_std_init={_CODE})"', "policy_kwargs"),
        (f'policy_kwargs: "dict(**{_CODE})"', "policy_kwargs"),
        (f'policy_kwargs: "[{_CODE}]"', "policy_kwargs"),
        ("policy_kwargs: dict(features_extractor_class=nn.Linear)", "policy_kwargs"),
        ("policy_kwargs: dict(activation_fn=nn.__builtins__)", "policy_kwargs"),
        (f'monitor_kwargs: "{_CODE}"', "monitor_kwargs"),
        (f'replay_buffer_class: "{_CODE}"', "replay_buffer_class"),
        ("callback: [{subprocess.Popen: {args: [touch, has_run]}}]", "callback: subprocess.Popen"),
        ("callback: [{stable_baselines3.common.utils.os: {}}]", "callback"),
        ("callback: stable_baselines3.common.callbacks.evaluate_policy", "callback"),
        ("env_wrapper: {os.mkdir: {mode: 511}}", "env_wrapper: os.mkdir"),
        ("vec_env_wrapper: os.mkdir", "vec_env_wrapper: os.mkdir"),
        ("policy: subprocess.Popen", "policy: subprocess.Popen"),
        ("env_wrapper: gymnasium.no_such_module.Wrapper", "env_wrapper: gymnasium.no_such_module.Wrapper"),
        ("policy: sb3_pgext.no_such_module.Policy", "policy: sb3_pgext.no_such_module.Policy"),
        # Known, but they write, and delete, where they are told to.
        ("callback: [{sb3_pgext.CheckpointCallback: {every: 1, path: elsewhere, keep: 1}}]", "CheckpointCallback"),
        ("env_wrapper: [{gymnasium.wrappers.RecordVideo: {video_folder: elsewhere}}]", "RecordVideo"),
        ("env_wrapper: !!python/tuple [stable_baselines3.common.monitor.Monitor]", "Monitor"),
        ("vec_env_wrapper: {stable_baselines3.common.vec_env.VecMonitor: {filename: elsewhere}}", "VecMonitor"),
        (f"gamma: {_OBJECT}", "os.mkdir"),
        ("gamma: !!python/name:os.mkdir ''", "os.mkdir"),
        ("gamma: !!python/module:os ''", "os"),
        ("- a\n- list", "allowed is a mapping"),
        ("a: [", "allowed are plain values"),
    ],
)
def test_code_is_refused_by_name(text, entry):
    with pytest.raises(ValueError, match=r"^config\.yml: .*") as refused:
        plain_config(saved(text))
    assert entry in str(refused.value)
    assert not Path("has_run").exists()


def test_what_rl_zoo3_writes_is_read():
    text = """
!!python/object/apply:collections.OrderedDict
- - [normalize, "dict(norm_obs=True, norm_reward=False)"]
  - [policy, MlpPolicy]
  - [policy_kwargs, "dict(log_std_init=-2.7, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[64]))"]
  - [env_wrapper, [{gymnasium.wrappers.TimeAwareObservation: {}}]]
  - [vec_env_wrapper, [{stable_baselines3.common.vec_env.VecFrameStack: {n_stack: 4}}]]
  - [train_freq, !!python/tuple [1, episode]]
"""
    config = plain_config(saved(text))
    assert config["normalize"] == {"norm_obs": True, "norm_reward": False}
    networks = {"pi": [256, 256], "vf": [64]}
    assert config["policy_kwargs"] == {"log_std_init": -2.7, "activation_fn": nn.ReLU, "net_arch": networks}
    assert config["train_freq"] == (1, "episode")
    name = "!!python/name:stable_baselines3.common.torch_layers.NatureCNN ''"
    assert plain_yaml(saved(f"policy_kwargs: {{features_extractor_class: {name}}}")) == {
        "policy_kwargs": {"features_extractor_class": NatureCNN}
    }


@pytest.fixture(scope="module")
def _trained(tmp_path_factory):
    """A short training, started from a configuration with a wrapper and normalisation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))  # as of every test
        patch.chdir(tmp_path_factory.mktemp("trained"))
        train()
        return Path("logs").absolute()


@pytest.fixture
def run(_trained):
    shutil.copytree(_trained, "logs")
    return Path("logs/vpg/CartPole-v1_1")


def train():
    config = {"n_envs": 2, "n_timesteps": 400, "policy": "MlpPolicy", "n_steps": 32, "normalize": True}
    config |= {"policy_kwargs": {"net_arch": [8]}, "env_wrapper": ["gymnasium.wrappers.TimeAwareObservation"]}
    Path("mine.yml").write_text(yaml.safe_dump({"CartPole-v1": config}))
    flags = ["--conf-file", "mine.yml", "--seed", "3", "--device", "cpu", "--eval-freq", "100", "--eval-episodes", "1"]
    assert main(["train", "--algo", "vpg", "--checkpoint-every", "100", "--verbose", "0", *flags]) == 0


def test_a_saved_run_of_ours_is_plain(run):
    config, args = read_run(run)
    assert config["policy_kwargs"] == {"net_arch": [8]}
    assert (args["algo"], args["env"], args["checkpoint_every"]) == ("vpg", "CartPole-v1", 100)


@pytest.mark.parametrize("command", [["train", "--resume"], ["enjoy", "--algo", "vpg", "--no-render", "-n", "1", "-f"]])
@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yml", f'normalize: "{_CODE}"'), ("config.yml", _OBJECT), ("args.yml", f"env: {_OBJECT}")],
)
def test_the_commands_refuse_a_run_that_holds_code(command, name, text, run, capsys):
    (run / "CartPole-v1" / name).write_text(text)
    capsys.readouterr()
    assert main([*command, str(run if command[0] == "train" else "logs")]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    assert not Path("has_run").exists()


def test_a_run_that_is_trusted_is_read_as_rl_zoo3_reads_it(run):
    path = run / "CartPole-v1" / "config.yml"
    path.write_text("callback: some.package.Callback\n")
    with pytest.raises(ValueError, match=r"some\.package\.Callback would be run"):
        read_run(run)
    assert read_run(run, trust=True)[0] == {"callback": "some.package.Callback"}


@pytest.mark.parametrize("command", ["enjoy", "record-video"])
@pytest.mark.parametrize(
    ("folder", "env_id", "name"),
    [("logs", "sb3_pgext/Chain-v0", "sb3_pgext-Chain-v0"), ("rl-trained-agents", "CartPole-v1", "CartPole-v1")],
)
def test_it_is_the_files_that_rl_zoo3_opens_that_are_read(command, folder, env_id, name, capsys):
    """Also of a namespaced environment, and where rl_zoo3 keeps what it downloads."""
    saved_run = Path(folder, "reinforce", f"{name}_1")
    (saved_run / name).mkdir(parents=True)
    (saved_run / f"{name}.zip").touch()
    arguments = [command, "--folder", folder, "--env", env_id, "--no-render"]
    assert main(arguments) == 2
    assert f"{name}/config.yml: there is no such file" in capsys.readouterr().err
    for file in ("config.yml", "args.yml"):
        (saved_run / name / "config.yml").write_text("normalize: false")
        (saved_run / name / file).write_text(f"gamma: {_OBJECT}")
        assert main(arguments) == 2
        assert f"{name}/{file}: allowed are plain values" in capsys.readouterr().err
    assert not Path("has_run").exists()


def test_a_download_needs_trust(monkeypatch, capsys):
    arguments = ["enjoy", "--folder", "rl-trained-agents", "--no-render"]
    assert main(arguments) == 2
    assert "rl_zoo3 would download it and run what is in it: --trust allows that" in capsys.readouterr().err
    ran = []
    monkeypatch.setattr("sb3_pgext.zoo.commands.zoo_enjoy", lambda: ran.append(True))
    assert main([*arguments, "--trust"]) == 0
    assert ran
