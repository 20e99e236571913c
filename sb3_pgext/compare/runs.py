"""Training the runs of a study in worker processes, each into its own folder."""

import contextlib
import io
import json
import math
import re
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.compare.evaluation import EvaluateAtTimesteps, Measurement, due_timesteps
from sb3_pgext.compare.study import Run
from sb3_pgext.parallel import present
from sb3_pgext.rollouts.files import replacing
from sb3_pgext.zoo.console import Every
from sb3_pgext.zoo.experiments import experiment, model_of, one_torch_thread
from sb3_pgext.zoo.names import import_environments

_MAX_EVALUATION_ENVS = 20
"""Sub-environments that play the episodes of an evaluation: each prediction serves all of them."""
_EVALUATION_SEED_OFFSET = 1_000_000
_ERROR = "error.txt"
_PROGRESS_INTERVAL = 0.5
"""Seconds between two reports of a run's progress."""


@dataclass(frozen=True)
class Outcome:
    """
    The end of a run.

    :param run: the run
    :param error: what it failed with; None if it finished
    :param log: its log file
    """

    run: Run
    error: str | None
    log: Path


def finished(run: Run, folder: Path) -> bool:
    """
    Test for the run's folder: only a finished run has one of its name.

    :param run: a run
    :param folder: the folder of all runs
    :return: whether the run has finished
    """
    return (folder / run.folder_name).is_dir()


def execute_all(runs: list[Run], folder: Path, jobs: int, backend: str = "loky") -> Iterator[Outcome]:
    """
    Train runs, several at a time, in worker processes. No other process may do so in the same folder meanwhile.

    :param runs: the runs
    :param folder: the folder of all runs, which all workers must see under this name
    :param jobs: number of runs at the same time
    :param backend: of joblib, see :func:`check_backend`
    :return: the outcomes, as the runs end, or all at the end from backends that cannot do better
    """
    _remove([*folder.glob("*.partial"), *(_failed_folder(run, folder) for run in runs)])
    with _backend_context(backend):
        yield from _executed(runs, folder, backend, jobs)


def _executed(runs: list[Run], folder: Path, backend: str, at_once: int) -> Iterator[Outcome]:
    """Yield each run's outcome. If one takes its process with it, those that were under way are told apart."""
    left = {run.folder_name: run for run in runs}
    while left:
        begin = _one_by_one if at_once == 1 and backend == "loky" else partial(_by_joblib, at_once)
        try:
            for outcome in begin(list(left.values()), folder):
                del left[outcome.run.folder_name]
                yield outcome
        except TerminatedWorkerError as error:
            under_way = [run for run in left.values() if _partial_folders(run, folder)] or list(left.values())[:1]
            if at_once > 1:  # which of them it was, shows when each is alone
                for run in under_way:
                    _remove(_partial_folders(run, folder))
                yield from _executed(under_way, folder, backend, at_once=1)
            else:
                codes = re.search(r"exit codes? of the workers? (?:is|are) \{(.*)\}", str(error))
                died = f"its process died: {codes[1] if codes else error}"
                yield _failed(under_way[0], folder, died, _partial_folders(under_way[0], folder))
            for run in under_way:
                del left[run.folder_name]


def _by_joblib(at_once: int, runs: list[Run], folder: Path) -> Iterable[Outcome]:
    backend, _ = joblib.parallel.get_active_backend()
    return_as = "generator_unordered" if backend.supports_return_generator else "list"
    workers = joblib.Parallel(n_jobs=at_once, batch_size=1, pre_dispatch=at_once, return_as=return_as)
    outcomes: Iterable[Outcome] = workers(joblib.delayed(execute)(run, folder) for run in runs)
    return outcomes


def _one_by_one(runs: list[Run], folder: Path) -> Iterator[Outcome]:
    """Train in one worker. Instead of it joblib would take this process, and a run that dies would end it."""
    worker = get_reusable_executor(max_workers=1)
    try:
        for run in runs:
            yield worker.submit(execute, run, folder).result()
    except BaseException:  # also Ctrl-C: what is under way is not waited for
        worker.shutdown(kill_workers=True)
        raise
    worker.shutdown()  # joblib, which keeps such a worker for later, could not use this one


def _failed(run: Run, folder: Path, error: str, partial: list[Path]) -> Outcome:
    """Keep what there is of the run under a name of its own."""
    failed = _failed_folder(run, folder)
    for path in partial:
        with contextlib.suppress(OSError):  # the disk may be what it failed with
            (path / _ERROR).write_text(error)
        with contextlib.suppress(OSError):
            path.rename(failed)
    _remove(partial)
    return Outcome(run, error, failed / "log.txt")


def _failed_folder(run: Run, folder: Path) -> Path:
    return folder / f"{run.folder_name}.failed"


def _partial_folders(run: Run, folder: Path) -> list[Path]:
    """Find the folders of a run under way. Each attempt has its own: one whose study was killed may still be at it."""
    return list(folder.glob(f"{run.folder_name}.*.partial"))


def _remove(folders: Iterable[Path]) -> None:
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def check_backend(backend: str) -> None:
    """
    Refuse a backend that the runs of a study cannot be trained on.

    :param backend: of joblib: ``"loky"`` (processes of this machine), ``"dask"`` (the cluster that
        ``DASK_SCHEDULER_ADDRESS`` names, else one on this machine), ``"ray"`` (that of ``RAY_ADDRESS``, likewise),
        ``"sequential"`` (this process, one run after the other: for a debugger) or another one that has been registered
        with joblib
    :raises ValueError: there is no such backend, or its workers are threads, which share what a run must have alone, or
        it is ``"multiprocessing"``, which waits for ever for a run that takes its process with it
    """
    known = sorted({*joblib.parallel.BACKENDS, "dask", "ray"} - {"threading", "multiprocessing"})
    if backend not in known:
        raise ValueError(f"backend={backend!r}: allowed is one of {', '.join(map(repr, known))}")


@contextlib.contextmanager
def _backend_context(backend: str) -> Iterator[None]:
    """Connect joblib to the backend's workers."""
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            import dask
            from distributed import Client

            # Runs redirect the output of their process: one at a time in each.
            own = {} if dask.config.get("scheduler-address", None) else {"threads_per_worker": 1}
            stack.enter_context(Client(**own))
        elif backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        stack.enter_context(joblib.parallel_config(backend=backend))
        yield


def execute(run: Run, folder: Path) -> Outcome:
    """
    Train one run, if it has not finished. Its folder gets its name only then; that of a failed run ends in ``.failed``.

    :param run: the run
    :param folder: the folder of all runs
    :return: how it ended
    """
    final = folder / run.folder_name
    # When a worker dies Dask trains its runs anew, also those that had ended, and joblib waits for ever for a run that
    # a few workers died of.
    if finished(run, folder):
        return Outcome(run, None, final / "log.txt")
    failed = _failed_folder(run, folder)
    if failed.is_dir():
        return Outcome(run, (failed / _ERROR).read_text(), failed / "log.txt")
    if lost := _partial_folders(run, folder):
        return _failed(run, folder, "its process died", lost)
    partial = folder / f"{run.folder_name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        with (
            (partial / "log.txt").open("w") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            one_torch_thread(),
        ):
            try:
                _train(run, partial)
            except (Exception, SystemExit):
                traceback.print_exc()
                raise
        partial.rename(final)
    except (Exception, SystemExit) as error:  # whatever it is, also a log that cannot be written; others go on
        if present().several:
            raise  # the others cannot go on to the next run
        if not finished(run, folder):
            return _failed(run, folder, f"{type(error).__name__}: {error}", [partial])
        _remove([partial])  # another attempt came first
    return Outcome(run, None, final / "log.txt")


def train_along(runs: Sequence[Run]) -> None:
    """
    Train runs together with rank 0, which writes what comes of them.

    :param runs: the runs
    """
    for run in runs:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), one_torch_thread():
            _train(run, Path(folder))


def progress(runs: Sequence[Run], folder: Path) -> tuple[int, int, int]:
    """
    Read the progress of runs, as far as they have reported it.

    :param runs: the runs
    :param folder: the folder of all runs
    :return: how many have ended; the environment steps that they have trained for; the work done, of :func:`work` in
        all. A run that ended has nothing left
    """
    ended = {run.folder_name for run in runs if finished(run, folder) or _failed_folder(run, folder).is_dir()}
    done = {run.folder_name: (run.n_timesteps, work(run)) if run.folder_name in ended else (0, 0) for run in runs}
    frequencies = {run.folder_name: run.evaluation.frequency for run in runs}
    for report in folder.glob("*.partial/progress"):
        name = report.parent.name.rsplit(".", 2)[0]
        with contextlib.suppress(FileNotFoundError, KeyError):  # the run has just ended, or is of another study
            steps, evaluations = map(int, report.read_text().split())
            done[name] = max(done[name], (steps, steps + evaluations * frequencies[name]))
    return len(ended), *(sum(each) for each in zip(*done.values(), strict=True))


def work(run: Run) -> int:
    """
    Estimate the work of a run: an evaluation counts as much as the steps from one to the next.

    :param run: a run
    :return: the work, in environment steps
    """
    return run.n_timesteps + run.evaluation.frequency * len(due_timesteps(run.evaluation.frequency, run.n_timesteps))


def measurements(run: Run, folder: Path) -> list[Measurement]:
    """
    Read the evaluations of a run.

    :param run: a finished run
    :param folder: the folder of all runs
    :return: the evaluations, in the order of time
    """
    return [Measurement(**row) for row in json.loads((folder / run.folder_name / "evaluations.json").read_text())]


def _train(run: Run, folder: Path) -> None:
    """Train the run as rl_zoo3 would, evaluating it on the way, and save what came of it."""
    import_environments(run.gym_packages)
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=2, default=str))
    manager = experiment(run.algo, run.environment, run.config, run.seed, folder)
    due = due_timesteps(run.evaluation.frequency, run.n_timesteps)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(model_of(manager))
        evaluation_env = stack.enter_context(contextlib.closing(_evaluation_env(run, manager)))
        callback = EvaluateAtTimesteps(evaluation_env, run.evaluation, due, reporter(folder / "progress"))
        model.learn(run.n_timesteps, callback=[*manager.callbacks, callback])
    if present().rank:
        return  # rank 0 evaluates and writes
    if not callback.complete:
        raise RuntimeError(f"training stopped after {model.num_timesteps} of {run.n_timesteps} environment steps")
    for measurement in callback.measurements:
        if not math.isfinite(measurement.mean_return):
            raise ValueError(f"mean return {measurement.mean_return} at {measurement.timesteps} environment steps")
    manager.save_trained_model(model)
    (folder / "evaluations.json").write_text(json.dumps([asdict(m) for m in callback.measurements], indent=1))


def _evaluation_env(run: Run, manager: ExperimentManager) -> VecEnv:
    """Make an environment wrapped as the training environment is, its sub-environments seeded apart from it."""
    env = manager.create_envs(min(run.evaluation.episodes, _MAX_EVALUATION_ENVS), eval_env=True, no_log=True)
    env.seed(run.seed + _EVALUATION_SEED_OFFSET)
    return env


def reporter(path: Path) -> Callable[[int, int], None]:
    """
    Make a callback that writes a run's progress to a file now and then.

    :param path: of the file
    :return: called with the environment steps taken and the evaluations made
    """
    is_due = Every(_PROGRESS_INTERVAL)

    def report(timesteps: int, evaluations: int) -> None:
        if is_due():
            with replacing(path) as file:
                file.write(f"{timesteps} {evaluations}".encode())

    return report
