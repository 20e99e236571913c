"""Claim: what `make gpu` measures can be measured, here with the CPU in the GPU's place."""

import subprocess
import sys
from pathlib import Path

import torch as th

from benchmarks import page

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_make_gpu(tmp_path):
    """Its tests, which skip here, and its tables, at a tiny budget."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()  # newer than what it depends on
    file = tmp_path / "tables" / "gpu.md"
    tests = "tests/rollouts/test_dataset.py -p no:cacheprovider"
    options = (
        "--settings images cartpole_256 cartpole_4096 --contenders PPO ClippedCriticPPO --n-steps 2 --repetitions 1"
    )
    variables = f"VENV={tmp_path}", "TEST_WORKERS=0", f"GPU_TESTS={tests}", f"GPU_OPTIONS={options} --out {file}"
    finished = run("make", "gpu", "DEVICE=cpu", *variables)
    assert finished.returncode == 0, finished.stderr
    if not th.cuda.is_available():
        assert "no GPU" in finished.stdout
    written = file.read_text()
    assert finished.stdout.endswith(written)
    assert f"On cpu, torch {th.__version__}." in written
    for environment in ("RandomImages-v0: n_envs 8", "CartPole-v1: n_envs 256", "CartPole-v1: n_envs 4096"):
        assert environment in written
    for contender in ("PPO", "ClippedCriticPPO"):
        assert written.count(f"\n| {contender} | ") == 3


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finished = run(sys.executable, "-m", "benchmarks.gpu", "--out", tmp_path / "gpu.md")
    assert (finished.returncode, finished.stdout) == (0, "no GPU here: nothing is measured\n")
    assert not (tmp_path / "gpu.md").exists()


def test_environments_that_speak_tensors():
    contenders = "PPO (SB3), DummyVecEnv", "ClippedCriticPPO, GymnasiumVecEnv", "ClippedCriticPPO, TensorVecEnv"
    options = "--n-envs", 4, "--rounds", 1, "--scale", 2, 4
    finished = run(sys.executable, "-m", "benchmarks.tensor_vec_env", "--contenders", *contenders, *options)
    assert finished.returncode == 0, finished.stderr
    for line in (
        "4 CartPoles | ",
        *(f"{name} | " for name in contenders),
        "ClippedCriticPPO, TensorVecEnv against",
        "2 | ",
    ):
        assert f"\n{line}" in f"\n{finished.stdout}"


def test_the_page_of_the_benchmark(tmp_path, monkeypatch):
    """New evaluations take the place of those of the same runs; a task has a table, and few seeds their range."""
    monkeypatch.setattr(page, "DOCS", tmp_path)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results" / "benchmark.csv.gz")
    header = (
        "run,algorithm,environment,seed,timesteps,true_timesteps,mean_return,std_return,episodes,training_seconds\n"
    )

    def written(name, label, returns):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rows = [
            f"{label},ppo,Pendulum-v1,{seed},{t},{t},{x * t},0,10,{t}"
            for seed, x in enumerate(returns)
            for t in (0, 600)
        ]
        (folder / "results.csv").write_text(header + "\n".join(rows) + "\n")
        monkeypatch.setattr(sys, "argv", ["page", str(folder)])
        page.main()
        return (tmp_path / "benchmark.md").read_text()

    assert "| PPO (SB3) | 2 | 600 | 900 [600, 1,200] | 450 [300, 600] | 10.0 |" in written(
        "benchmark", "PPO (SB3)", [1, 2]
    )
    assert "| SAC (SB3) | 6 | 600 | 1,800 [" in written("benchmark_replay", "SAC (SB3)", [3] * 6)
    text = written("benchmark", "PPO (SB3)", [2, 2])
    assert "| PPO (SB3) | 2 | 600 | 1,200 [1,200, 1,200] |" in text
    assert "SAC (SB3)" in text, "what is kept is on the page as well"
    assert "Acrobot-v1 |" in text, "what others have published"
    for name in ("benchmark_curves", "benchmark_replay_curves"):
        assert f"(results/{name}.png)" in text
        assert (tmp_path / "results" / f"{name}.png").is_file()
