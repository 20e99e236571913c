"""Claim: the commands train, enjoy and compare from the shell, and a mistake costs one clear line and status 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sb3_pgext import __version__
from sb3_pgext.cli import main
from sb3_pgext.zoo import ALGORITHMS


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run_config(folder: str) -> dict:
    (path,) = Path(folder).glob("*/config.yml")
    return yaml.unsafe_load(path.read_text())


def test_train_then_enjoy_with_the_defaults(capsys) -> None:
    assert main(["train", "-n", "600", "--eval-freq", "300", "--eval-episodes", "1", "--device", "cpu"]) == 0
    config = _run_config("logs/reinforce/CartPole-v1_1")
    assert "n_episodes" in config, "the configuration is not zoo_configs/reinforce.yml"
    assert Path("logs/reinforce/CartPole-v1_1/best_model.zip").is_file()
    capsys.readouterr()

    assert main(["enjoy", "--no-render", "-n", "200", "--load-best", "--device", "cpu"]) == 0
    assert "Mean reward" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_of_ours_trains_and_can_be_watched(algo: str, capsys) -> None:
    of_env = ["--algo", algo, "--env", "sb3_pgext/Gridworld-v0" if algo == "ew" else "CartPole-v1"]
    assert main(["train", *of_env, "-n", "100", "--eval-freq", "-1", "--device", "cpu"]) == 0
    assert main(["enjoy", *of_env, "--no-render", "-n", "10", "--device", "cpu"]) == 0


def test_a_trained_agent_is_filmed() -> None:
    assert main(["train", "-n", "100", "--eval-freq", "-1", "--device", "cpu"]) == 0
    assert main(["record-video", "-n", "5", "-o", "videos"]) == 0
    (video,) = Path("videos").glob("*.mp4")
    assert video.stat().st_size > 0


def test_rl_zoo3s_flags_reach_rl_zoo3(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yml"
    mine.write_text("CartPole-v1: {n_envs: 2, n_timesteps: 1.0e+9, policy: MlpPolicy, n_episodes: 2}")
    flags = ["--conf-file", str(mine), "-params", "n_episodes:3", "baseline:'none'", "-f", "elsewhere", "--seed", "5"]
    assert main(["train", *flags, "-n", "100", "--eval-freq", "-1", "--save-freq", "50"]) == 0
    config = _run_config("elsewhere/reinforce/CartPole-v1_1")
    assert config["n_envs"] == 2
    assert config["n_episodes"] == 3
    assert config["baseline"] == "none"
    assert list(Path("elsewhere/reinforce/CartPole-v1_1").glob("rl_model_*_steps.zip"))

    assert main(["enjoy", "-f", "elsewhere", "--no-render", "-n", "10", "--load-last-checkpoint"]) == 0


def test_training_continues_from_a_trained_agent() -> None:
    short = ["-n", "100", "--eval-freq", "-1", "--device", "cpu"]
    assert main(["train", *short]) == 0
    assert main(["train", *short, "-i", "logs/reinforce/CartPole-v1_1/CartPole-v1.zip"]) == 0
    assert Path("logs/reinforce/CartPole-v1_2/CartPole-v1.zip").is_file()


def test_hyperparameters_are_optimised_and_a_trial_is_trained_again() -> None:
    short = ["-n", "200", "--device", "cpu", "--storage", "study.log", "--study-name", "s"]
    assert main(["train", *short, "--optimize", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots"]) == 0
    assert main(["train", *short, "--trial-id", "1", "--eval-freq", "-1"]) == 0
    # The numbers of the second trial stand in the run's configuration.
    assert {"max_grad_norm", "policy_kwargs"} <= _run_config("logs/reinforce/CartPole-v1_2").keys()


def test_the_algorithms_of_sb3_train_from_rl_zoo3s_configurations() -> None:
    assert main(["train", "--algo", "ppo", "-n", "256", "--eval-freq", "-1", "--verbose", "0"]) == 0
    assert _run_config("logs/ppo/CartPole-v1_1")["n_epochs"] == 20


def test_an_environment_of_another_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('MyCartPole-v0', CartPoleEnv, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--env", "MyCartPole-v0", "-n", "100", "--eval-freq", "-1"]
    assert main(["train", *flags]) == 2
    assert main(["train", *flags, "--gym-packages", "my_envs"]) == 0
    assert Path("logs/reinforce/MyCartPole-v0_1/MyCartPole-v0.zip").is_file()


# rl_zoo3 does not close the environments of a model that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algo", "reinforc"], "unknown algorithm 'reinforc', did you mean 'reinforce'?"),
        (["train", "--env", "CartPole"], "unknown environment 'CartPole', did you mean 'CartPole-v1'?"),
        (["train", "-params", "gama:0.9"], "-params: unknown key 'gama', did you mean 'gamma'?"),
        (["train", "-params", "baseline:none"], "-params: name 'none' is not defined"),
        (["train", "-params", "baseline:'nought'"], "baseline='nought'"),
        (["train", "--conf-file", "nothing.yml"], "there is no configuration file 'nothing.yml'"),
        (["train", "-i", "nothing.zip"], "--trained-agent nothing.zip: there is no such .zip file"),
        (["train", "--gym-packages", "no_such_envs"], "unknown package of environments 'no_such_envs'"),
        (["enjoy", "--algo", "pppo"], "unknown algorithm 'pppo', did you mean 'ppo'?"),
        (["record-video"], "train it first: sb3-pgext train --algo reinforce --env CartPole-v1"),
        (["enjoy", "--no-render"], "train it first: sb3-pgext train --algo reinforce --env CartPole-v1"),
        (["compare", "dem"], "unknown study 'dem', did you mean 'demo'?"),
        (["compare", "demo", "--jobs", "0"], "jobs must be at least 1, not 0"),
        (["compare", "demo", "--backend", "threading"], "backend='threading': allowed is one of 'dask', 'loky',"),
        (["compare", "--env", "CartPole-v1", "--algos", "pppo"], "unknown algorithm 'pppo', did you mean 'ppo'?"),
        (["compare", "--env", "CartPole-v1", "--algos", "ppo", "ppo"], "algos must be a list of one or more different"),
        (["compare", "--env", "CartPole-v1", "--algos", "ppo", "--seeds", "0"], "seeds must be a whole number of at"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["compare"],
        ["compare", "demo", "--job-count", "2"],
        ["compare", "demo", "--env", "CartPole-v1"],
        ["compare", "demo", "--seeds", "2"],
        ["compare", "--env", "CartPole-v1"],
    ],
)
def test_a_mistaken_command_line_is_status_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_a_failure_of_the_training_itself_keeps_its_traceback(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Broken(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        raise ValueError('broken inside')\n"
        "gymnasium.register('Broken-v0', Broken, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="broken inside"):
        main(["train", "--env", "Broken-v0", "--gym-packages", "broken_envs", "-n", "100", "--eval-freq", "-1"])


def test_a_missing_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    for module in [name for name in sys.modules if name.startswith(("sb3_pgext.zoo", "sb3_pgext.compare"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("sb3_pgext.zoo", raising=False)
    assert main(["train"]) == 2
    assert 'rl_zoo3 is not installed: pip install "sb3-pgext[zoo,compare]"' in capsys.readouterr().err


def test_help_of_train_is_rl_zoo3s(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "usage: sb3-pgext train" in out
    assert "--optimization-log-path" in out
    assert "reinforce" in out


@pytest.mark.parametrize("command", ["enjoy", "record-video"])
def test_help_names_trust(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert "--trust" in out
    assert "--load-checkpoint" in out


def test_version_in_a_process_of_its_own() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sb3_pgext.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == f"sb3-pgext {__version__}"
