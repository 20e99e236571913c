"""Environment steps per second on all cores of a machine: our settings beside each of SB3's PPO, by turns.

usage: python -m benchmarks.cores [--env CartPole-v1] [--n-envs 8] [--contenders NAME …] [--out runs/cores]
       python -m benchmarks.cores --env benchmarks.cores:AtariPong-v0 --n-steps 128 --batch-size 256 --n-epochs 4

Whole trainings, as in ``benchmarks.throughput``: medians of the turns, with the smallest and the largest, as ratios to
SB3's best contender of the same turns. "One half at a time" is the same two halves, of which none steps while the
policy acts for the other; the last column says how many times as fast the collection is where they do.
"""

import argparse
import csv
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

from benchmarks.throughput import CLIPPED, COMPILED, CONTENDERS, SETTING, Contender, Turn, measure
from sb3_pgext import EnvPoolVecEnv, HalvesVecEnv


def pong() -> gym.Env:
    """ALE's Pong in SB3's wrappers, one frame at a time."""
    import ale_py

    gym.register_envs(ale_py)
    return AtariWrapper(gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0))


gym.register("AtariPong-v0", pong)


class OneAtATime(HalvesVecEnv):
    """Two halves, of which each is waited for before the other one is sent."""

    def send(self, which: int, actions: Any) -> None:
        """Step one half."""
        super().send(which, actions)
        self._kept = {**getattr(self, "_kept", {}), which: self.halves[which].step_wait()}

    def receive(self, which: int) -> Any:
        """What it has returned."""
        self._sent[which] = False
        self._received[which] = result = self._kept[which]
        return result


def pools(env: str, n_envs: int, halves: type[HalvesVecEnv]) -> VecMonitor:
    """Two of envpool's, with the threads of all cores shared between them."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    return VecMonitor(halves(*(EnvPoolVecEnv(env, n_envs // 2, i, num_threads=threads) for i in (0, 1))))


KINDS: dict[str, Callable[[str, int], Any]] = {
    "subproc": lambda env, n: make_vec_env(env, n, seed=0, vec_env_cls=SubprocVecEnv),
    "halves": lambda env, n: make_vec_env(env, n, seed=0, vec_env_cls=HalvesVecEnv.of),
    "one at a time": lambda env, n: make_vec_env(env, n, seed=0, vec_env_cls=OneAtATime.of),
    "envpool": lambda env, n: VecMonitor(EnvPoolVecEnv(env, n, 0, num_threads=os.cpu_count())),
    "envpool halves": lambda env, n: pools(env, n, HalvesVecEnv),
    "envpool, one at a time": lambda env, n: pools(env, n, OneAtATime),
}
"""Kinds of vectorised environment beside those of ``benchmarks.throughput``."""


def ours(kind: str, threads: int = 1) -> Contender:
    """ClippedCriticPPO, compiled."""
    return Contender("sb3_pgext:ClippedCriticPPO", "PPO", CLIPPED | COMPILED, vec_env=kind, threads=threads)


SB3 = {
    "PPO, DummyVecEnv": CONTENDERS["PPO"],
    "PPO, DummyVecEnv, 2 threads": Contender("stable_baselines3:PPO", "PPO", threads=2),
    "PPO, SubprocVecEnv": Contender("stable_baselines3:PPO", "PPO", vec_env="subproc"),
    "PPO, SubprocVecEnv, 2 threads": Contender("stable_baselines3:PPO", "PPO", vec_env="subproc", threads=2),
}
OURS = {
    "ours, DummyVecEnv": ours("sb3"),
    "ours, DummyVecEnv, 2 threads": ours("sb3", threads=2),
    "ours, SubprocVecEnv": ours("subproc"),
    "ours, one half at a time": ours("one at a time"),
    "ours, halves": ours("halves"),
    "ours, vectorised": ours("gymnasium"),
    "ours, envpool": ours("envpool"),
    "ours, envpool, one half at a time": ours("envpool, one at a time"),
    "ours, envpool halves": ours("envpool halves"),
}
ONE_AT_A_TIME = {
    "ours, halves": "ours, one half at a time",
    "ours, envpool halves": "ours, envpool, one half at a time",
}


def ratios(theirs: list[Turn], our: list[Turn], seconds: Callable[[Turn], float]) -> list[float]:
    """How many times as fast we are in each turn: the median, the smallest, the largest."""
    of_turns = sorted(seconds(a) / seconds(b) for a, b in zip(theirs, our, strict=True))
    return [round(x, 2) for x in (statistics.median(of_turns), of_turns[0], of_turns[-1])]


def main() -> None:
    """Measure, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--contenders", nargs="+", choices=[*SB3, *OURS], metavar="NAME", help=", ".join(OURS))
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each contender")
    parser.add_argument("--rollouts", type=int, default=2, help="of a turn, each with its update")
    for name, value in SETTING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--out", type=pathlib.Path, help="folder for the table")
    arguments = parser.parse_args()
    setting = {name: getattr(arguments, name) for name in SETTING}
    lacking = {"benchmarks.cores:AtariPong-v0": ("vectorised", "envpool"), "CartPole-v1": ()}
    without = lacking.get(arguments.env, ("vectorised",))
    chosen = arguments.contenders or [x for x in [*SB3, *OURS] if not any(kind in x for kind in without)]
    CONTENDERS.update(SB3 | OURS)
    results = measure(chosen, arguments.env, setting, arguments.repetitions, arguments.rollouts, "cpu")
    turns = {name: result.turns for name, result in results.items() if name in chosen}
    speed = {name: statistics.median(t.seconds_per_step for t in of_each) for name, of_each in turns.items()}
    best = min((name for name in turns if name in SB3), key=speed.__getitem__)
    print(f"{arguments.env}, {setting}, {os.cpu_count()} cores; SB3's best: {best}")
    rows = []
    for name, of_each in turns.items():
        parts = [1e6 * statistics.median(f(t) / t.n_steps for t in of_each) for f in (_collection, _update)]
        times, low, high = ratios(turns[best], of_each, lambda t: t.seconds_per_step)
        row = {"contender": name, "steps/s": round(1 / speed[name]), "times SB3's best": times, "from": low, "to": high}
        row |= {"collection µs/step": round(parts[0], 1), "update µs/step": round(parts[1], 1)}
        apart = turns.get(ONE_AT_A_TIME.get(name, ""), of_each)
        row["collection, times one half at a time"] = ratios(apart, of_each, lambda t: _collection(t) / t.n_steps)[0]
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"cores_{arguments.env.rpartition(':')[2]}_{arguments.n_envs}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _collection(turn: Turn) -> float:
    return turn.collection


def _update(turn: Turn) -> float:
    return turn.update


if __name__ == "__main__":
    main()
