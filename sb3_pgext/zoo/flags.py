"""The flags of ``train``, ``enjoy`` and ``record-video`` that rl_zoo3 does not have."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_pgext.zoo.vec_envs import VEC_ENVS

CHECKPOINT_EVERY = 10_000
"""Environment steps between the checkpoints of a training, where the user does not say."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """
    Test for ``-h`` or ``--help``.

    :param arguments: of a command
    :return: whether one is there
    """
    return "-h" in arguments or "--help" in arguments


def print_own_help(command: str) -> None:
    """
    Print the help on the flags that rl_zoo3 does not have.

    :param command: ``"train"``, ``"enjoy"`` or ``"record-video"``
    """
    usage, flags = f"sb3-pgext {command} [--trust] ...", [trust_flag()]
    if command == "train":
        usage = "sb3-pgext train [--checkpoint-every N] [--vec-env KIND] ... | --resume DIR [--trust]"
        flags = [own_flags(), resume_flags()]
    print(argparse.ArgumentParser(usage=usage, parents=flags, add_help=False).format_help())


def trust_flag() -> argparse.ArgumentParser:
    """
    Make the parser of ``--trust``.

    :return: the parser
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trust", action="store_true", help="run code that is in the saved run")
    return parser


def own_flags() -> argparse.ArgumentParser:
    """
    Make the parser of the flags of a new training.

    :return: the parser
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    every = f"of our algorithms: steps between two checkpoints (default: {CHECKPOINT_EVERY}; if negative, none)"
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help=every)
    kinds = f"of vectorised environment: {', '.join(VEC_ENVS)} (not only rl_zoo3's, below)"
    parser.add_argument("--vec-env", metavar="KIND", help=kinds)
    return parser


def resume_flags() -> argparse.ArgumentParser:
    """
    Make the parser of all flags that go together with ``--resume``.

    :return: the parser
    """
    parser = trust_flag()
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the training in this folder of a run")
    parser.add_argument("--gym-packages", nargs="+", default=[], help=argparse.SUPPRESS)
    return parser
