"""Claim: the commands train, enjoy and compare from the shell, and a mistake costs one clear line and status 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sb3_pgext import __version__, arguments
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


_MODULES_OF_EXTRAS = "huggingface_sb3 jinja2 joblib optuna requests rich rl_zoo3 rliable scipy seaborn"
_WITHOUT_EXTRAS = """
import sys

sys.modules |= dict.fromkeys({modules!r}.split())
from sb3_pgext.cli import main

for arguments in {commands!r}:
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    print("status", status)
"""


def _without_extras(*commands: list[str]) -> tuple[str, str]:
    """Run commands in a process in which none of the modules that extras bring can be imported."""
    code = _WITHOUT_EXTRAS.format(modules=_MODULES_OF_EXTRAS, commands=commands)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout, ran.stderr


def test_help_and_the_list_of_configurations_need_no_extra() -> None:
    names = ("train", "enjoy", "record-video", "compare", "variance", "zoo", "push-to-hub", "load-from-hub")
    out, err = _without_extras(["--help"], *([name, "--help"] for name in names), ["zoo", "list"])
    assert out.count("status 0") == len(names) + 2, err
    assert "--checkpoint-every" in out
    assert "--trust" in out
    assert "reinforce: REINFORCE" in out


def test_a_missing_extra_is_named_with_a_command_that_installs_it() -> None:
    commands = ["train"], ["zoo", "check"], ["compare", "demo"], ["variance", "--vary", "baseline=none"]
    out, err = _without_extras(*commands)
    assert out.count("status 2") == 4
    lines = err.splitlines()
    checkout = Path(__file__).parents[1]
    assert [line.split(": ")[-1] for line in lines] == [
        f'pip install -e "{checkout}[{extra}]"' for extra in ("zoo", "zoo", "compare", "compare")
    ]
    assert lines[0].startswith("error: huggingface_sb3 is not installed: ")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "sb3-pgext[zoo]"'),
        ({"url": "file:///gone/sb3_pgext-0.1.0-py3-none-any.whl"}, 'pip install "sb3-pgext[zoo]"'),
        ({"url": Path(__file__).as_uri()}, f'pip install "{__file__}[zoo]"'),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git"}},
            'pip install "sb3-pgext[zoo] @ git+https://example.org/r.git"',
        ),
    ],
    ids=["index", "file that is gone", "file", "repository"],
)
def test_an_installed_package_names_where_it_came_from(origin: object, command: str, monkeypatch, tmp_path) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(arguments, "__file__", str(tmp_path / "sb3_pgext" / "arguments.py"))
    monkeypatch.setattr(arguments, "distribution", lambda _: Installed())
    assert arguments.installing("zoo") == command


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
