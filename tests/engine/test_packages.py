"""Claim: a traced function is compiled once for everything that its code depends on, and is found again."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch as th
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_pgext.engine import packages as module
from sb3_pgext.engine.packages import package_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_loaded", {})  # as in another process
    return tmp_path / "sb3_pgext"


def noisy(x):
    return [x @ x.T + th.empty(3, 3).normal_() + th.tensor(2.0)]


X = th.arange(12.0).reshape(3, 4)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the package of :func:`noisy`, compiled once for all tests, which get a copy of it."""
    path = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
        patch.setattr(module, "_loaded", {})
        package_of(make_fx(noisy)(X), [X])
    return path / "sb3_pgext"


@pytest.fixture
def package(compiled, folder, monkeypatch):
    """The package in the folder of this test; building it anew takes what the module's fixture has built."""
    shutil.copytree(compiled, folder)
    built = []

    def rebuild(traced, arguments, destination, digest):
        built.append(digest)
        (source,) = compiled.glob(f"{digest}.*")
        return Path(shutil.copy(source, destination))

    monkeypatch.setattr(module, "_compile_elsewhere", rebuild)
    (path,) = folder.iterdir()
    return path, built


def assert_right(run):
    for seed in range(2):
        th.manual_seed(seed)
        (wanted,) = noisy(X)
        th.manual_seed(seed)
        (found,) = run([X])
        assert th.allclose(found, wanted, rtol=0, atol=1e-6)


def test_the_same_random_numbers_and_compiled_once(package):
    path, built = package
    assert_right(package_of(make_fx(noisy)(X), [X]))
    assert built == []
    assert list(path.parent.iterdir()) == [path], "the package and nothing else"


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def of_another_torch(path):
    """Whole, and yet it does not load."""
    path.write_bytes(b"not a package")
    path.rename(path.with_name(module._name_of(path, path.name.partition(".")[0])))


@pytest.mark.parametrize("damage", [cut_short, changed, emptied, of_another_torch], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("error")
def test_a_damaged_package_is_built_anew(package, damage):
    path, built = package
    damage(path)
    assert_right(package_of(make_fx(noisy)(X), [X]))
    assert len(built) == 1
    assert list(path.parent.iterdir()) == [path], "the damaged one is gone"
    module._loaded.clear()
    package_of(make_fx(noisy)(X), [X])
    assert len(built) == 1, "the new one is found"


def test_nobody_else_may_put_a_package_there(package, monkeypatch):
    path, _ = package
    path.parent.chmod(0o777)
    package_of(make_fx(noisy)(X), [X])
    assert path.parent.stat().st_mode & 0o777 == 0o700
    module._loaded.clear()
    monkeypatch.setattr(module.os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(RuntimeError, match="belongs to another user: set TORCHINDUCTOR_CACHE_DIR"):
        package_of(make_fx(noisy)(X), [X])


def test_a_new_folder_is_the_users_own(folder):
    module._make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_public_loader_has_the_function_that_is_called(package):
    """
    ``torch._inductor.aoti_load_package`` is documented, the attribute ``loader.run`` of what it returns is not. If this
    fails after an upgrade: let ``packages._run_of`` return a function of a list that calls the returned object itself,
    ``lambda tensors: model(*tensors)``. It gives the same numbers and takes longer: measure with benchmarks.
    """
    path, _ = package
    model = th._inductor.aoti_load_package(str(path))
    th.manual_seed(0)
    wanted = model(X)
    th.manual_seed(0)
    (found,) = module._run_of(path)([X])
    assert th.equal(found, wanted if isinstance(wanted, th.Tensor) else wanted[0])


def test_loaded_once_for_all_threads(package, monkeypatch):
    loaded = []
    run_of = module._run_of
    monkeypatch.setattr(module, "_run_of", lambda path: loaded.append(path) or run_of(path))
    traced = make_fx(noisy)(X)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: package_of(traced, [X]), range(8)))
        assert len(loaded) == 1
        inputs = [th.full((3, 4), float(k)) for k in range(4)]
        found = list(pool.map(lambda x: [runs[0]([x])[0] for _ in range(200)], inputs))
    assert all(run is runs[0] for run in runs)
    for x, results in zip(inputs, found, strict=True):
        assert all((result - x @ x.T - 2.0).abs().max() < 7.0 for result in results), "its own input, and noise"


def test_files_that_are_called_like_modules_of_the_standard_library(tmp_path, monkeypatch):
    """In the current folder, and in one of those that modules are found in."""
    for name in ("queue", "traced"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "cache")  # relative to the current folder
    x = th.ones(3, 4)
    assert th.equal(package_of(make_fx(lambda a: [a * 2.0])(x), [x])([x])[0], 2 * x)
    assert len(list((tmp_path / "cache" / "sb3_pgext").iterdir())) == 1


def test_without_a_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    x = th.ones(3, 4)
    with pytest.raises(RuntimeError, match="No working C\\+\\+ compiler found"):
        package_of(make_fx(noisy)(x), [x])
    assert list(folder.iterdir()) == []


def test_what_the_code_depends_on(monkeypatch):
    x = th.ones(4, 4)

    def digest(function, *arguments):
        return module._digest(make_fx(function)(*arguments), arguments)

    assert digest(noisy, th.ones(3, 4)) == digest(noisy, th.zeros(3, 4))
    digests = [
        digest(lambda a: [a * 2.0], x),
        digest(lambda a: [a * 3.0], x),
        digest(lambda a: [a * th.tensor([2.0, 2.5])[0]], x),
        digest(lambda a: [a * th.tensor([2.0, 3.5])[0]], x),
        digest(lambda a: [a * 2.0], x[:3]),
        digest(lambda a: [a * 2.0], x[:3].T.contiguous().T),
        digest(lambda a: [a * 2.0], x.double()),
    ]
    monkeypatch.setattr(th, "get_num_threads", lambda: 7)
    digests.append(digest(lambda a: [a * 2.0], x))
    monkeypatch.setattr(module, "_processor", lambda: "another one")
    digests.append(digest(lambda a: [a * 2.0], x))
    assert len(set(digests)) == len(digests)
