"""Claim: a traced function is compiled once for everything that its code depends on, and is found again."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch as th
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_pgext.engine import packages as module
from sb3_pgext.engine.packages import package_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "sb3_pgext"


def noisy(x):
    return [x @ x.T + th.empty(3, 3).normal_() + th.tensor(2.0)]


def test_the_same_random_numbers_and_compiled_once(folder, monkeypatch):
    x = th.arange(12.0).reshape(3, 4)
    package_of(make_fx(noisy)(x), [x])
    monkeypatch.setattr(subprocess, "run", None)
    module._loaded.cache_clear()  # as in another process
    run = package_of(make_fx(noisy)(x), [x])
    for seed in range(2):
        th.manual_seed(seed)
        (wanted,) = noisy(x)
        th.manual_seed(seed)
        (found,) = run([x])
        assert th.allclose(found, wanted, rtol=0, atol=1e-6)
    assert len(list(folder.iterdir())) == 1, "the package and nothing else"


def test_loaded_once_for_all_threads():
    def function(a):
        return [(a @ a.T).sin() * 2.0]

    inputs = [th.full((16, 16), float(k)) for k in range(4)]
    run = package_of(make_fx(function)(inputs[0]), [inputs[0]])
    assert package_of(make_fx(function)(inputs[1]), [inputs[1]]) is run
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: [run([x])[0] for _ in range(200)], inputs))
    for x, results in zip(inputs, found, strict=True):
        assert all(th.allclose(result, function(x)[0], atol=1e-4) for result in results)


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
