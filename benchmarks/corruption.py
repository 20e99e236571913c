"""Checkpoints whose files have been changed at random: whether each is refused by its name, and the one before taken.

usage: python benchmarks/corruption.py [--files 1000] [--seed 0]

Each time one file of the last of three checkpoints of ISPG on CartPole-v1 is changed: bits are flipped, the file is
cut, emptied, extended or removed, or changes places with its namesake in another checkpoint. `load` must refuse the
checkpoint with the file's name, and `resume` must warn with that name and continue from the one before.
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import ISPG, CheckpointCallback, load, resume
from sb3_pgext.checkpoints.files import found


def flip(path: Path, rng: random.Random) -> None:
    """One to eight bits."""
    content = bytearray(path.read_bytes())
    for position in rng.sample(range(8 * len(content)), rng.randint(1, 8)):
        content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    """Somewhere."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def empty(path: Path, rng: random.Random) -> None:
    """Nothing is left."""
    path.write_bytes(b"")


def extend(path: Path, rng: random.Random) -> None:
    """By one to eight bytes."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 8)))


def remove(path: Path, rng: random.Random) -> None:
    """It is gone."""
    path.unlink()


def swap(path: Path, rng: random.Random) -> None:
    """With the file of the same name in another checkpoint."""
    other = rng.choice(found(path.parents[1])[1:]) / path.name
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, cut, empty, extend, remove, swap]


def outcome(folder: Path, damaged: Path, intact: dict[str, dict[str, th.Tensor]]) -> str:
    """
    :param folder: of the checkpoints
    :param damaged: the file of the last one that has been changed
    :param intact: the parameters in each checkpoint
    :return: ``"refused"``, or what went wrong
    """
    try:
        load(damaged.parent)
        return "loaded"
    except ValueError as error:
        if str(damaged.parent) not in str(error) or damaged.name not in str(error):
            return "refused without its name"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = resume(folder)
        except ValueError:  # both files of a swap
            return "refused" if all(not _good(path) for path in found(folder)) else "not resumed"
    if not any(damaged.name in str(warning.message) for warning in caught):
        return "resumed without a warning"
    taken = next(path for path in found(folder) if path != damaged.parent and _good(path))
    parameters = model.policy.state_dict()
    if not all(th.equal(tensor, intact[taken.name][name]) for name, tensor in parameters.items()):
        return "resumed wrongly"
    return "refused"


def _good(path: Path) -> bool:
    try:
        load(path)
    except ValueError:
        return False
    return True


def main() -> None:
    """Change, load, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    th.set_num_threads(1)

    outcomes: dict[str, collections.Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, original = Path(temporary) / "checkpoints", Path(temporary) / "original"
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
        network = {"net_arch": [8]}
        model = ISPG("MlpPolicy", env, n_episodes=4, replay_batches=1, seed=0, device="cpu", policy_kwargs=network)
        model.learn(300, callback=CheckpointCallback(50, original))
        intact = {path.name: load(path).policy.state_dict() for path in found(original)}
        for _ in range(arguments.files):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)
            damaged = rng.choice(sorted(found(folder)[0].iterdir()))
            damage = rng.choice(DAMAGES)
            damage(damaged, rng)
            row = outcomes.setdefault(f"{damage.__name__:7s} {damaged.name}", collections.Counter())
            row[outcome(folder, damaged, intact)] += 1

    for name in sorted(outcomes):
        print(f"{name:30s} " + ", ".join(f"{what}: {n}" for what, n in outcomes[name].items()))
    refused = sum(row["refused"] for row in outcomes.values())
    print(f"{refused} of {arguments.files} changed files were refused by their name")
    if refused < arguments.files:
        sys.exit(1)


if __name__ == "__main__":
    main()
