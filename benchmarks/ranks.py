"""Steps per second of two ranks together, beside two trainings that are independent of each other, and what ranks wait.

usage: python -m benchmarks.ranks [--turns 7] [--settings "ClippedCriticPPO, CartPole-v1" …] [--out runs/ranks.md]

Two independent trainings at the same time are what two cores can give. They and the two ranks, each in a process with
one thread, take turns of some updates, so that all have met the same machine; the ratio is that of the steps per second
of one turn, and the table has its median, smallest and largest. What is compiled is compiled before.

Waiting is the time from when a rank enters a message until the last one has entered it; communication is what follows
until it leaves. Both are shares of the time of an update, without acting.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch as th
import torch.distributed as dist

N_RANKS = 2
N_ENVS = 4
PPO = {"n_steps": 256, "batch_size": 64, "n_epochs": 10}
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ClippedCriticPPO, CartPole-v1": ("ClippedCriticPPO", "CartPole-v1", PPO),
    "ClippedCriticPPO compiled, CartPole-v1": ("ClippedCriticPPO", "CartPole-v1", {**PPO, "compile": True}),
    "ClippedCriticPPO, HalfCheetah-v5": ("ClippedCriticPPO", "HalfCheetah-v5", PPO),
    "ClippedCriticPPO compiled, HalfCheetah-v5": ("ClippedCriticPPO", "HalfCheetah-v5", {**PPO, "compile": True}),
    "REINFORCE, CartPole-v1": ("REINFORCE", "CartPole-v1", {"n_episodes": 32}),
}
UPDATES = 4
"""Updates of a turn."""


class Clock:
    """Notes when messages begin and end, and how long updates take."""

    def __init__(self, model: Any):
        self.messages: list[tuple[float, float]] = []
        self.updates: list[tuple[float, float]] = []
        model.train = self.timed(model.train, self.updates)
        for name in ("all_reduce", "all_gather", "all_gather_object"):
            setattr(dist, name, self.timed(getattr(dist, name), self.messages))

    def timed(self, function: Callable[..., Any], into: list[tuple[float, float]]) -> Callable[..., Any]:
        """The same function, which notes when it begins and ends; the clock is that of all processes."""

        def call(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*arguments, **options)
            finally:
                into.append((began, time.monotonic()))

        return call

    def of_updates(self) -> list[tuple[float, float]]:
        """The messages in updates."""
        spans = iter(self.updates)
        inside, span = [], next(spans, None)
        for message in self.messages:
            while span is not None and message[0] > span[1]:
                span = next(spans, None)
            if span is not None and message[0] >= span[0]:
                inside.append(message)
        return inside


def work(pipe: Connection, setting: str, rank: int | None, port: int) -> None:
    """Train for a turn whenever the parent says so; tell steps and seconds, and at the end the messages."""
    th.set_num_threads(1)
    from stable_baselines3.common.env_util import make_vec_env

    import sb3_pgext

    if rank is not None:
        of_torchrun = {"RANK": rank, "WORLD_SIZE": N_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in of_torchrun.items()})
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        sb3_pgext.parallel.init()
    name, environment, options = SETTINGS[setting]
    env = make_vec_env(environment, N_ENVS)
    model = getattr(sb3_pgext, name)("MlpPolicy", env, seed=0, device="cpu", **options)
    per_update = model.n_steps * N_ENVS if name != "REINFORCE" else 1000
    n_steps = UPDATES * per_update * model.ranks.size
    model.learn(n_steps)
    clock = Clock(model)
    pipe.send("ready")
    while pipe.recv():
        before, began = model.num_timesteps, time.perf_counter()
        model.learn(n_steps, reset_num_timesteps=False)
        steps = (model.num_timesteps - before) / model.ranks.size
        pipe.send((steps, time.perf_counter() - began))
    pipe.send((clock.of_updates(), sum(end - began for began, end in clock.updates)))


def measured(setting: str, n_turns: int) -> str:
    """A row of the table."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for rank in (None, None, *range(N_RANKS)):
        mine, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(theirs, setting, rank, store.port), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def turn(group: list[Connection]) -> float:
        for pipe in group:
            pipe.send(True)
        results = [pipe.recv() for pipe in group]
        return sum(steps / seconds for steps, seconds in results)

    alone, ranks = pipes[:2], pipes[2:]
    speeds = [(turn(alone), turn(ranks)) for _ in range(n_turns)]
    for pipe in pipes:
        pipe.send(False)
    messages, updates = zip(*[pipe.recv() for pipe in ranks], strict=True)
    of_messages = [list(zip(*of_message, strict=True)) for of_message in zip(*messages, strict=True)]
    waiting = sum(max(began) - one for began, _ in of_messages for one in began) / sum(updates)
    talking = sum(one - max(began) for began, ended in of_messages for one in ended) / sum(updates)
    ratios = [of_ranks / of_alone for of_alone, of_ranks in speeds]
    of_alone, of_ranks = (statistics.median(column) for column in zip(*speeds, strict=True))
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    for process in processes:
        process.join()
    return f"| {setting} | {of_alone:,.0f} | {of_ranks:,.0f} | {ratio} | {waiting:.0%} | {talking:.0%} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    columns = ["", "two independent, steps/s", "two ranks, steps/s", "ratio", "waiting", "communication"]
    rows = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        print(row, flush=True)
    for setting in arguments.settings:
        rows.append(measured(setting, arguments.turns))
        print(rows[-1], flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
