"""``sb3-pgext train``, ``enjoy`` and ``record-video``: rl_zoo3's own, with our algorithms and defaults."""

import argparse
import contextlib
import functools
import io
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import rl_zoo3.train
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.enjoy import enjoy as zoo_enjoy
from rl_zoo3.train import train as zoo_train
from rl_zoo3.utils import StoreDict, get_model_path

from sb3_pgext.zoo.configs import check_config, config_path
from sb3_pgext.zoo.experiments import Experiment
from sb3_pgext.zoo.names import check_environment, check_name, import_environments
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.vec_envs import VEC_ENVS


def train(arguments: Sequence[str]) -> None:
    """
    Train an agent with rl_zoo3's ``train``; the algorithm is REINFORCE and the configuration file ours by default.

    :param arguments: rl_zoo3's flags; ``--vec-env`` may be ``gymnasium`` or ``envpool`` too
    :raises ValueError: an unknown algorithm, environment or configuration key; a file that is missing
    """
    if _asks_for_help(arguments):
        return _run(zoo_train, "train", arguments)
    vec_env, arguments = _vec_env_flag(arguments)
    flags = _known_flags(_train_flags(), arguments)
    if flags.algo in ALGORITHMS and flags.conf_file is None:
        flags.conf_file = str(config_path(flags.algo))
        arguments = ["--conf-file", flags.conf_file, *arguments]
    check_config(flags.algo, flags.env, flags.conf_file, flags.hyperparams)
    if flags.trained_agent and not (flags.trained_agent.endswith(".zip") and Path(flags.trained_agent).is_file()):
        raise ValueError(f"--trained-agent {flags.trained_agent}: there is no such .zip file")
    with _experiments_with(vec_env):
        _run(zoo_train, "train", ["--algo", flags.algo, *arguments])


def enjoy(arguments: Sequence[str]) -> None:
    """
    Watch a trained agent with rl_zoo3's ``enjoy``; it is looked for where ``train`` leaves it by default.

    :param arguments: rl_zoo3's flags
    :raises ValueError: an unknown algorithm or environment; no such trained agent
    """
    # rl_zoo3 downloads an agent of its own folder when it is missing.
    _run_with_trained(zoo_enjoy, "enjoy", arguments, may_be_missing_in="rl-trained-agents")


def record_video(arguments: Sequence[str]) -> None:
    """
    Record a video of a trained agent with rl_zoo3's ``record_video``.

    :param arguments: rl_zoo3's flags
    :raises ValueError: an unknown algorithm or environment; no such trained agent
    """

    def script() -> None:  # rl_zoo3 has no function for it
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")

    _run_with_trained(script, "record-video", arguments)


def _run_with_trained(
    command: Callable[[], None], name: str, arguments: Sequence[str], may_be_missing_in: str | None = None
) -> None:
    """Run a command of rl_zoo3 on an agent that is looked for where ``train`` leaves it by default."""
    if _asks_for_help(arguments):
        return _run(command, name, arguments)
    flags = _known_flags(_trained_flags(), arguments)
    if may_be_missing_in is None or may_be_missing_in not in flags.folder:
        _check_trained(flags)
    _run(command, name, ["--algo", flags.algo, "--env", flags.env, "--folder", flags.folder, *arguments])


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _flags() -> argparse.ArgumentParser:
    """The few flags of rl_zoo3 that we look at; it parses them all again."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="reinforce")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    return parser


def _train_flags() -> argparse.ArgumentParser:
    parser = _flags()
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict)
    parser.add_argument("-i", "--trained-agent", default="")
    return parser


def _vec_env_flag(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The kind of vectorised environment, of which rl_zoo3 knows only two, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vec-env")
    flags, others = parser.parse_known_args(arguments)
    if flags.vec_env is not None:
        check_name("--vec-env", flags.vec_env, VEC_ENVS)
    return flags.vec_env, others


@contextlib.contextmanager
def _experiments_with(vec_env: str | None) -> Iterator[None]:
    """rl_zoo3's ``train`` makes our experiments, whose configurations may say more."""
    before = rl_zoo3.train.ExperimentManager
    rl_zoo3.train.ExperimentManager = functools.partial(Experiment, vec_env=vec_env)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        rl_zoo3.train.ExperimentManager = before  # type: ignore[misc]


def _trained_flags() -> argparse.ArgumentParser:
    parser = _flags()
    parser.add_argument("-f", "--folder", default="logs")
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint", type=int)
    parser.add_argument("--load-last-checkpoint", action="store_true")
    return parser


def _known_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse our flags and check the names among them."""
    try:
        flags, _ = parser.parse_known_args(arguments)
    except (NameError, SyntaxError) as error:
        raise ValueError(f"""-params: {error} (values are Python; strings need quotes: baseline:"'none'")""") from error
    import_environments(flags.gym_packages)
    check_name("algorithm", flags.algo, ALGOS)
    check_environment(flags.env)
    return flags


def _check_trained(flags: argparse.Namespace) -> None:
    """Refuse to enjoy an agent that is not there."""
    choice = (flags.load_best, flags.load_checkpoint, flags.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            get_model_path(flags.exp_id, flags.folder, flags.algo, EnvironmentName(flags.env), *choice)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{error}; train it first: sb3-pgext train --algo {flags.algo} --env {flags.env}") from error


def _run(command: Callable[[], None], name: str, arguments: Sequence[str]) -> None:
    """Run a command of rl_zoo3, which reads its flags from ``sys.argv``."""
    before = sys.argv
    sys.argv = [f"sb3-pgext {name}", *arguments]
    try:
        command()
    finally:
        sys.argv = before
