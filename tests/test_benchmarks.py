"""Claim: what `make gpu` measures can be measured, here with the CPU in the GPU's place."""

import subprocess
import sys
from pathlib import Path

import torch as th

ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_tables_of_make_gpu(tmp_path):
    options = (
        "--device cpu --settings images cartpole_256 --contenders PPO ClippedCriticPPO --n-steps 2 --repetitions 1"
    )
    finished = run(*options.split(), "--out", tmp_path / "tables" / "gpu.md")
    assert finished.returncode == 0, finished.stderr
    written = (tmp_path / "tables" / "gpu.md").read_text()
    assert finished.stdout.endswith(written)
    assert written.startswith(f"On cpu, torch {th.__version__}.")
    for environment in ("RandomImages-v0: n_envs 8", "CartPole-v1: n_envs 256"):
        assert environment in written
    for contender in ("PPO", "ClippedCriticPPO"):
        assert written.count(f"\n| {contender} | ") == 2


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finished = run("--out", tmp_path / "gpu.md")
    assert (finished.returncode, finished.stdout) == (0, "no GPU here: nothing is measured\n")
    assert not (tmp_path / "gpu.md").exists()
