"""Checkpoints on the disk: folders that are there as a whole or not at all, and tell when they have been changed.

A checkpoint is a folder such as ``000042-step-420000``, the 43rd, at step 420,000. It holds ``manifest.json`` (format,
version, checksums, signature), ``model.json`` (algorithm, arguments, counters, generators), ``tensors.safetensors``
(every array and tensor, by its path in ``model.json``), and where needed ``environment.pkl`` and ``custom.pkl``.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sb3_pgext.arguments import require

__all__ = [
    "Damaged",
    "Stored",
    "add_checkpoint",
    "found",
    "good_checkpoints",
    "has_checkpoint",
    "read",
    "together",
    "write",
]

MODEL, TENSORS, CUSTOM, ENVIRONMENT = "model.json", "tensors.safetensors", "custom.pkl", "environment.pkl"
MANIFEST, LOCK = "manifest.json", ".lock"
FORMAT = {"format": "sb3-pgext checkpoint", "version": 1}

_NAME = re.compile(r"\d{6}-step-\d+")
"""Checkpoints of a training: how many were written before, and at which step."""
_RANK = re.compile(r"rank-(\d+)-")
"""Before the names of the files of all ranks but the first."""
_TEMPORARY = ".writing-"
_KEY_LENGTH = 32


class Damaged(ValueError):
    """A file of a checkpoint is torn, altered or missing."""


@dataclass(frozen=True)
class Stored:
    """
    A checkpoint whose files are what was written.

    :param path: its folder
    :param files: their contents, by name
    :param own: whether this user wrote it, on this machine
    """

    path: Path
    files: Mapping[str, bytes]
    own: bool

    @property
    def n_ranks(self) -> int:
        """How many processes wrote it together."""
        return 1 + max(rank for rank, _ in map(_rank_and_name, self.files))

    def of_rank(self, rank: int) -> "Stored":
        """The files of one of these processes, by the names that one process alone gives them."""
        of_all = ((*_rank_and_name(name), content) for name, content in self.files.items())
        return replace(self, files={name: content for r, name, content in of_all if r == rank})


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """
    Write a checkpoint. Whatever happens meanwhile, all of it is there afterwards or nothing.

    :param path: its folder, which must not be there yet
    :param files: their contents, by name
    :raises ValueError: something is there
    """
    require(not path.exists(), "path", str(path), "one where nothing is yet")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        for name, content in {**files, MANIFEST: _manifest(files)}.items():
            _write_durably(temporary / name, content)
        _sync(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def read(path: Path) -> Stored:
    """
    Read a checkpoint.

    :param path: its folder
    :return: its files
    :raises Damaged: one of them is not what was written; the message names it
    """
    raw, intact = _content(path / MANIFEST), False
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        manifest = json.loads(raw)
        listed = manifest["files"]
        names = {name for _, name in map(_rank_and_name, listed)}
        known = {MODEL, TENSORS} <= listed.keys() and names <= {MODEL, TENSORS, CUSTOM, ENVIRONMENT}
        intact = known and raw == _sealed({key: manifest[key] for key in (*FORMAT, "files", "signature")})
    if not intact:
        raise Damaged(f"{path / MANIFEST} is torn or altered")
    if {key: manifest[key] for key in FORMAT} != FORMAT:
        raise Damaged(f"{path / MANIFEST}: version={manifest['version']!r}: allowed is {FORMAT['version']}")
    files = {name: _content(path / name) for name in listed}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != listed[name]:
            raise Damaged(f"{path / name} is torn or altered: its checksum is not that of {MANIFEST}")
    signature = _signature(listed)
    own = signature is not None and hmac.compare_digest(_spelled(signature), _spelled(manifest["signature"]))
    return Stored(path, files, own)


def together(of_ranks: Sequence[Mapping[str, bytes]]) -> dict[str, bytes]:
    """
    The files of several processes as those of one checkpoint.

    :param of_ranks: contents by name, of each rank
    :return: contents by name
    """
    first, *others = of_ranks
    of_others = ((f"rank-{r}-{name}", files[name]) for r, files in enumerate(others, 1) for name in files)
    return {**first, **dict(of_others)}


def _rank_and_name(name: str) -> tuple[int, str]:
    prefix = _RANK.match(name)
    return (int(prefix[1]), name[prefix.end() :]) if prefix else (0, name)


def found(folder: Path) -> list[Path]:
    """
    The checkpoints of a training.

    :param folder: where it writes them
    :return: those in it, good or not, the last one first
    """
    return [path for path in sorted(folder.glob("*-step-*"), reverse=True) if _NAME.fullmatch(path.name)]


def add_checkpoint(folder: Path, num_timesteps: int, files: Mapping[str, bytes], keep: int) -> Path:
    """
    Write the next checkpoint of a training, see :func:`write`, and delete what nobody needs any more: those older than
    the last good ones, and what a killed process has left.

    :param folder: where its checkpoints are
    :param num_timesteps: environment steps so far
    :param files: their contents, by name
    :param keep: how many good ones stay
    :return: its path
    """
    before = found(folder)
    serial = int(before[0].name.partition("-")[0]) + 1 if before else 0
    path = folder / f"{serial:06d}-step-{num_timesteps}"
    write(path, files)
    kept = list(islice(good_checkpoints(folder), keep))
    for older in [other for other in before if len(kept) == keep and other < kept[-1]]:
        # Renamed first, so that none is ever seen with a part of its files.
        older.rename(older.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}"))
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return path


def good_checkpoints(folder: Path) -> Iterator[Path]:
    """
    The checkpoints of a training that are not damaged.

    :param folder: where it writes them
    :return: the good ones in it, the last one first
    """
    return filter(_is_good, found(folder))


def has_checkpoint(path: str | Path) -> bool:
    """
    Say if there is something to go on from. A folder may be there without, where the very first checkpoint was not
    finished.

    :param path: a folder of checkpoints, or a single checkpoint; it need not be there
    :return: whether :func:`~sb3_pgext.resume` finds a good checkpoint there
    """
    return any(_is_good(checkpoint) for checkpoint in found(Path(path)) or [Path(path)])


def _is_good(checkpoint: Path) -> bool:
    with contextlib.suppress(Damaged, OSError):
        read(checkpoint)
        return True
    return False


def num_timesteps_at(path: Path) -> int:
    """
    :param path: a checkpoint of a training
    :return: environment steps until then, by its name
    """
    return int(path.name.rpartition("-")[2])


def _manifest(files: Mapping[str, bytes]) -> bytes:
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return _sealed({**FORMAT, "files": checksums, "signature": _signature(checksums)})


def _sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with its own checksum, in one spelling, so that no byte of it can be changed unseen."""
    checksum = hashlib.sha256(_spelled(manifest)).hexdigest()
    return _spelled({**manifest, "sha256": checksum}) + b"\n"


def _spelled(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _signature(checksums: Mapping[str, str]) -> str | None:
    """The signature that only this user can give; None where there is no place for a key."""
    key = _own_key()
    return None if key is None else hmac.new(key, _spelled(checksums), "sha256").hexdigest()


def _own_key() -> bytes | None:
    """A secret of this user, made when it is first needed; None where it cannot be kept, or others could know it."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home directory
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sb3-pgext"
        path = folder / "key"
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
        if len(key) == _KEY_LENGTH and _is_for_nobody_else(path):
            return key
    return None


def _make_key(path: Path) -> None:
    """Write a new key, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        _write_durably(temporary, secrets.token_bytes(_KEY_LENGTH), mode=0o600)
        with contextlib.suppress(FileExistsError):  # of another process, which was faster
            os.link(temporary, path)
    _sync(path.parent)


def _is_for_nobody_else(path: Path) -> bool:
    """Windows keeps the folders of a user for that user."""
    status = path.stat()
    return os.name == "nt" or (status.st_uid == os.getuid() and status.st_mode & 0o077 == 0)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    return path.read_bytes()


def _write_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a new file, whose content is on the disk afterwards."""
    with open(path, "xb", opener=partial(os.open, mode=mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Also the names of the files are on the disk then; Windows cannot, and need not."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
