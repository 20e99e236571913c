"""Claim: a study file gives exactly the runs it names, and a wrong one is refused before anything is trained."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rl_zoo3 import ALGOS

from sb3_pgext.compare import study as study_module
from sb3_pgext.compare.study import Evaluation, find_study, quick_study, read_study
from sb3_pgext.zoo.configs import merge, read_config
from sb3_pgext.zoo.shipped import configs_folder

_STUDY: dict[str, Any] = {
    "environments": ["CartPole-v1", "Acrobot-v1"],
    "seeds": 2,
    "n_timesteps": 1000,
    "evaluation": {"frequency": 100, "episodes": 3, "deterministic": False},
    "runs": {"ours": {"algo": "reinforce", "params": {"gamma": 0.5}}, "theirs": {"algo": "ppo"}},
}


def _read(tmp_path: Path, **changes: Any):
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump({k: v for k, v in (_STUDY | changes).items() if v is not None}))
    return read_study(path)


def test_there_is_a_run_for_each_label_environment_and_seed(tmp_path: Path) -> None:
    study = _read(tmp_path)
    assert study.name == "mine"
    assert study.labels == ["ours", "theirs"]
    assert study.environments == ["CartPole-v1", "Acrobot-v1"]
    expected = {(label, e, s) for label in ("ours", "theirs") for e in ("CartPole-v1", "Acrobot-v1") for s in (0, 1)}
    assert {(run.label, run.environment, run.seed) for run in study.runs} == expected
    assert len(study.runs) == 8
    assert all(run.evaluation == Evaluation(100, 3, False) for run in study.runs)


def test_a_runs_settings_are_the_zoos_with_the_studys_on_top(tmp_path: Path) -> None:
    run = _read(tmp_path).runs[0]
    zoo = read_config("reinforce", "CartPole-v1")
    assert run.config == zoo | {"gamma": 0.5, "n_timesteps": 1000}
    assert zoo.get("gamma") != 0.5


def test_a_configuration_of_another_environment_is_used_with_a_note(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    runs = {"theirs": {"algo": "trpo"}, "ours": {"algo": "npg"}}
    environments = ["Swimmer-v5", "CartPole-v1", "Reacher-v5", "HalfCheetah-v5"]
    study = _read(tmp_path, runs=runs, environments=environments)
    assert study.notes == (
        "theirs on Swimmer-v5: no tuned configuration; using that of Swimmer-v4",
        "theirs on Reacher-v5: no tuned configuration; using the default",
        "theirs on HalfCheetah-v5: no tuned configuration; using that of HalfCheetah-v4",
    )
    assert next(run.config["gamma"] for run in study.runs if run.label == "theirs") == 0.9999  # Swimmer-v4's


def test_a_parameter_set_to_null_is_taken_out_of_the_configuration(tmp_path: Path) -> None:
    runs = {
        "no critic": {
            "algo": "reinforce",
            "params": {"baseline": "none", "n_critic_updates": None, "batch_size": None},
        }
    }
    run = _read(tmp_path, runs=runs, environments=["Acrobot-v1"]).runs[0]
    assert run.config["baseline"] == "none"
    assert "n_critic_updates" in read_config("reinforce", "Acrobot-v1")
    assert "n_critic_updates" not in run.config
    assert merge({"a": 1, "b": 2}, {"b": None, "c": 3, "d": None}) == {"a": 1, "c": 3}


def test_seeds_may_be_a_list(tmp_path: Path) -> None:
    assert {run.seed for run in _read(tmp_path, seeds=[7, 3]).runs} == {7, 3}


def test_a_run_may_have_environments_and_seeds_of_its_own(tmp_path: Path) -> None:
    runs = {
        "a": {"algo": "ppo", "seeds": {"CartPole-v1": 1, "Acrobot-v1": [0]}},
        "b": {"algo": "a2c", "seeds": [1, 7], "environments": ["Acrobot-v1"]},
        "c": {"algo": "reinforce"},
    }
    study = _read(tmp_path, runs=runs)
    found = [(run.environment, run.seed, run.label) for run in study.runs]
    assert found == [
        *(("CartPole-v1", 0, "a"), ("CartPole-v1", 0, "c"), ("CartPole-v1", 1, "c")),
        *(("Acrobot-v1", 0, "a"), ("Acrobot-v1", 0, "c"), ("Acrobot-v1", 1, "b"), ("Acrobot-v1", 1, "c")),
        ("Acrobot-v1", 7, "b"),
    ]


def test_seeds_by_environment(tmp_path: Path) -> None:
    study = _read(tmp_path, seeds={"Acrobot-v1": [5]}, runs={"ours": {"algo": "reinforce"}})
    assert [(run.environment, run.seed) for run in study.runs][-2:] == [("CartPole-v1", 2), ("Acrobot-v1", 5)]


def test_settings_by_environment(tmp_path: Path) -> None:
    study = _read(tmp_path, n_timesteps={"Acrobot-v1": 50}, threshold={"CartPole-v1": 475})
    steps = {run.environment: run.n_timesteps for run in study.runs if run.label == "theirs"}
    assert steps == {"CartPole-v1": 100_000, "Acrobot-v1": 50}
    assert study.thresholds == {"CartPole-v1": 475}
    evaluation = {"frequency": {"Acrobot-v1": 5}, "episodes": {"CartPole-v1": 7}}
    study = _read(tmp_path, evaluation=evaluation, n_timesteps=1000)
    found = {run.environment: (run.evaluation.frequency, run.evaluation.episodes) for run in study.runs}
    assert found == {"CartPole-v1": (1000, 7), "Acrobot-v1": (5, 10)}
    assert _read(tmp_path, threshold=-100.5).thresholds == {"CartPole-v1": -100.5, "Acrobot-v1": -100.5}


def test_defaults(tmp_path: Path) -> None:
    study = _read(tmp_path, seeds=None, evaluation=None, n_timesteps=None)
    assert {run.seed for run in study.runs} == {0, 1, 2}
    run = next(run for run in study.runs if run.label == "theirs" and run.environment == "CartPole-v1")
    assert run.n_timesteps == run.config["n_timesteps"] == 100_000
    assert run.evaluation == Evaluation(10_000, 10, True)


@pytest.mark.parametrize(("n_timesteps", "frequency"), [(100_000, 10_000), (3_000, 1_000), (400, 400)])
def test_a_short_training_is_not_evaluated_for_longer_than_it_trains(
    n_timesteps: int, frequency: int, tmp_path: Path
) -> None:
    assert _read(tmp_path, evaluation=None, n_timesteps=n_timesteps).runs[0].evaluation.frequency == frequency


def test_every_setting_changes_the_name_of_a_runs_folder(tmp_path: Path, monkeypatch) -> None:
    def name(**changes: Any) -> str:
        return _read(tmp_path, **changes).runs[0].folder_name

    first = name()
    assert name() == first
    assert first.startswith("ours_CartPole-v1_0_")
    others = [
        name(seeds=[1]),
        name(n_timesteps=999),
        name(evaluation={"frequency": 50, "episodes": 3, "deterministic": False}),
        name(evaluation={"frequency": 100, "episodes": 4, "deterministic": False}),
        name(evaluation={"frequency": 100, "episodes": 3, "deterministic": True}),
        name(environments=["Acrobot-v1"]),
        name(runs={"ours": {"algo": "reinforce", "params": {"gamma": 0.6}}}),
        name(runs={"ours": {"algo": "a2c", "params": {"gamma": 0.5}}}),
        name(runs={"mine": {"algo": "reinforce", "params": {"gamma": 0.5}}}),
    ]
    monkeypatch.setitem(study_module.VERSIONS, "torch", "0")
    others.append(name())
    assert len({first, *others}) == len(others) + 1
    (tmp_path / "envs_of_study.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    others.append(name(gym_packages=["envs_of_study"]))
    (tmp_path / "envs_of_study.py").write_text("# another reward")
    others.append(name(gym_packages=["envs_of_study"]))
    # What does not concern the run does not.
    monkeypatch.undo()
    assert name(seeds=9, threshold=3) == first


def test_labels_that_differ_only_in_marks_have_folders_of_their_own(tmp_path: Path) -> None:
    study = _read(tmp_path, runs={"a b": {"algo": "ppo"}, "a/b": {"algo": "ppo"}}, seeds=1)
    assert len({run.folder_name for run in study.runs}) == len(study.runs)
    assert not any("/" in run.folder_name or " " in run.folder_name for run in study.runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environments": ["CartPole-v9"]}, "unknown environment 'CartPole-v9', did you mean 'CartPole-v"),
        ({"environments": []}, "environments must be a list of one or more different entries"),
        ({"environments": "CartPole-v1"}, "environments must be a list, not 'CartPole-v1'"),
        ({"environments": ["CartPole-v1"] * 2}, "different entries"),
        ({"environments": None}, "a study: the key 'environments' is missing"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"seeds": []}, "seeds must be a list of one or more different entries"),
        ({"seeds": [1, 1]}, "different entries"),
        ({"seeds": [-1]}, "seeds: a seed=-1: allowed is a whole number >= 0"),
        ({"seeds": True}, "seeds must be a whole number"),
        ({"n_timesteps": 0}, "n_timesteps must be a whole number of at least 1, not 0"),
        (
            {"n_timesteps": "1e5"},
            "n_timesteps must be a whole number of at least 1, not '1e5' (YAML takes it for text: ",
        ),
        (
            {"n_timesteps": {"CartPole": 10}},
            "unknown environment of n_timesteps 'CartPole', did you mean 'CartPole-v1'",
        ),
        ({"evaluation": {"frequency": 0}}, "evaluation: frequency must be a whole number"),
        ({"evaluation": {"episodes": {"CartPole": 5}}}, "unknown environment of episodes 'CartPole'"),
        ({"evaluation": {"episodes": 1.5}}, "evaluation: episodes must be a whole number"),
        ({"evaluation": {"freqency": 3}}, "unknown key of evaluation 'freqency', did you mean 'frequency'"),
        ({"evaluation": {"deterministic": "no"}}, "evaluation: deterministic='no': allowed is True or False"),
        ({"threshold": "high"}, "threshold='high': allowed is a return"),
        ({"gym_packages": ["no_such_envs"]}, "unknown package of environments 'no_such_envs'"),
        ({"gym_packages": ["sys"], "seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"runs": {}}, "runs: there is none"),
        ({"runs": None}, "a study: the key 'runs' is missing"),
        ({"runs": ["ppo"]}, "runs must be a mapping"),
        ({"runs": {"a": "ppo"}}, "runs: a must be a mapping"),
        ({"runs": {"a": {}}}, "runs: a: the key 'algo' is missing"),
        ({"runs": {"a": {"algo": "pppo"}}}, "unknown algorithm 'pppo', did you mean 'ppo'"),
        (
            {"runs": {"a": {"algo": "ppo", "environments": ["CartPole"]}}},
            "unknown environment of runs: a 'CartPole', did you mean 'CartPole-v1'",
        ),
        ({"runs": {"a": {"algo": "ppo", "environments": []}}}, "runs: a: environments must be a list of one or more"),
        ({"runs": {"a": {"algo": "ppo", "seeds": 0}}}, "runs: a: seeds must be a whole number of at least 1, not 0"),
        ({"runs": {"a": {"algo": "ppo", "parms": {}}}}, "unknown key of runs: a 'parms', did you mean 'params'"),
        (
            {"runs": {"a": {"algo": "ppo", "params": {"n_step": 1}}}},
            "runs: a: unknown key 'n_step', did you mean 'n_steps'",
        ),
        ({"runs": {"a": {"algo": "ppo", "params": []}}}, "runs: a: params must be a mapping, not []"),
        ({"runs": {"a": {"algo": "ppo", "params": {"policy": None}}}}, "runs: a: the key 'policy' is missing"),
        ({"runs": {3: {"algo": "ppo"}}}, "a label must be a text of one line"),
        ({"runs": {"a\nb": {"algo": "ppo"}}}, "a label must be a text of one line"),
        ({"runs": {"_a": {"algo": "ppo"}}}, "a label must be a text of one line that does not begin with _"),
        ({"runs": {"a": {"algo": "ppo", "params": {"n_timesteps": 5}}}}, "n_timesteps=5 is a key of the study"),
        ({"baseline": "our"}, "unknown label of baseline 'our', did you mean 'ours'"),
        ({"threshold": float("nan")}, "threshold=nan: allowed is a return"),
        ({"n_timesteps": float("inf")}, "n_timesteps must be a whole number of at least 1, not inf"),
        ({"seeds": float("nan")}, "seeds must be a whole number of at least 1, not nan"),
        ({"run": {}}, "unknown key of a study 'run', did you mean 'runs'"),
    ],
)
def test_a_wrong_study_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yml") as error:
        _read(tmp_path, **changes)
    assert message in str(error.value)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("environments: [CartPole-v1]\nruns:\n  PPO: {algo: ppo}\n  PPO: {algo: a2c}\n")
    with pytest.raises(ValueError, match=r"mine\.yml: the key 'PPO' stands there twice \(line 3 and after\)"):
        read_study(path)


def test_a_label_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    labels = ["a" * 300, "a" * 300 + "b", "\u7b56" * 100]
    study = _read(tmp_path, runs={label: {"algo": "ppo"} for label in labels})
    for run in study.runs:
        (tmp_path / f"{run.folder_name}.12345678.partial").mkdir()
    quick = quick_study(["CartPole-v1"], list(ALGOS))
    (tmp_path / quick.name).mkdir()


@pytest.mark.parametrize("content", ["", "3", "[", "- a"])
def test_a_file_that_is_no_study_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(content)
    with pytest.raises(ValueError, match=r"mine\.yml"):
        read_study(tmp_path / "mine.yml")


def test_a_study_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.yml").touch()
    assert find_study(str(tmp_path / "mine.yml")) == tmp_path / "mine.yml"
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()  # of results
    assert find_study("demo") == configs_folder() / "studies" / "demo.yml"
    with pytest.raises(ValueError, match="unknown study 'demon', did you mean 'demo'"):
        find_study("demon")
    for missing in (str(tmp_path), "yours.yml"):
        with pytest.raises(ValueError, match=f"there is no study file '{missing}'"):
            find_study(missing)


@pytest.mark.parametrize("path", sorted((configs_folder() / "studies").glob("*.yml")), ids=lambda path: path.stem)
def test_every_ready_study_is_valid(path: Path) -> None:
    assert read_study(path).runs


def test_the_demo_compares_reinforce_with_and_without_baseline_a2c_and_ppo() -> None:
    study = read_study(find_study("demo"))
    runs = {run.label: (run.algo, run.config.get("baseline")) for run in study.runs}
    assert sorted(runs.values(), key=str) == sorted(
        [("reinforce", "state"), ("reinforce", "none"), ("a2c", None), ("ppo", None)], key=str
    )
    assert len(study.runs) == 12
