"""rl_zoo3's training on several ranks: one seed, and the files of rank 0 alone."""

import argparse
import contextlib
import io
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id

from sb3_pgext.arguments import require
from sb3_pgext.checkpoints import has_checkpoint
from sb3_pgext.parallel import present
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.trainings import checkpoints_folder

__all__ = ["flags_of_rank", "quiet_but_first", "restarted_run"]


@contextlib.contextmanager
def quiet_but_first() -> Iterator[None]:
    """Print nothing on ranks other than 0."""
    with contextlib.redirect_stdout(io.StringIO()) if present().rank else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def flags_of_rank(algo: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """
    Add the flags that a training on several ranks needs.

    :param algo: zoo key of the algorithm
    :param arguments: of rl_zoo3's ``train``
    :return: context of the flags; rl_zoo3 takes the last ones. Ranks other than 0 print nothing meanwhile, and their
        files are deleted afterwards
    :raises ValueError: another library's algorithm, which would train alone on each rank, or a search
    """
    ranks = present()
    if not ranks.several:
        yield [*arguments]
        return
    require(algo in ALGORITHMS, "--algo", algo, f"one of {', '.join(ALGORITHMS)} under torchrun")
    searches = "-optimize" in arguments or "--optimize-hyperparameters" in arguments
    require(not searches, "--optimize-hyperparameters", True, "False under torchrun")
    seed = _train_flags(arguments).seed
    seed = ranks.from_first(secrets.randbelow(2**32 - 1)) if seed < 0 else seed
    with tempfile.TemporaryDirectory() as folder, quiet_but_first():
        elsewhere = ["--log-folder", folder, "--tensorboard-log", ""] if ranks.rank else []
        yield [*arguments, "--seed", str(seed), *elsewhere]


def restarted_run(algo: str, env_id: str, arguments: Sequence[str]) -> Path | None:
    """
    Find the run that torchrun has started anew because a rank had died.

    :param algo: zoo key of the algorithm
    :param env_id: environment
    :param arguments: of rl_zoo3's ``train``
    :return: its folder; None where this is the first start, or nothing has been written yet
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return None
    folder, name = f"{_train_flags(arguments).log_folder}/{algo}/", EnvironmentName(env_id)
    run = Path(folder) / f"{name}_{get_latest_run_id(folder, name)}"
    found: Path | None = present().from_first(run if has_checkpoint(checkpoints_folder(run)) else None)
    return found


def _train_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-f", "--log-folder", default="logs")
    parser.add_argument("--seed", type=int, default=-1)
    return parser.parse_known_args(arguments)[0]
