"""The command line: ``sb3-pgext train``, ``enjoy``, ``compare``, ``variance``, ``zoo`` and more."""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import sb3_pgext
from sb3_pgext import parallel
from sb3_pgext.arguments import installing

_EXTRAS = dict.fromkeys(("huggingface_sb3", "optuna", "requests", "rich", "rl_zoo3"), "zoo")
_EXTRAS |= dict.fromkeys(("jinja2", "joblib", "matplotlib", "pandas", "rliable", "scipy", "seaborn"), "compare")
_EXTRAS |= {
    "dask": "dask",
    "distributed": "dask",
    "ray": "ray",
    "envpool": "envpool",
    "huggingface_hub": "hub",
    "moviepy": "hub",
}
"""Modules that are not always installed → the extra that brings them."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param argv: the arguments; default: those of the process
    :return: exit status: 0, 1 when a run of a study failed, 2 for a mistake in the arguments, 130 when interrupted
    """
    try:
        return _run(argv)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        command = (sys.argv[1:] if argv is None else argv)[0]
        extra = "compare" if extra == "zoo" and command in ("compare", "variance") else extra  # which includes zoo
        return _report(f"{error.name} is not installed: {installing(extra)}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:  # a full disk, a folder that cannot be written to
        return _report(str(error))
    except ValueError as error:
        # Before training a ValueError is the user's mistake; one that training raises is shown with its traceback.
        if any(frame.name == "learn" for frame in traceback.extract_tb(error.__traceback__)):
            raise
        return _report(str(error))


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("train", "compare"):
        parallel.init()
    if rest and arguments.command not in ("train", "enjoy", "record-video"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "compare":
        from sb3_pgext.compare.command import compare
        from sb3_pgext.compare.study import quick_study

        names = ("algos", "seeds", "timesteps", "gym_packages")
        study = arguments.study
        if study is None:
            if arguments.algos is None:
                parser.error("compare: --env needs --algos")
            study = quick_study(arguments.env, *(getattr(arguments, name) for name in names))
        elif given := [name for name in names if getattr(arguments, name) is not None]:
            parser.error(f"compare: --{given[0].replace('_', '-')} belongs to --env; a study file has its own")
        return 0 if compare(study, arguments.out, arguments.jobs, arguments.backend) else 1

    if arguments.command == "variance":
        from sb3_pgext.variance.command import variance
        from sb3_pgext.variance.study import parse_study

        options = vars(arguments)
        _, out, jobs = (options.pop(name) for name in ("command", "out", "jobs"))
        variance(parse_study(**options | {"params": dict(arguments.params)}), out, jobs)
        return 0

    if arguments.command == "zoo":
        return _zoo(arguments.what)
    if arguments.command in ("push-to-hub", "load-from-hub"):
        from sb3_pgext.zoo import hub

        options = vars(arguments)
        pushes = options.pop("command") == "push-to-hub"
        print(f"return: {hub.push_to_hub(**options) if pushes else hub.load_from_hub(**options)}")
        return 0
    _of_rl_zoo3(arguments.command, rest)
    return 0


def _zoo(what: str) -> int:
    if what == "check":
        from sb3_pgext.zoo.overview import check_zoo

        return 0 if check_zoo() else 1
    from sb3_pgext.zoo.shipped import list_zoo

    list_zoo()
    return 0


def _of_rl_zoo3(command: str, arguments: Sequence[str]) -> None:
    from sb3_pgext.zoo.flags import asks_for_help, print_own_help

    if asks_for_help(arguments):
        print_own_help(command)
        if find_spec("rl_zoo3") is None:
            print(f"rl_zoo3's flags are shown here when it is installed: {installing('zoo')}")
            return
    from sb3_pgext.zoo import commands

    {"train": commands.train, "enjoy": commands.enjoy, "record-video": commands.record_video}[command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sb3-pgext", description=sb3_pgext.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sb3-pgext {sb3_pgext.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "train an agent: rl_zoo3's flags (--vec-env also gymnasium or envpool), REINFORCE by default"),
        ("enjoy", "watch a trained agent: rl_zoo3's flags, agents of logs/ by default"),
        ("record-video", "record a video of a trained agent: rl_zoo3's flags"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    of_zoo = commands.add_parser("zoo", help="list or check the configurations that we ship")
    of_zoo.add_argument("what", choices=("list", "check"), help="check: make the model of each of them")
    _add_compare(commands.add_parser("compare", help="train the runs of a study and compare them"))
    push = commands.add_parser("push-to-hub", help="put a trained agent on the Hugging Face Hub, or into a folder")
    _add_push(push.add_argument)
    _add_load(
        commands.add_parser("load-from-hub", help="get an agent from the Hub, or a folder, and play it").add_argument
    )
    of_variance = commands.add_parser("variance", help="measure variance and bias of the gradient under each option")
    _add_variance(of_variance.add_argument)
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    file = "a study file, or the name of one in zoo_configs/studies"
    what.add_argument("study", nargs="?", metavar="STUDY.yml", help=file)
    what.add_argument("--env", nargs="+", metavar="ID", help="without a file: environments")
    add = parser.add_argument
    add("--algos", nargs="+", metavar="KEY", help="without a file: zoo keys, the first as the baseline")
    add("--seeds", type=int, metavar="N", help="without a file: seeds per algorithm (default: 3)")
    add("--timesteps", type=int, metavar="N", help="without a file: steps of each run (default: the configurations')")
    add("--gym-packages", nargs="+", metavar="MODULE", help="without a file: modules that register environments")
    add("--out", type=Path, metavar="DIR", help="where the results go (default: runs/<study's name>)")
    add("--jobs", type=int, metavar="N", help="runs at the same time (default: one per core)")
    add("--backend", default="loky", metavar="NAME", help="joblib's: loky (default), dask, ray; sequential: one by one")


def _add_variance(add: Callable[..., object]) -> None:
    add("--algo", default="reinforce", help="reinforce (default), vpg or ispg")
    add("--env", dest="environment", default="CartPole-v1", metavar="ID", help="environment (default: CartPole-v1)")
    add("--gym-packages", nargs="+", default=(), metavar="MODULE", help="modules that register environments")
    add("--vary", required=True, metavar="OPTION=VALUE,…", help="e.g. baseline=none,time,state")
    add("--at-steps", default="0", metavar="N,…", help="training steps to freeze the policy at")
    add("--batches", dest="n_batches", type=int, default=200, metavar="N", help="gradient batches (default: 200)")
    add("--episodes", dest="n_episodes", type=int, metavar="N", help="per batch (default: the configuration's)")
    add("--steps", dest="n_steps", type=int, metavar="N", help="per batch, for algorithms without episodes")
    add("--reference", metavar="VALUE", help="measure the bias against the mean gradient of this value")
    add("--seed", type=int, default=0, help="of the training")
    add("--conf-file", help="configuration file (default: the algorithm's)")
    add("--params", nargs="+", type=_key_and_value, default=(), metavar="KEY=VALUE", help="laid over the configuration")
    add("--out", type=Path, metavar="DIR", help="where the results go (default: under runs/variance)")
    add("--jobs", type=int, metavar="N", help="worker processes (default: one per core)")


def _add_push(add: Callable[..., object]) -> None:
    add("run", type=Path, metavar="RUN", help="folder of a training, e.g. logs/reinforce/CartPole-v1_1")
    add("--repo-id", metavar="USER/NAME", help="where to upload it; without it, --to-folder alone is written")
    add("--to-folder", type=Path, metavar="DIR", help="a new folder to keep the files in, to look at them first")
    add("--episodes", type=int, default=20, metavar="N", help="played for the model card (default: 20)")
    add("--license", dest="license_id", default="mit", metavar="ID", help="of the agent, as the Hub spells it (mit)")
    add("--private", action="store_true", help="make a private repository")
    add("--gym-packages", nargs="+", default=(), metavar="MODULE", help="modules that register the environment")


def _add_load(add: Callable[..., object]) -> None:
    add("source", metavar="USER/NAME", help="repository of the Hub, or a folder that push-to-hub has written")
    add("--out", type=Path, metavar="DIR", help="a new folder for its files (default: hub/NAME)")
    add("--episodes", type=int, metavar="N", help="to play (default: those of the model card, again)")
    add("--gym-packages", nargs="+", default=(), metavar="MODULE", help="modules that register the environment")


def _key_and_value(text: str) -> tuple[str, object]:
    """Read ``key=value``, the value as in YAML; ``key=~`` takes the key out of the configuration."""
    from sb3_pgext.variance.study import parse_value

    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is KEY=VALUE")
    return key, parse_value(value)


def _report(mistake: str) -> int:
    print(f"error: {mistake}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
