"""``sb3-pgext train``, ``enjoy`` and ``record-video``: rl_zoo3's own, with our algorithms and defaults."""

import argparse
import contextlib
import io
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.enjoy import enjoy as zoo_enjoy
from rl_zoo3.train import train as zoo_train
from rl_zoo3.utils import StoreDict, get_model_path

from sb3_pgext.arguments import require_count
from sb3_pgext.zoo.configs import check_config, config_path
from sb3_pgext.zoo.flags import CHECKPOINT_EVERY, asks_for_help, own_flags, resume_flags, trust_flag
from sb3_pgext.zoo.names import check_environment, check_name, import_environments
from sb3_pgext.zoo.on_ranks import flags_of_rank, quiet_but_first, restarted_run
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.saved_runs import plain_config, plain_yaml, read_run
from sb3_pgext.zoo.trainings import continued, trainings

_DOWNLOADED = "rl-trained-agents"
"""In a folder with this in its name, rl_zoo3 downloads an agent that is missing."""


def train(arguments: Sequence[str]) -> None:
    """
    Train an agent with rl_zoo3's ``train``; the algorithm is REINFORCE and the configuration file ours by default.

    Our algorithms write checkpoints into the folder of the run. With ``--resume`` and that folder, a training goes on.

    :param arguments: rl_zoo3's flags, of which ``--vec-env`` may be one of ``VEC_ENVS``, and those of
        :func:`~sb3_pgext.zoo.flags.own_flags`; or those of :func:`~sb3_pgext.zoo.flags.resume_flags`
    :raises ValueError: an unknown algorithm, environment or configuration key; a file that is missing or damaged
    """
    if asks_for_help(arguments):
        return _run(zoo_train, "train", arguments)
    resumed, others = resume_flags().parse_known_args(arguments)
    if resumed.resume is not None:
        return _resume(resumed, others)
    own, arguments = own_flags().parse_known_args(arguments)
    flags = _known_flags(arguments)
    of_family = flags.algo in ALGORITHMS
    if own.checkpoint_every is not None and not of_family:
        raise ValueError(f"--checkpoint-every with --algo {flags.algo}: allowed is {', '.join(ALGORITHMS)}")
    if own.checkpoint_every is not None and flags.optimize_hyperparameters:
        raise ValueError("--checkpoint-every with --optimize-hyperparameters: allowed is one of them")
    if of_family and flags.conf_file is None:
        flags.conf_file = str(config_path(flags.algo))
        arguments = ["--conf-file", flags.conf_file, *arguments]
    check_config(flags.algo, flags.env, flags.conf_file, flags.hyperparams)
    if flags.n_timesteps is not None:
        require_count("--n-timesteps", flags.n_timesteps)
    if flags.trained_agent and not (flags.trained_agent.endswith(".zip") and Path(flags.trained_agent).is_file()):
        raise ValueError(f"--trained-agent {flags.trained_agent}: there is no such .zip file")
    every = CHECKPOINT_EVERY if own.checkpoint_every is None else own.checkpoint_every
    if (run := restarted_run(flags.algo, flags.env, arguments)) is not None:
        return _resume(argparse.Namespace(resume=run, trust=False, gym_packages=flags.gym_packages), [])
    with trainings(every if of_family else 0, own.vec_env), flags_of_rank(flags.algo, arguments) as of_rank:
        _run(zoo_train, "train", ["--algo", flags.algo, *of_rank])


def _resume(flags: argparse.Namespace, others: Sequence[str]) -> None:
    """Go on with a training; everything about it is in its folder, but where its environments come from."""
    if others:
        raise ValueError(f"{' '.join(others)} with --resume: allowed are --trust and --gym-packages alone")
    import_environments(flags.gym_packages)
    config, args = read_run(flags.resume, flags.trust)
    if "checkpoint_every" not in args:
        raise ValueError(f"--resume {flags.resume}: this training wrote no checkpoints")
    if args["num_threads"] > 0:
        torch.set_num_threads(args["num_threads"])
    with quiet_but_first():
        continued(flags.resume, config, args, flags.trust or None)


def enjoy(arguments: Sequence[str]) -> None:
    """
    Watch a trained agent with rl_zoo3's ``enjoy``; it is looked for where ``train`` leaves it by default.

    :param arguments: rl_zoo3's flags, and ``--trust`` for a run that holds code or is to be downloaded
    :raises ValueError: an unknown algorithm or environment; no such trained agent; code in its configuration, or an
        agent that would be downloaded
    """
    _run_with_trained(zoo_enjoy, "enjoy", arguments)


def record_video(arguments: Sequence[str]) -> None:
    """
    Record a video of a trained agent with rl_zoo3's ``record_video``.

    :param arguments: rl_zoo3's flags, and ``--trust`` for a run whose configuration holds code
    :raises ValueError: an unknown algorithm or environment; no such trained agent; code in its configuration
    """

    def script() -> None:  # rl_zoo3 has no function for it
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")

    _run_with_trained(script, "record-video", arguments)


def _run_with_trained(command: Callable[[], None], name: str, arguments: Sequence[str]) -> None:
    """Run a command of rl_zoo3 on an agent that is looked for where ``train`` leaves it by default."""
    if asks_for_help(arguments):
        return _run(command, name, arguments)
    own, arguments = trust_flag().parse_known_args(arguments)
    flags = _known_flags(arguments)
    if not (own.trust and _DOWNLOADED in flags.folder):
        folder = _check_trained(flags)
        if not own.trust:
            _check_saved(folder / EnvironmentName(flags.env))
    _run(command, name, ["--algo", flags.algo, "--env", flags.env, "--folder", flags.folder, *arguments])


def _known_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the few flags of rl_zoo3's commands that we look at, and check the names; rl_zoo3 parses them all again."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="reinforce")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    # of train
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict)
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("-n", "--n-timesteps", type=int)
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    # of enjoy and record-video
    parser.add_argument("-f", "--folder", default="logs")
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint", type=int)
    parser.add_argument("--load-last-checkpoint", action="store_true")
    try:
        flags, _ = parser.parse_known_args(arguments)
    except (NameError, SyntaxError) as error:
        raise ValueError(f"""-params: {error} (values are Python; strings need quotes: baseline:"'none'")""") from error
    import_environments(flags.gym_packages)
    check_name("algorithm", flags.algo, ALGOS)
    check_environment(flags.env)
    return flags


def _check_trained(flags: argparse.Namespace) -> Path:
    """Refuse to enjoy an agent that is not there; returns the folder of its run."""
    choice = (flags.load_best, flags.load_checkpoint, flags.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, _, folder = get_model_path(flags.exp_id, flags.folder, flags.algo, EnvironmentName(flags.env), *choice)
    except (AssertionError, ValueError) as error:
        advice = f"train it first: sb3-pgext train --algo {flags.algo} --env {flags.env}"
        if _DOWNLOADED in flags.folder:
            advice = "rl_zoo3 would download it and run what is in it: --trust allows that"
        raise ValueError(f"{error}; {advice}") from error
    return Path(folder)


def _check_saved(folder: Path) -> None:
    """Refuse a saved run whose configuration rl_zoo3 would run, or that has none where rl_zoo3 looks for it."""
    if not (folder / "config.yml").is_file():
        raise ValueError(f"{folder / 'config.yml'}: there is no such file (--trust goes without)")
    for name, read in (("config.yml", plain_config), ("args.yml", plain_yaml)):
        if (folder / name).exists():
            try:
                read(folder / name)
            except ValueError as error:
                raise ValueError(f"{error} (--trust runs it)") from error


def _run(command: Callable[[], None], name: str, arguments: Sequence[str]) -> None:
    """Run a command of rl_zoo3, which reads its flags from ``sys.argv``."""
    with mock.patch.object(sys, "argv", [f"sb3-pgext {name}", *arguments]):
        command()
