"""Claim: the model of ``benchmarks.scaling`` is what its description says, and its figure can be drawn."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling

CONSTANTS = json.loads((Path(__file__).parents[1] / "docs" / "results" / "scaling.json").read_text())


def test_one_rank_is_as_fast_as_one():
    for weak in (True, False):
        assert scaling.speed_up(1, CONSTANTS, "CartPole-v1", "hosts", 1.0, weak=weak) == pytest.approx(1.0)


@pytest.mark.parametrize("ring", [True, False])
def test_an_all_reduce_of_two_ranks_is_the_measured_one(ring):
    """With more ranks messages and bytes are those of the algorithm, counted here one by one."""
    times = {"4": 1e-5, "4000": 1e-4, "40000": 2e-4, "2000000": 2e-3}
    per_byte = (2e-3 - 1e-4) / (2_000_000 - 4_000)
    measured = scaling.all_reduce(2, 40_000, times, 0.0, ring)
    assert measured == pytest.approx(1e-4 + 40_000 * per_byte)
    n_ranks, total = 8, 0.0
    if ring:
        for _ in range(2 * (n_ranks - 1)):  # each sends an eighth to the next one
            total += 5e-5 + 1e-3 + 40_000 / 8 * per_byte
    else:
        for part in (2, 4, 8, 8, 4, 2):  # and back
            total += 5e-5 + 1e-3 + 40_000 / part * per_byte
    assert scaling.all_reduce(n_ranks, 40_000, times, 1e-3, ring) == pytest.approx(total)


def test_the_slowest_of_some_ranks():
    samples = np.array([1.0, 5.0, 2.0])
    drawn = np.random.default_rng(0).choice(samples, (200_000, 4)).max(axis=1).mean() / samples.mean()
    assert scaling.slowest(4, samples) == pytest.approx(drawn, rel=0.01)
    assert scaling.slowest(1, samples) == pytest.approx(1.0)


def test_without_communication_and_stragglers_a_rank_is_worth_a_rank():
    """In weak scaling; in strong scaling only what is shared gets less: the rows, not the calls."""
    link = {"4": 0.0, "4000": 0.0, "40000": 0.0, "2000000": 0.0}
    of_env = {"step": [0.0, 1e-5], "update": [0.0, 0.0, 1e-6], "parameters": 1000, "rollouts": [1.0, 1.0]}
    constants = {"links": {"two hosts": link}, "environments": {"any": of_env}}
    for weak in (True, False):
        assert scaling.speed_up(64, constants, "any", "hosts", 0.0, weak=weak) == pytest.approx(64.0)
    of_env |= {"step": [1e-4, 0.0], "update": [0.0, 1e-3, 0.0]}
    assert scaling.speed_up(64, constants, "any", "hosts", 0.0, weak=False) == pytest.approx(1.0)


def test_the_figure_is_drawn(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling", "draw", "--out", str(tmp_path / "scaling.png")]
    finished = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "waiting for the slowest" in finished.stdout
