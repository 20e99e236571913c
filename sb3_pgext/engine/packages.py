"""Traced functions as compiled packages on the disk.

The compiler has a process of its own, ``python -m sb3_pgext.engine.packages``: it takes memory that a training does
not need, and seconds to import that a process which finds its packages need not spend.
"""

import hashlib
import importlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch as th

__all__ = ["package_of"]

Run = Callable[[list[th.Tensor]], list[th.Tensor]]

_OPTIONS = {"fallback_random": True}
"""Of torch's compiler: random numbers are drawn as they are without it."""

_PACKAGE = "compiled.pt2"


def package_of(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]) -> Run:
    """
    Compile a traced function for arguments of these shapes and strides. It is kept in the folder of torch's
    compiler, which the environment variable ``TORCHINDUCTOR_CACHE_DIR`` names, for the next process.

    A process loads a package once, also for several policies, which may be trained in threads: what it has loaded, it
    holds until it ends, with megabytes of its temporary files.

    :param traced: a function of tensors on the CPU to a list of tensors
    :param arguments: examples
    :return: the function, which takes and returns lists
    :raises RuntimeError: it cannot be compiled, or the folder may be written to by others
    """
    import torch._inductor.runtime.cache_dir_utils as cache  # here, for those who compile nothing

    folder = Path(cache.cache_dir()).absolute() / "sb3_pgext"
    digest = _digest(traced, arguments)
    with _lock:
        run = _loaded.get((folder, digest)) or _found(folder, digest)
        if run is not None:
            return _loaded.setdefault((folder, digest), run)
    _make_private(folder)
    run = _run_of(_compile_elsewhere(traced, arguments, folder, digest))
    with _lock:
        return _loaded.setdefault((folder, digest), run)


_loaded: dict[tuple[Path, str], Run] = {}
"""Folder and digest → what this process has loaded."""

_lock = threading.Lock()


def _found(folder: Path, digest: str) -> Run | None:
    """The package on the disk; None if there is none. What is not as it was written, or does not load, is removed."""
    for package in sorted(folder.glob(f"{digest}.*.pt2")):
        _make_private(folder)
        try:
            if package.name == _name_of(package, digest):
                return _run_of(package)
        except (OSError, RuntimeError, ValueError):
            pass  # it is built anew
        package.unlink(missing_ok=True)
    return None


def _run_of(package: Path) -> Run:
    """The loader's own function: what is around it looks at the structure of the arguments at each call."""
    return th._inductor.aoti_load_package(str(package)).loader.run


def _name_of(package: Path, digest: str) -> str:
    """A file's name has a hash of its content too, so that a package that was cut short is noticed."""
    return f"{digest}.{hashlib.sha256(package.read_bytes()).hexdigest()[:32]}.pt2"


def _make_private(folder: Path) -> None:
    """
    Packages are code: nobody else may put any there.

    :param folder: is made if it is missing
    :raises RuntimeError: it belongs to another user
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid"):
        if folder.stat().st_uid != os.getuid():
            raise RuntimeError(f"{folder} belongs to another user: set TORCHINDUCTOR_CACHE_DIR to a folder of your own")
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)


def _digest(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]) -> str:
    """Hash of all that the compiled code depends on."""
    digest = hashlib.sha256(traced.code.encode())
    for name, constant in traced.named_buffers():
        digest.update(f"{name} {constant.dtype} {constant.tolist()}".encode())
    form = [(x.shape, x.stride(), x.dtype) for x in arguments]
    machine = platform.machine(), _processor(), th.backends.cpu.get_cpu_capability(), th.get_num_threads()
    digest.update(repr((form, machine, th.__version__, sys.version_info[:2], sorted(_OPTIONS.items()))).encode())
    return digest.hexdigest()


def _processor() -> str:
    """The processor's abilities: the compiler uses all of them, and the folder may be that of several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def _compile_elsewhere(
    traced: th.fx.GraphModule, arguments: Sequence[th.Tensor], destination: Path, digest: str
) -> Path:
    """In another process, to a temporary name: other trainings may compile the same at the same time."""
    examples = [th.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in arguments]
    with tempfile.TemporaryDirectory(dir=destination) as folder:
        # As Python code: unpickling traces anew, and takes what depends on no argument, such as noise, for constant.
        traced.to_folder(Path(folder, "traced"), "Traced")
        th.save(examples, Path(folder, "examples.pt"))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *_module_folders()])}
        command = [sys.executable, "-W", "ignore", "-m", __name__, folder, str(th.get_num_threads())]
        finished = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            lines = [line for line in finished.stderr.splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"the compiler ended with {finished.returncode}")
        compiled = Path(folder, _PACKAGE)
        with compiled.open("rb+") as file:
            os.fsync(file.fileno())
        return compiled.replace(destination / _name_of(compiled, digest))


def _module_folders() -> list[str]:
    """
    Where this process finds modules. The standard library's come first: a script beside the user's that is called like
    one of them would otherwise be run by the compiler, which imports more of them than this process has.
    """
    standard = sysconfig.get_path("stdlib")
    return [standard, os.path.join(standard, "lib-dynload"), *map(os.path.abspath, sys.path)]


def _compile(folder: Path, n_threads: int) -> None:
    """Compile in the other process."""
    import torch._inductor

    th.set_num_threads(n_threads)  # which loops are cut for
    traced = importlib.import_module("traced").Traced()
    program = th.export.export(traced, tuple(th.load(folder / "examples.pt")))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / _PACKAGE), inductor_configs=_OPTIONS)


if __name__ == "__main__":
    try:
        _compile(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:  # whatever the compilers may raise; its first line is what the other process reads
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
