"""
The speed to expect of ClippedCriticPPO on 1 to 1,024 ranks: a model, whose constants are measured on one machine.

usage: python -m benchmarks.scaling measure [--out docs/results/scaling.json]      (as root: see benchmarks.hosts)
       python -m benchmarks.scaling draw [--constants docs/results/scaling.json] [--latency 2.5e-5] [--out scaling.png]

Measured, in processor seconds of one thread: a vector step of E environments, a + b E; an update with K gradient steps
on B rows each, c + K (d + e B); the spread of the time of rollouts; the lengths of the episodes of a recorded run of
REINFORCE. Measured, by the clock: gloo's all-reduce of two ranks, on one host, between two, and with a link of 100
Mbit/s.

The model: R ranks on R cores. A gradient step waits for one all-reduce of the gradient and two of a pair of numbers
(mean and deviation of the advantages). An all-reduce of n bytes takes 2 (R - 1) (α + n / (R β)) in a ring, which is
gloo's, and 2 log2(R) α + 2 (R - 1) n / (R β) by halving and doubling, as others have it; α and β are those of two
ranks, and --latency is added to α, since this kernel cannot delay a message. Ranks wait for the slowest, whose time is
drawn from the recorded rollouts, or from episodes. Logs, evaluations and checkpoints cost nothing; no rank fails.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from scipy.optimize import nnls
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.hosts import all_reduce_times
from sb3_pgext import REINFORCE, ClippedCriticPPO

ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v5")
LINKS = ("one host", "two hosts", "100mbit")
NETWORKS = {
    "one host": ("one host", True, "-"),
    "hosts": ("two hosts", True, "--"),
    "hosts, halving and doubling": ("two hosts", False, "-."),
    "hosts, 100 Mbit/s": ("100mbit", True, ":"),
}
"""Name → link, whether all-reduces go around a ring, line style."""

N_ENVS, N_STEPS, BATCH_SIZE, N_EPOCHS = 8, 256, 256, 10
"""Of a rank, where each rank has as many (weak scaling)."""

WHOLE = {"n_envs": 64, "n_steps": 256, "batch_size": 2048, "n_epochs": 10}
"""Of all ranks together, where they share what one has (strong scaling)."""

RANKS = [2**k for k in range(11)]
PUBLISHED = {"DD-PPO (Wijmans et al. 2020), GPUs": {128: 107.0}}


# --- constants -------------------------------------------------------------------------------------------------------


class Timed(BaseCallback):
    """Processor seconds of each rollout and each update."""

    parameters = 0

    def _on_training_start(self) -> None:
        self.rollouts: list[float] = []
        self.updates: list[float] = []
        self.end = math.nan

    def _on_rollout_start(self) -> None:
        self.begin = time.process_time()
        self.updates.append(self.begin - self.end)

    def _on_rollout_end(self) -> None:
        self.end = time.process_time()
        self.rollouts.append(self.end - self.begin)

    def _on_step(self) -> bool:
        return True


def trained(env_id: str, n_envs: int, n_steps: int, batch_size: int, n_epochs: int, n_rollouts: int = 12) -> Timed:
    """
    :param env_id: environment
    :param n_envs: sub-environments
    :param n_steps: vector steps of a rollout
    :param batch_size: minibatch
    :param n_epochs: passes over the rollout
    :param n_rollouts: how many
    :return: times of rollouts and of updates, without the first ones; ``parameters``, how many there are
    """
    env = make_vec_env(env_id, n_envs, seed=0)
    arguments = {"n_steps": n_steps, "batch_size": batch_size, "n_epochs": n_epochs, "seed": 0, "device": "cpu"}
    model, timed = ClippedCriticPPO("MlpPolicy", env, **arguments), Timed()
    model.learn(n_rollouts * n_steps * n_envs, timed)
    env.close()
    timed.rollouts, timed.updates = timed.rollouts[2:], timed.updates[2:]
    timed.parameters = sum(p.numel() for p in model.policy.parameters())
    return timed


def of_environment(env_id: str) -> dict[str, Any]:
    """The constants of one environment."""
    settings = [(1, 512, 512, 4), (8, 256, 2048, 2), (8, 256, 2048, 12), (8, 256, 64, 1), (32, 64, 2048, 4)]
    runs = [trained(env_id, *setting) for setting in settings]
    playing = [np.median(run.rollouts) / n_steps for run, (_, n_steps, _, _) in zip(runs, settings, strict=True)]
    of_envs = [(1.0, n_envs) for n_envs, *_ in settings]
    learning, of_steps = [np.median(run.updates) for run in runs], []
    for n_envs, n_steps, batch_size, n_epochs in settings:
        n_gradient_steps = n_envs * n_steps // batch_size * n_epochs
        of_steps.append((1.0, n_gradient_steps, n_gradient_steps * batch_size))
    relative = np.concatenate([np.array(run.rollouts) / np.mean(run.rollouts) for run in runs[1:4]])
    return {
        "step": fitted(of_envs, playing),
        "update": fitted(of_steps, learning),
        "parameters": runs[0].parameters,
        "rollouts": relative.tolist(),
    }


def fitted(columns: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Coefficients, not negative, with the least squares of relative errors."""
    weights = 1 / np.asarray(seconds)
    return nnls(np.asarray(columns) * weights[:, None], np.ones(len(weights)))[0].tolist()


def recorded_lengths(n_timesteps: int = 60_000) -> list[int]:
    """The lengths of the episodes of a run of REINFORCE on CartPole-v1, in order."""
    lengths: list[int] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        lengths.extend(int(info["episode"]["l"]) for info in local["infos"] if "episode" in info)
        return True

    env = make_vec_env("CartPole-v1", 8, seed=0)
    REINFORCE("MlpPolicy", env, n_episodes=16, seed=0, device="cpu").learn(n_timesteps, note)
    return lengths


def measure(out: Path) -> None:
    """
    Measure all constants.

    :param out: the file that is written
    """
    th.set_num_threads(1)
    links = {where: all_reduce_times(where) for where in LINKS}
    constants = {"links": links, "lengths": recorded_lengths()}
    constants["environments"] = {env_id: of_environment(env_id) for env_id in ENVIRONMENTS}
    out.write_text(json.dumps(constants) + "\n")


# --- model -----------------------------------------------------------------------------------------------------------


def all_reduce(n_ranks: int, n_bytes: float, times: dict[str, float], latency: float, ring: bool) -> float:
    """
    :param n_ranks: R
    :param n_bytes: of each rank
    :param times: bytes → seconds of two ranks
    :param latency: seconds that a message takes longer
    :param ring: whether it goes around a ring, or by halving and doubling
    :return: seconds
    """
    _, small, *_, large = sorted(map(int, times))  # not 4 bytes, which are quicker than the line through the others
    alpha = times[str(small)] / 2 + latency
    per_byte = (times[str(large)] - times[str(small)]) / (large - small)
    n_messages = 2 * (n_ranks - 1 if ring else math.log2(n_ranks))
    return n_messages * alpha + 2 * (n_ranks - 1) / n_ranks * n_bytes * per_byte


def slowest(n_ranks: int, samples: np.ndarray) -> float:
    """
    :param n_ranks: R
    :param samples: times of rollouts
    :return: the mean of the largest of R drawn from them, divided by that of all
    """
    at_most = (np.arange(len(samples) + 1) / len(samples)) ** n_ranks
    return float(np.sort(samples) @ np.diff(at_most) / samples.mean())


def whole_episodes(lengths: list[int], n_episodes: int) -> np.ndarray:
    """Steps that whole-episode collection takes: sums of as many lengths of the second half of the recorded run."""
    rng = np.random.default_rng(1)
    return rng.choice(np.array(lengths[len(lengths) // 2 :]), (5_000, n_episodes)).sum(axis=1)


def seconds(
    n_ranks: int, constants: dict[str, Any], env_id: str, network: str, latency: float, weak: bool
) -> tuple[float, float, float]:
    """
    :param n_ranks: R
    :param constants: what :func:`measure` wrote
    :param env_id: environment
    :param network: one of ``NETWORKS``
    :param latency: see :func:`all_reduce`, between two hosts
    :param weak: whether each rank has as much to do as one alone, or all share that
    :return: of an iteration: playing (the slowest rank's), learning, and communication
    """
    of_env, (link, ring, _) = constants["environments"][env_id], NETWORKS[network]
    way = constants["links"][link], 0.0 if link == "one host" else latency, ring
    share = 1 if weak else n_ranks
    setting = {"n_envs": N_ENVS, "n_steps": N_STEPS, "batch_size": BATCH_SIZE, "n_epochs": N_EPOCHS} if weak else WHOLE
    n_envs = max(1.0, setting["n_envs"] / share)
    n_steps = setting["n_steps"] * setting["n_envs"] / share / n_envs
    a, b = of_env["step"]
    c, d, e = of_env["update"]
    playing = n_steps * (a + b * n_envs) * slowest(n_ranks, np.array(of_env["rollouts"]))
    n_gradient_steps = setting["n_epochs"] * setting["n_steps"] * setting["n_envs"] // setting["batch_size"]
    learning = c + n_gradient_steps * (d + e * setting["batch_size"] / share)
    messages = all_reduce(n_ranks, 4 * of_env["parameters"], *way) + 2 * all_reduce(n_ranks, 8, *way)
    return playing, learning, n_gradient_steps * messages


def speed_up(n_ranks: int, *arguments: Any, weak: bool) -> float:
    """Times as fast as one rank."""
    one, all_of_them = sum(seconds(1, *arguments, weak)), sum(seconds(n_ranks, *arguments, weak))
    return (n_ranks if weak else 1) * one / all_of_them


# --- figure ----------------------------------------------------------------------------------------------------------


def draw(constants: dict[str, Any], latency: float, out: Path) -> None:
    """
    Draw the figure, and print its numbers.

    :param constants: what :func:`measure` wrote
    :param latency: see :func:`all_reduce`
    :param out: the picture
    """
    figure, (weak, strong, stragglers) = plt.subplots(1, 3, figsize=(14, 5.4), layout="constrained")
    for axes, is_weak in ((weak, True), (strong, False)):
        print(f"\n{'weak' if is_weak else 'strong'} scaling: times as fast as one rank, on", *RANKS, "ranks")
        for env_id, color in zip(ENVIRONMENTS, ("C0", "C1"), strict=True):
            for network, (_, _, style) in NETWORKS.items():
                speeds = [speed_up(n, constants, env_id, network, latency, weak=is_weak) for n in RANKS]
                axes.plot(RANKS, speeds, style, color=color, label=f"{env_id}, {network}")
                print(f"{env_id}, {network}:", *(f"{speed:.3g}" for speed in speeds))
        axes.plot(RANKS, RANKS, color="0.8", zorder=0, label="R times")
        axes.set(xscale="log", yscale="log", xlabel="ranks R", ylabel="times as fast as one rank")
    for (name, points), marker in zip(PUBLISHED.items(), "*", strict=True):
        weak.plot(*zip(*points.items(), strict=True), marker, color="k", markersize=11, label=name)
    weak.set_title(f"Weak: {N_ENVS} × {N_STEPS} steps of each rank, minibatches of {BATCH_SIZE}", fontsize=9)
    together = "{n_envs} × {n_steps} steps of all ranks, minibatches of {batch_size}".format(**WHOLE)
    strong.set_title(f"Strong: {together}", fontsize=9)
    figure.legend(*weak.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    print("\nwaiting for the slowest: share of the time that ranks play, on", *RANKS, "ranks")
    of_episodes = {
        f"episodes of CartPole-v1, {n} of a rank": whole_episodes(constants["lengths"], n) for n in (1, 8, 64)
    }
    fixed = {
        f"fixed length, {env_id}": np.array(constants["environments"][env_id]["rollouts"]) for env_id in ENVIRONMENTS
    }
    for (name, samples), style in zip((fixed | of_episodes).items(), ("C0-", "C1-", "C2:", "C2--", "C2-"), strict=True):
        shares = [1 / slowest(n, samples) for n in RANKS]
        stragglers.plot(RANKS, shares, style, label=name)
        print(f"{name}:", *(f"{share:.2f}" for share in shares))
    stragglers.set(xscale="log", ylim=(0, 1.02), xlabel="ranks R", ylabel="share of the time that ranks play")
    stragglers.set_title("Waiting for the slowest rank", fontsize=9)
    stragglers.legend(fontsize=8)
    for axes in (weak, strong, stragglers):
        axes.xaxis.set_major_formatter("{x:.0f}")
    for axes in (weak, strong):
        axes.yaxis.set_major_formatter("{x:g}")
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "draw"))
    parser.add_argument("--constants", type=Path, default=Path("docs/results/scaling.json"))
    parser.add_argument("--latency", type=float, default=2.5e-5, help="seconds, of a message between two hosts")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "measure":
        measure(args.out or args.constants)
    else:
        draw(json.loads(args.constants.read_text()), args.latency, args.out or Path("docs/results/scaling.png"))


if __name__ == "__main__":
    main()
