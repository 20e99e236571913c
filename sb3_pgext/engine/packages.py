"""Traced functions as compiled packages on the disk.

The compiler has a process of its own, ``python -m sb3_pgext.engine.packages``: it takes memory that a training does
not need, and seconds to import that a process which finds its packages need not spend.
"""

import functools
import hashlib
import importlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch as th

__all__ = ["package_of"]

_OPTIONS = {"fallback_random": True}
"""Of torch's compiler: random numbers are drawn as they are without it."""

_PACKAGE = "compiled.pt2"


def package_of(
    traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]
) -> Callable[[list[th.Tensor]], list[th.Tensor]]:
    """
    What has been traced, compiled for arguments of these shapes and strides. It is kept in the folder of torch's
    compiler, which the environment variable ``TORCHINDUCTOR_CACHE_DIR`` names, for the next process.

    :param traced: a function of tensors on the CPU to a list of tensors
    :param arguments: examples
    :return: the function, which takes and returns lists
    :raises RuntimeError: it cannot be compiled
    """
    import torch._inductor.runtime.cache_dir_utils as cache  # here, for those who compile nothing

    folder = Path(cache.cache_dir()).absolute() / "sb3_pgext"
    package = folder / f"{_digest(traced, arguments)}.pt2"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile_elsewhere(traced, arguments, package)
    return _loaded(package)


@functools.cache
def _loaded(package: Path) -> Callable[[list[th.Tensor]], list[th.Tensor]]:
    """
    Once in a process, also for several policies, which may be trained in threads: what a process has loaded, it holds
    until it ends, with megabytes of its temporary files.
    """
    # The loader itself: what is around it looks at the structure of the arguments at each call.
    return th._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1).run


def _digest(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]) -> str:
    """Of all that the compiled code depends on."""
    digest = hashlib.sha256(traced.code.encode())
    for name, constant in traced.named_buffers():
        digest.update(f"{name} {constant.dtype} {constant.tolist()}".encode())
    form = [(x.shape, x.stride(), x.dtype) for x in arguments]
    machine = platform.machine(), _processor(), th.backends.cpu.get_cpu_capability(), th.get_num_threads()
    digest.update(repr((form, machine, th.__version__, sys.version_info[:2], sorted(_OPTIONS.items()))).encode())
    return digest.hexdigest()


def _processor() -> str:
    """What the processor can do: the compiler uses all of it, and the folder may be that of several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def _compile_elsewhere(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor], package: Path) -> None:
    """In another process, to a temporary name: other trainings may compile the same at the same time."""
    examples = [th.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in arguments]
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        # As Python code: unpickling traces anew, and takes what depends on no argument, such as noise, for constant.
        traced.to_folder(Path(folder, "traced"), "Traced")
        th.save(examples, Path(folder, "examples.pt"))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *_module_folders()])}
        command = [sys.executable, "-W", "ignore", "-m", __name__, folder, str(th.get_num_threads())]
        finished = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            lines = [line for line in finished.stderr.splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"the compiler ended with {finished.returncode}")
        os.replace(Path(folder, _PACKAGE), package)


def _module_folders() -> list[str]:
    """
    Where this process finds modules. The standard library's come first: a script beside the user's that is called like
    one of them would otherwise be run by the compiler, which imports more of them than this process has.
    """
    standard = [os.path.join(sysconfig.get_path("stdlib"), name) for name in ("", "lib-dynload")]
    folders = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return [*map(os.path.abspath, standard), *folders]


def _compile(folder: Path, n_threads: int) -> None:
    """What the other process does."""
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
