"""Claim: a study trains each of its runs once, wherever it is interrupted, and reports all that finished and failed."""

import contextlib
import errno
import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from joblib.externals.loky import get_reusable_executor

from sb3_pgext.cli import main
from sb3_pgext.compare import command, runs
from sb3_pgext.compare.command import compare
from sb3_pgext.compare.page import _evaluations
from sb3_pgext.compare.report import summary_table, summary_tables
from sb3_pgext.compare.runs import Outcome, execute
from sb3_pgext.compare.study import Evaluation, read_study
from sb3_pgext.zoo.experiments import experiment

_STUDY: dict[str, Any] = {
    "environments": ["CartPole-v1"],
    "seeds": 2,
    "n_timesteps": 400,
    "evaluation": {"frequency": 200, "episodes": 2},
    "threshold": 5,
    "runs": {"ours [a]": {"algo": "reinforce"}, "theirs": {"algo": "ppo", "params": {"n_epochs": 1}}},
}
_FAILS = {"fails": {"algo": "ppo", "params": {"n_steps": 1, "n_envs": 1}}}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn() -> None:
    """The figures are drawn, which takes longer than the trainings of most tests."""


@pytest.fixture(autouse=True)
def _figures(request, monkeypatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("sb3_pgext.compare.command.plot_study", lambda *arguments: [])


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory) -> Path:
    """The runs of the study, which tests train no second time."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        compare(_write(), backend="sequential")
    return folder / "runs"


@pytest.fixture
def finished_study(trained_runs: Path) -> str:
    """A study that has been trained and reported before."""
    shutil.copytree(trained_runs, "runs")
    return _write()


_MARKS = [r"cost $\bad{$", "x [/a]", "a | b <c>"]


@pytest.fixture(scope="module")
def five_seeds(tmp_path_factory) -> tuple[Path, str]:
    """The results of a study with five seeds and labels of any marks, and what it printed."""
    folder = tmp_path_factory.mktemp("five")
    labels = {label: {"algo": "ppo", "params": {"n_epochs": 1}} for label in _MARKS}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        compare(_write(seeds=5, n_timesteps=40, runs=labels, baseline=_MARKS[1]), backend="sequential")
    return folder / "runs/mine", printed.getvalue()


def _write(**changes: Any) -> str:
    Path("mine.yml").write_text(yaml.safe_dump(_STUDY | changes))
    return "mine.yml"


def _numbers(out: str) -> pd.DataFrame:
    return pd.read_csv(f"{out}/results.csv").drop(columns="training_seconds")


def _trained(monkeypatch) -> list[tuple[str, int]]:
    """What a study trains from here on, in this process."""
    trained: list[tuple[str, int]] = []

    def spy(run, folder):
        trained.append((run.label, run.seed))
        return execute(run, folder)

    monkeypatch.setattr("sb3_pgext.compare.runs.execute", spy)
    return trained


def test_a_study_from_the_command_line(drawn, capsys) -> None:
    assert main(["compare", _write(), "--backend", "sequential"]) == 0
    out = Path("runs/mine")
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "summary.md",
        "results.csv",
        "summary.csv",
        "learning_curves.png",
        "learning_curves.svg",
        "runs",
    }
    results = pd.read_csv(out / "results.csv")
    assert results.columns[:5].tolist() == ["run", "algorithm", "environment", "seed", "timesteps"]
    assert results.groupby(["run", "seed"])["timesteps"].apply(list).tolist() == [[0, 200, 400]] * 4
    assert (results["episodes"] == 2).all()
    printed = capsys.readouterr().out
    for text in ("4/4 runs", "CartPole-v1, 2 seeds", "ours [a]", "theirs", "final return", "steps to 5", "steps/s"):
        assert text in printed


def test_the_summary_is_that_of_the_results(finished_study) -> None:
    results, summary = (pd.read_csv(f"runs/mine/{name}.csv") for name in ("results", "summary"))
    assert summary["run"].tolist() == ["ours [a]", "theirs"]
    for _, row in summary.iterrows():
        mine = results[results["run"] == row["run"]]
        last = mine[mine["timesteps"] == 400]
        final = last["mean_return"].to_numpy()
        assert row["final_mean"] == pytest.approx(final.mean())
        assert (row["final_low"], row["final_high"]) == (final.min(), final.max())
        areas = [np.dot(curve["mean_return"], [0.25, 0.5, 0.25]) for _, curve in mine.groupby("seed")]
        assert row["area"] == pytest.approx(np.mean(areas))
        assert row["seeds"] == 2
        assert row["seconds"] == pytest.approx(last["training_seconds"].median())
        speed = last["true_timesteps"] / last["training_seconds"]
        assert row["steps_per_second"] == pytest.approx(speed.median())


def test_with_five_seeds_there_are_interquartile_means(five_seeds) -> None:
    results, summary = (pd.read_csv(five_seeds[0] / f"{name}.csv") for name in ("results", "summary"))
    for _, row in summary.iterrows():
        mine = results[(results["timesteps"] == 40) & (results["run"] == row["run"])]
        final = np.sort(mine["mean_return"])
        assert row["final_iqm"] == pytest.approx(final[1:4].mean())
        assert final[0] <= row["final_iqm_low"] <= row["final_iqm_high"] <= final[-1]


@pytest.mark.filterwarnings("ignore:.*CartPole-v0 is out of date")
def test_it_is_said_whose_configuration_is_used(capsys) -> None:
    runs = {"theirs": {"algo": "ppo"}}
    compare(_write(environments=["CartPole-v0"], seeds=1, n_timesteps=40, runs=runs), backend="sequential")
    assert "note: theirs on CartPole-v0: no tuned configuration; using that of CartPole-v1" in capsys.readouterr().out
    assert (
        "theirs on CartPole-v0: no tuned configuration; using that of CartPole-v1"
        in Path("runs/mine/report.html").read_text()
    )


def test_a_run_can_be_watched_with_enjoy(finished_study) -> None:
    (folder,) = Path("runs/mine/runs").glob("ours*_0_*")
    assert main(["enjoy", "--folder", str(folder), "--no-render", "-n", "10"]) == 0


def test_worker_processes_give_the_same_numbers_also_in_an_environment_of_the_current_folder(
    monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("envs_here.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Here-v0', CartPoleEnv, max_episode_steps=20)\n"
    )
    # Workers of a former test would not look there.
    get_reusable_executor().shutdown(wait=True)
    arguments = ["compare", "--env", "Here-v0", "--algos", "ppo", "reinforce", "--seeds", "1", "--timesteps", "40"]
    assert main(arguments) == 2
    assert "unknown environment 'Here-v0'" in capsys.readouterr().err
    assert main([*arguments, "--gym-packages", "envs_here", "--jobs", "2", "--out", "two"]) == 0
    assert "envs_here" in Path("two/report.html").read_text()
    assert main([*arguments, "--gym-packages", "envs_here", "--backend", "sequential", "--out", "one"]) == 0
    pd.testing.assert_frame_equal(_numbers("one"), _numbers("two"))


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_other_backends_of_joblib_give_the_same_numbers(backend, trained_runs) -> None:
    """A cluster of two workers on this machine."""
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
            cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
            stack.enter_context(cluster)
            stack.enter_context(dask.config.set({"scheduler-address": cluster.scheduler_address}))
        if backend == "ray":
            ray = pytest.importorskip("ray")
            ray.init(num_cpus=2, include_dashboard=False)
            stack.callback(ray.shutdown)
        assert main(["compare", _write(seeds=1), "--out", backend, "--jobs", "2", "--backend", backend]) == 0
    expected = _numbers(str(trained_runs / "mine"))
    expected = expected[expected["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(expected, _numbers(backend))


def test_joblib_finds_none_of_the_workers_of_one_job() -> None:
    """It keeps workers for the next study of the process, and cannot use those that are not its own."""
    assert list(runs._one_by_one([], Path())) == []
    assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-number) for number in range(3)) == [0, 1, 2]


def test_without_a_file(capsys) -> None:
    arguments = ["--env", "CartPole-v1", "--algos", "reinforce", "ppo", "--seeds", "1", "--timesteps", "2"]
    assert main(["compare", *arguments, "--backend", "sequential"]) == 0
    results = _numbers("runs/CartPole-v1_reinforce+ppo")
    assert set(results["run"]) == {"reinforce", "ppo"}
    assert results["timesteps"].max() == 2
    assert "runs/CartPole-v1_reinforce+ppo: report.html" in capsys.readouterr().out


def test_the_report_is_one_page_with_all_there_is_to_know(five_seeds) -> None:
    page = (five_seeds[0] / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert 'src="http' not in page
    assert "href" not in page
    for text in ("CartPole-v1, 5 seeds", "P(better than", "n_steps: 32", "torch", "0, 1, 2, 3, 4", "every 200 steps"):
        assert text in page
    summary = (five_seeds[0] / "summary.md").read_text()
    assert "| run | final return mean | final return IQM |" in summary
    assert "![Learning curves](learning_curves.png)" in summary


def test_labels_may_have_any_marks(five_seeds) -> None:
    folder, printed = five_seeds
    assert all(label in printed for label in _MARKS)
    assert "a \\| b &lt;c&gt;" in (folder / "summary.md").read_text()
    page = (folder / "report.html").read_text()
    assert "&lt;c&gt;" in page
    assert "<c>" not in page


@pytest.mark.parametrize(
    ("fatal", "message", "jobs", "backend", "n_seeds"),
    [
        ("os.abort()", "its process died: SIGABRT", 2, "loky", 1),
        ("os.abort()", "its process died: SIGABRT", 1, "loky", 1),
        ("os.abort()", "its process died", 2, "dask", 2),  # Dask trains again what a worker had trained that dies later
        ("sys.exit('no licence')", "SystemExit: no licence", 1, "sequential", 2),
        (
            "return super().step(action)[0], float('nan'), True, False, {}",
            "ValueError: mean return nan at 0",
            1,
            "sequential",
            2,
        ),
    ],
)
def test_a_run_that_ends_its_process_leaves_the_others_alone(
    fatal: str, message: str, jobs: int, backend: str, n_seeds: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    if backend == "dask":
        pytest.importorskip("distributed")
    (tmp_path / "fatal_envs.py").write_text(
        "import gymnasium, os, sys\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Fatal(CartPoleEnv):\n"
        "    def step(self, action):\n"
        f"        {fatal}\n"
        "gymnasium.register('Fatal-v0', Fatal, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    get_reusable_executor().shutdown(wait=True)
    monkeypatch.delitem(sys.modules, "fatal_envs", raising=False)
    study = _write(
        seeds=n_seeds,
        environments=["Fatal-v0", "CartPole-v1"],
        gym_packages=["fatal_envs"],
        runs={"theirs": {"algo": "ppo"}},
        threshold=None,
    )
    assert not compare(study, jobs=jobs, backend=backend)
    assert set(_numbers("runs/mine")["environment"]) == {"CartPole-v1"}
    assert _numbers("runs/mine")["seed"].nunique() == n_seeds
    seeds = "seed 0" if n_seeds == 1 else "seeds 0, 1"
    assert f"failed: theirs on Fatal-v0, {seeds}: " in capsys.readouterr().out
    page = Path("runs/mine/report.html").read_text()
    assert page.count(message) == 1
    assert not list(Path("runs/mine/runs").glob("*.partial"))


def test_the_curves_are_drawn_while_runs_end(drawn, monkeypatch, capsys) -> None:
    """Of all that have finished, and how many these are stands above them."""
    titles = []

    def spy(figure, path):
        titles.append(figure.get_suptitle())
        path.with_suffix(".svg").write_text("<svg/>")

    def one_after_the_other(runs, folder, jobs, backend):
        for run in runs:
            yield execute(run, folder)

    monkeypatch.setattr("sb3_pgext.compare.command._PICTURE_SECONDS", 0.0)
    monkeypatch.setattr("sb3_pgext.compare.plots.write_figure", spy)
    monkeypatch.setattr(command, "execute_all", one_after_the_other)
    compare(_write(n_timesteps=2))
    assert titles == [*(f"{n} of 4 runs have finished" for n in (1, 2, 3)), ""]
    assert "the curves so far, as runs end: runs/mine/learning_curves.png" in capsys.readouterr().out


def test_two_attempts_at_a_run_do_not_meet(tmp_path: Path, monkeypatch) -> None:
    """A worker may outlive its study, or be given up by a scheduler that then has the run trained by another."""
    run = read_study(Path(_write())).runs[0]
    begun = runs._train

    def while_another_finishes(run, folder):
        begun(run, folder)
        folder.rename(tmp_path / run.folder_name)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_train", while_another_finishes)
        assert execute(run, tmp_path).error is None
    assert execute(run, tmp_path) == Outcome(run, None, tmp_path / run.folder_name / "log.txt")
    assert not list(tmp_path.glob("*.failed"))
    shutil.rmtree(tmp_path / run.folder_name)
    (tmp_path / f"{run.folder_name}.12345678.partial").mkdir()
    (tmp_path / f"{run.folder_name}.12345678.partial" / "log.txt").write_text("its last words")
    outcome = execute(run, tmp_path)
    assert outcome.error == "its process died"
    assert outcome.log is not None
    assert outcome.log.read_text() == "its last words"
    assert execute(run, tmp_path) == outcome
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"{run.folder_name}.failed"]


def test_two_studies_do_not_share_a_folder(finished_study, monkeypatch, capsys) -> None:
    trained = _trained(monkeypatch)
    with FileLock("runs/mine/runs/.lock"):
        assert main(["compare", _write(seeds=3), "--backend", "sequential"]) == 2
    assert "runs/mine': another process is training into it" in capsys.readouterr().err
    assert trained == []


def test_a_folder_with_files_of_the_users_own_is_refused(capsys) -> None:
    Path("profiles.png").write_text("mine")
    assert main(["compare", _write(), "--out", ".", "--backend", "sequential"]) == 2
    assert "it has a profiles.png that is not a study's: allowed is another folder" in capsys.readouterr().err
    Path("report.html").write_text("mine")
    assert main(["compare", _write(), "--out", ".", "--backend", "sequential"]) == 2
    assert "it has a report.html that is not a study's" in capsys.readouterr().err
    assert main(["compare", _write(), "--out", "profiles.png", "--backend", "sequential"]) == 2
    assert "profiles.png" in capsys.readouterr().err
    assert Path("profiles.png").read_text() == "mine"
    assert not Path("runs").exists()


def test_an_interruption_is_reported_with_what_had_finished(monkeypatch, capsys) -> None:
    def interrupted(run, folder):
        if run.seed:
            raise KeyboardInterrupt
        return execute(run, folder)

    monkeypatch.setattr("sb3_pgext.compare.runs.execute", interrupted)
    assert main(["compare", _write(), "--backend", "sequential"]) == 130
    assert "interrupted: start it again and it goes on with what is missing" in capsys.readouterr().out
    assert set(_numbers("runs/mine")["seed"]) == {0}
    assert Path("runs/mine/report.html").exists()


@pytest.mark.parametrize("backend", ["nosuch", "threading", "multiprocessing"])
def test_an_unknown_backend_is_refused_before_anything_is_done(backend: str, capsys) -> None:
    assert main(["compare", _write(), "--backend", backend]) == 2
    assert f"backend='{backend}': allowed is one of 'dask', 'loky', 'ray', 'sequential'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_figures_of_an_earlier_study_do_not_stay(drawn, finished_study) -> None:
    for name in ("profiles.png", "learning_curves.png", "notes.csv"):
        Path("runs/mine", name).write_text("before")
    compare(finished_study, backend="sequential")
    assert not Path("runs/mine/profiles.png").exists()
    assert Path("runs/mine/learning_curves.png").read_bytes() != b"before"
    assert Path("runs/mine/notes.csv").read_text() == "before"


def test_progress_is_shown_and_not_logged_with_a_single_job(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sb3_pgext.compare.display.LINE_SECONDS", 0.0)
    monkeypatch.setattr("sb3_pgext.compare.display._REFRESH_SECONDS", 0.01)
    compare(_write(seeds=1), backend="sequential")
    assert capsys.readouterr().out.count("/2 runs") > 2
    for log in Path("runs/mine/runs").glob("*/log.txt"):
        assert "/2 runs" not in log.read_text()


def test_different_budgets_are_shown(capsys) -> None:
    runs = {"long": {"algo": "reinforce"}, "short": {"algo": "npg"}}
    content = {k: v for k, v in (_STUDY | {"runs": runs, "seeds": 1}).items() if k != "n_timesteps"}
    Path("mine.yml").write_text(yaml.safe_dump(content))
    study = read_study(Path("mine.yml"))
    rows = [
        {"run": run.label, "algorithm": run.algo, "environment": run.environment, "seed": 0, "timesteps": t}
        | {"mean_return": 1.0, "true_timesteps": t, "training_seconds": 1.0}
        for run in study.runs
        for t in (0, 1000 if run.label == "long" else 500)
    ]
    assert _evaluations(
        replace(study, runs=(study.runs[0], replace(study.runs[1], evaluation=Evaluation(300, 2))))
    ) == {"CartPole-v1": "every 200 steps, 2 deterministic episodes or every 300 steps, 2 deterministic episodes"}
    results = pd.DataFrame(rows)
    (table,) = summary_tables(study, summary_table(study, results))
    assert [row[table.header.index("steps")] for row in table.rows] == ["1,000", "500"]


def test_a_full_disk_is_one_failed_run(monkeypatch, capsys) -> None:
    def full(run, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sb3_pgext.compare.runs._train", full)
        study = _write(seeds=1)
        patch.setattr(Path, "write_text", full)
        assert main(["compare", study, "--backend", "sequential"]) == 1
    assert "seed 0: OSError: [Errno 28] No space left on device" in capsys.readouterr().out
    logs = list(Path("runs/mine/runs").glob("*.failed/log.txt"))
    assert len(logs) == 2
    assert all("No space left on device" in log.read_text() for log in logs)
    page = Path("runs/mine/report.html").read_text()
    assert "Runs that failed" in page
    assert "No space left on device" in page
    with monkeypatch.context() as patch:
        patch.setattr("sb3_pgext.compare.command.write_pages", lambda *args: full(*args[:2]))
        assert main(["compare", _write(seeds=1), "--backend", "sequential"]) == 2
    printed = capsys.readouterr()
    assert "error: [Errno 28] No space left on device" in printed.err
    assert "ours [a]" in printed.out  # the table
    Path("runs/mine/report.html").unlink()
    assert main(["compare", _write(seeds=1), "--backend", "sequential"]) == 0  # there is room again


def test_a_finished_study_trains_nothing(finished_study, monkeypatch, capsys) -> None:
    before = _numbers("runs/mine")
    trained = _trained(monkeypatch)
    assert compare(_write(), backend="sequential")
    assert trained == []
    assert "4 of 4 runs have been trained before" in capsys.readouterr().out
    pd.testing.assert_frame_equal(_numbers("runs/mine"), before)


def test_an_interrupted_study_goes_on_with_what_is_missing(finished_study, monkeypatch) -> None:
    before = _numbers("runs/mine")
    # One run was not begun, another was killed on its way.
    (missing,) = Path("runs/mine/runs").glob("ours*_1_*")
    shutil.rmtree(missing)
    (killed,) = Path("runs/mine/runs").glob("theirs*_0_*")
    (killed / "evaluations.json").write_text("[]")
    killed.rename(f"{killed}.partial")
    trained = _trained(monkeypatch)
    assert compare(_write(), backend="sequential")
    assert sorted(trained) == [("ours [a]", 1), ("theirs", 0)]
    pd.testing.assert_frame_equal(_numbers("runs/mine"), before)
    assert not list(Path("runs/mine/runs").glob("*.partial"))


def test_a_run_gets_its_name_only_when_it_has_finished(monkeypatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_pgext.compare.runs.EvaluateAtTimesteps._on_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(_write(), backend="sequential")
    assert [path.suffix for path in Path("runs/mine/runs").iterdir() if path.is_dir()] == [".partial"]


def test_changed_settings_never_use_old_results(finished_study, monkeypatch) -> None:
    trained = _trained(monkeypatch)
    compare(_write(runs=_STUDY["runs"] | {"theirs": {"algo": "ppo", "params": {"n_epochs": 2}}}), backend="sequential")
    assert sorted(trained) == [("theirs", 0), ("theirs", 1)]
    assert len(_numbers("runs/mine")) == 12


# rl_zoo3 does not close the environments of a model that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_run_is_reported_and_the_others_go_on(capsys) -> None:
    study = _write(seeds=1, runs=_FAILS | _STUDY["runs"])
    assert main(["compare", study, "--backend", "sequential"]) == 1
    printed = capsys.readouterr().out
    for name in ("report.html", "summary.md"):
        assert "AssertionError: `n_steps * n_envs` must be greater than 1" in Path(f"runs/mine/{name}").read_text()
    assert "failed: fails on CartPole-v1, seed 0: AssertionError: `n_steps * n_envs` must be greater than 1" in printed
    assert set(_numbers("runs/mine")["run"]) == {"ours [a]", "theirs"}
    (failed,) = Path("runs/mine/runs").glob("*.failed")
    assert "Traceback" in (failed / "log.txt").read_text()


# rl_zoo3 does not close the environments of a model that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_run_is_tried_again(monkeypatch) -> None:
    study = _write(seeds=1, runs=_FAILS)
    assert not compare(study, backend="sequential")
    trained = _trained(monkeypatch)
    assert not compare(study, backend="sequential")
    assert trained == [("fails", 0)]
    assert not Path("runs/mine/results.csv").exists()


def test_a_run_that_stops_before_its_end_has_failed(capsys) -> None:
    stops = {"callback": [{"stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes": {"max_episodes": 1}}]}
    assert not compare(_write(seeds=1, runs={"stops": {"algo": "ppo", "params": stops}}), backend="sequential")
    assert "training stopped after" in capsys.readouterr().out


def test_nothing_is_trained_for_a_study_that_is_wrong_anywhere(monkeypatch) -> None:
    monkeypatch.setattr(command, "execute_all", lambda *args: pytest.fail("it trained"))
    with pytest.raises(ValueError, match="unknown algorithm 'pppo'"):
        compare(_write(runs=_STUDY["runs"] | {"wrong": {"algo": "pppo"}}), backend="sequential")
    assert not Path("runs").exists()


def test_what_rl_zoo3_prints_goes_to_the_runs_log(capsys) -> None:
    compare(_write(seeds=1), backend="sequential")
    assert "Loading hyperparameters" not in capsys.readouterr().out
    for log in Path("runs/mine/runs").glob("*/log.txt"):
        assert "Loading hyperparameters" in log.read_text()


def test_evaluation_episodes_are_not_those_of_the_training(tmp_path: Path) -> None:
    run = read_study(Path(_write())).runs[0]
    manager = experiment(run.algo, run.environment, run.config, run.seed, tmp_path)
    model, _ = manager.setup_experiment()
    env = runs._evaluation_env(run, manager)
    training_starts = {tuple(observation) for observation in model.env.reset()}
    evaluation_starts = {tuple(observation) for observation in env.reset()}
    assert len(training_starts) == model.n_envs
    assert len(evaluation_starts) == 2
    assert not training_starts & evaluation_starts
    model.env.close()
