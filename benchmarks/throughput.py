"""Environment steps per second of whole training runs, beside the named peers, with what the time goes into.

usage: python -m benchmarks.throughput [--env CartPole-v1] [--contenders PPO "ClippedCriticPPO compiled" …]
       python -m benchmarks.throughput --scale n_envs        (or width, batch_size)
       python -m benchmarks.throughput --env benchmarks.gpu:RandomImages-v0 --n-steps 32 --n-epochs 4
       python -m benchmarks.throughput --device cuda         (benchmarks.gpu has settings for one)

Each contender lives in a process of its own with one thread; they take turns, some rollouts with their updates at a
time, so that each has met the same machine. What is compiled is compiled before, and how long that took is reported.
The ratio is that of the times of one turn, and the table has its median, smallest and largest; memory is the largest
resident set of the contender's process. The environment's part is what its ``step`` took; beside it stand the matrix
products of the networks alone, as the floor. On a GPU, rollouts and updates end when it has nothing left to do, and
what made the process wait for it is counted: in a vector step, and in an update.

Peers that are not installed are left out: sbx-rl brings sbx's PPO, tianshou (2.0) Tianshou's.
"""

import argparse
import csv
import importlib
import multiprocessing
import pathlib
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as th

SETTING = {"n_envs": 8, "width": 64, "batch_size": 64, "n_steps": 256, "n_epochs": 10}
SCALES = {"n_envs": (1, 4, 16, 64, 256), "width": (64, 256, 1024), "batch_size": (64, 256, 1024)}


@dataclass(frozen=True)
class Contender:
    """
    :param algorithm: its class, as ``module:name``
    :param peer: the contender that it is measured against
    :param parameters: of the constructor
    :param vec_env: ``"sb3"`` for DummyVecEnv, or another of :func:`make_env`
    :param needs: a package that it needs; None for its own module's
    :param threads: of torch
    """

    algorithm: str
    peer: str
    parameters: dict[str, Any] = field(default_factory=dict)
    vec_env: str = "sb3"
    needs: str | None = None
    threads: int = 1

    @property
    def installed(self) -> bool:
        """Whether its package is. Nothing is imported here: the memory of this process would be the least of all."""
        return importlib.util.find_spec(self.needs or self.algorithm.partition(":")[0].partition(".")[0]) is not None


CLIPPED = {"clip_range_vf": 0.2}  # without which ClippedCriticPPO is what PPO is, to the bit
LINE_SEARCH = {"line_search": True}  # which makes NPG what TRPO is
COMPILED = {"compile": True}
CONTENDERS = {
    "PPO": Contender("stable_baselines3:PPO", "PPO"),
    "PPO (CleanRL's style)": Contender("benchmarks.single_file:SingleFilePPO", "PPO"),
    "PPO (Tianshou)": Contender("benchmarks.tianshou_ppo:TianshouPPO", "PPO", needs="tianshou"),
    "PPO (sbx)": Contender("sbx:PPO", "PPO"),
    "ClippedCriticPPO": Contender("sb3_pgext:ClippedCriticPPO", "PPO", CLIPPED),
    "ClippedCriticPPO as PPO": Contender("sb3_pgext:ClippedCriticPPO", "PPO"),
    "ClippedCriticPPO compiled": Contender("sb3_pgext:ClippedCriticPPO", "PPO", CLIPPED | COMPILED),
    "ClippedCriticPPO compiled, vectorised": Contender(
        "sb3_pgext:ClippedCriticPPO", "PPO", CLIPPED | COMPILED, vec_env="gymnasium"
    ),
    "TRPO": Contender("sb3_contrib:TRPO", "TRPO"),
    "NPG": Contender("sb3_pgext:NPG", "TRPO", LINE_SEARCH),
    "NPG compiled": Contender("sb3_pgext:NPG", "TRPO", LINE_SEARCH | COMPILED),
    "A2C": Contender("stable_baselines3:A2C", "A2C"),
    "VPG compiled": Contender("sb3_pgext:VPG", "A2C", COMPILED),
    "REINFORCE": Contender("sb3_pgext:REINFORCE", "A2C"),
    "REINFORCE compiled": Contender("sb3_pgext:REINFORCE", "A2C", COMPILED),
}
WITH_BATCHES = {"PPO": ("n_epochs", 1), "TRPO": ("n_critic_updates", 2)}
"""Peers whose rollouts and minibatches, and those of all that are measured against them, are the setting's → what they
call the number of epochs, and how many of its minibatches are one of theirs."""


@dataclass(frozen=True)
class Turn:
    """
    :param n_steps: environment steps
    :param environment: seconds within the environment's ``step``
    :param collection: seconds of the rollouts, with those
    :param update: seconds of the updates
    """

    n_steps: int
    environment: float
    collection: float
    update: float

    @property
    def seconds_per_step(self) -> float:
        """Of everything."""
        return (self.collection + self.update) / self.n_steps


def make_env(env: str, n_envs: int, kind: str) -> Any:
    """The vectorised environment with episode statistics, as SB3's users have it."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecMonitor

    if kind == "sb3":
        return make_vec_env(env, n_envs, seed=0)
    if kind != "gymnasium":
        from benchmarks.cores import KINDS

        return KINDS[kind](env, n_envs)
    import gymnasium as gym

    from sb3_pgext import GymnasiumVecEnv

    return VecMonitor(GymnasiumVecEnv(gym.make_vec(env, n_envs)))


def arguments_of(contender: Contender, setting: dict[str, int], venv: Any) -> dict[str, Any]:
    """Of the constructor."""
    from stable_baselines3.common.preprocessing import is_image_space

    arguments = dict(contender.parameters)
    if contender.peer in WITH_BATCHES:
        epochs, batches = WITH_BATCHES[contender.peer]
        arguments |= {"n_steps": setting["n_steps"], "batch_size": batches * setting["batch_size"]}
        arguments[epochs] = setting["n_epochs"]
    if is_image_space(venv.observation_space):
        return arguments | {"policy": "CnnPolicy"}
    width = [setting["width"]] * 2
    return arguments | {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": {"pi": width, "vf": width}}}


def work(
    contender: Contender, env: str, setting: dict[str, int], device: str, vec_env: str | None, pipe: Connection
) -> None:
    """A contender's process: builds the model, takes turns when told to, and sends what it measured."""
    th.set_num_threads(contender.threads)
    module, _, name = contender.algorithm.partition(":")
    venv = make_env(env, setting["n_envs"], vec_env or contender.vec_env)
    algorithm = getattr(importlib.import_module(module), name)
    model = algorithm(env=venv, seed=0, device=device, **arguments_of(contender, setting, venv))
    _, callback = model._setup_learn(10**12)
    model.env.step = Timed(model.env.step)
    start = time.perf_counter()
    turn(model, callback, 1)
    pipe.send(time.perf_counter() - start)
    while (n_steps := pipe.recv()) is not None:
        pipe.send(turn(model, callback, n_steps))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((memory, *synchronisations(model, callback)))
    venv.close()


def synchronize() -> None:
    """Wait for the GPU, if this process uses one."""
    if th.cuda.is_initialized():
        th.cuda.synchronize()


def synchronisations(model: Any, callback: Any) -> tuple[float, float]:
    """How often a process waits for the GPU: in a vector step, and in an update."""
    if not th.cuda.is_initialized():
        return 0.0, 0.0
    found = []
    for part in (lambda: collect(model, callback), model.train):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            th.cuda.set_sync_debug_mode("warn")
            try:
                part()
            finally:
                th.cuda.set_sync_debug_mode("default")
        found.append(sum("synchronizing CUDA operation" in str(w.message) for w in caught))
    return found[0] / model.n_steps, float(found[1])


class Timed:
    """
    A function that adds up the seconds that it takes.

    :param function: the function
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        start = time.perf_counter()
        result = self._function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def collect(model: Any, callback: Any) -> None:
    """One rollout."""
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)


def turn(model: Any, callback: Any, n_steps: int) -> Turn:
    """
    :param model: set up to learn
    :param callback: of its collection
    :param n_steps: environment steps at least
    :return: what the rollouts and updates took
    """
    first, collection, update = model.num_timesteps, 0.0, 0.0
    environment = model.env.step.seconds
    synchronize()
    while model.num_timesteps - first < n_steps:
        start = time.perf_counter()
        collect(model, callback)
        synchronize()
        collected = time.perf_counter()
        model.train()
        synchronize()
        collection, update = collection + collected - start, update + time.perf_counter() - collected
    return Turn(model.num_timesteps - first, model.env.step.seconds - environment, collection, update)


@dataclass(frozen=True)
class Result:
    """
    :param turns: of one contender, in order
    :param peer: those of its peer
    :param first: seconds of the first turn, with the compiling
    :param memory: largest resident set, MiB
    :param waits_of_step: for the GPU, in a vector step
    :param waits_of_update: for the GPU
    """

    turns: list[Turn]
    peer: list[Turn]
    first: float
    memory: float
    waits_of_step: float
    waits_of_update: float

    def median(self, value: Callable[[Turn], float]) -> float:
        """Over the turns."""
        return statistics.median(map(value, self.turns))

    def ratios(self, seconds: Callable[[Turn], float]) -> list[float]:
        """How many times the peer's speed, sorted."""
        return sorted(seconds(theirs) / seconds(ours) for theirs, ours in zip(self.peer, self.turns, strict=True))


def measure(
    names: list[str],
    env: str,
    setting: dict[str, int],
    repetitions: int,
    rollouts: int,
    device: str,
    vec_env: str | None = None,
    together: bool = False,
    patience: float = 1800.0,
) -> dict[str, Result]:
    """
    :param names: contenders; their peers are measured with them
    :param env: id of the environment
    :param setting: see ``SETTING``
    :param repetitions: turns of each
    :param rollouts: of a turn
    :param device: where the networks are
    :param vec_env: the kind of all contenders' vectorised environments; None for that of each
    :param together: whether all compile at the same time
    :param patience: seconds for one answer of a contender
    :return: contender → what was measured; without those that failed, and those whose peer did
    """
    names = list(dict.fromkeys([*(CONTENDERS[name].peer for name in names), *names]))
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    firsts, turns, lasts = {}, {name: [] for name in names}, {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        arguments = (CONTENDERS[name], env, setting, device, vec_env, theirs)
        has_workers = (vec_env or CONTENDERS[name].vec_env) not in ("sb3", "gymnasium")  # as no daemon may have
        context.Process(target=work, args=arguments, daemon=not has_workers).start()
        theirs.close()  # so that a process that dies is an error here
        if not together:
            firsts[name] = answer_of(name, pipes, patience)
    for name in names:
        firsts[name] = firsts[name] if name in firsts else answer_of(name, pipes, patience)
    n_steps = rollouts * setting["n_envs"] * setting["n_steps"]
    for _ in range(repetitions):
        for name in list(pipes):
            turns[name].append(answer_of(name, pipes, patience, n_steps))
    for name in list(pipes):
        lasts[name] = answer_of(name, pipes, patience, None)
    peers = {name: CONTENDERS[name].peer for name in names}
    return {
        name: Result(turns[name], turns[peers[name]], firsts[name], *lasts[name])
        for name in names
        if name in pipes and peers[name] in pipes
    }


def answer_of(name: str, pipes: dict[str, Connection], patience: float, *questions: Any) -> Any:
    """
    :param name: contender
    :param pipes: to the contenders' processes; without this one's if it fails
    :param patience: seconds
    :param questions: what it is sent
    :return: what it answers; None if it fails
    """
    if name not in pipes:
        return None
    try:
        for question in questions:
            pipes[name].send(question)
        if pipes[name].poll(patience):
            return pipes[name].recv()
        print(f"{name} has not answered for {patience:.0f} seconds", flush=True)
    except (EOFError, OSError):  # its own words are above
        print(f"{name} has failed", flush=True)
    pipes.pop(name).close()  # where it ends, as soon as it looks
    return None


def floor(env: str, setting: dict[str, int]) -> tuple[float, float]:
    """
    :param env: id of the environment
    :param setting: see :func:`measure`
    :return: seconds per step of the matrix products of acting, and of those of the update's passes forwards and
        backwards, in minibatches; of images, those of NatureCNN in torch, from numbers in [0, 1] on
    """
    from stable_baselines3.common.preprocessing import is_image_space

    venv = make_env(env, setting["n_envs"], "sb3")
    if is_image_space(venv.observation_space):
        acting = seconds_of_convolutions(venv.observation_space, venv.num_envs, backwards=False) / venv.num_envs
        n_rows = setting["batch_size"]
        return acting, setting["n_epochs"] * seconds_of_convolutions(venv.observation_space, n_rows, True) / n_rows
    width, n_inputs = setting["width"], int(np.prod(venv.observation_space.shape))
    n_outputs = int(getattr(venv.action_space, "n", 0) or np.prod(venv.action_space.shape))
    layers = [(n_inputs, width), (width, width)] * 2 + [(width, n_outputs), (width, 1)]
    acting = seconds_of_products(venv.num_envs, layers, backwards=False) / venv.num_envs
    update = seconds_of_products(setting["batch_size"], layers, backwards=True) / setting["batch_size"]
    return acting, setting["n_epochs"] * update


def seconds_of_products(n_rows: int, layers: list[tuple[int, int]], backwards: bool, repetitions: int = 500) -> float:
    """
    :param n_rows: observations
    :param layers: inputs and outputs of each; those that follow another one also need the gradient of their inputs
    :param backwards: the products of the gradients too
    :param repetitions: of which the fastest counts
    :return: of all products, one after the other, into memory that is there
    """
    products = []
    for n, m in layers:
        x, matrix, y = th.randn(n_rows, n), th.randn(n, m), th.empty(n_rows, m)
        products.append((x, matrix, y))
        if backwards:
            products.append((x.T, y, th.empty(n, m)))
            if (n, m) != layers[0]:
                products.append((y, matrix.T, th.empty(n_rows, n)))
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for a, b, result in products:
            th.mm(a, b, out=result)
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_of_convolutions(space: Any, n_rows: int, backwards: bool, repetitions: int = 30) -> float:
    """
    :param space: of images
    :param n_rows: observations
    :param backwards: the gradients of the parameters too
    :param repetitions: of which the fastest counts
    :return: of one pass through NatureCNN
    """
    from gymnasium.spaces import Box
    from stable_baselines3.common.torch_layers import NatureCNN

    height, width, n_channels = space.shape
    channels_first = Box(0, 255, (n_channels, height, width), np.uint8)
    network, images = NatureCNN(channels_first), th.rand(n_rows, n_channels, height, width)
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        with th.set_grad_enabled(backwards):
            features = network(images)
        if backwards:
            th.autograd.grad(features.sum(), list(network.parameters()))
        times.append(time.perf_counter() - start)
    return min(times)


def row(env: str, setting: dict[str, int], name: str, result: Result) -> dict[str, Any]:
    """One line of the table."""
    ratios = result.ratios(lambda t: t.seconds_per_step)
    return {
        "environment": env,
        **setting,
        "contender": name,
        "steps/s": round(1 / result.median(lambda t: t.seconds_per_step)),
        "environment µs/step": round(1e6 * result.median(lambda t: t.environment / t.n_steps), 1),
        "collection µs/step": round(1e6 * result.median(lambda t: t.collection / t.n_steps), 1),
        "update µs/step": round(1e6 * result.median(lambda t: t.update / t.n_steps), 1),
        "peer": CONTENDERS[name].peer,
        "times as fast": round(statistics.median(ratios), 2),
        "from": round(ratios[0], 2),
        "to": round(ratios[-1], 2),
        "update times as fast": round(statistics.median(result.ratios(lambda t: t.update / t.n_steps)), 2),
        "first turn s": round(result.first, 1),
        "memory MiB": round(result.memory),
        "waits/vector step": round(result.waits_of_step, 2),
        "waits/update": round(result.waits_of_update),
    }


def device_name(device: str) -> str:
    """Of the hardware."""
    return f"{device}: {th.cuda.get_device_name(device)}" if device.startswith("cuda") else device


def print_rows(rows: list[dict[str, Any]]) -> None:
    """As a table."""
    for r in rows:
        print(
            f"{r['contender']:38s} {r['steps/s']:8,d} steps/s  environment {r['environment µs/step']:6.1f} "
            f"collection {r['collection µs/step']:6.1f} "
            f"update {r['update µs/step']:6.1f} µs/step  {r['times as fast']:5.2f} x {r['peer']} "
            f"({r['from']:.2f} to {r['to']:.2f}), updates {r['update times as fast']:5.2f} x  "
            f"first turn {r['first turn s']:5.1f} s  {r['memory MiB']:,d} MiB  "
            f"waits for a GPU: {r['waits/vector step']:.2f} a vector step, {r['waits/update']} an update"
        )


def plot_parts(rows: list[dict[str, Any]], floors: tuple[float, float], path: pathlib.Path) -> None:
    """Stacked bars: where the time of a step goes, and the matrix products of a PPO alone."""
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(rows) + 2), layout="constrained")
    acting, update = (1e6 * seconds for seconds in floors)
    labels = [*(r["contender"] for r in rows), "networks of a PPO alone"]
    parts = {
        "environment's step": [*(r["environment µs/step"] for r in rows), 0.0],
        "rest of the collection": [*(r["collection µs/step"] - r["environment µs/step"] for r in rows), acting],
        "update": [*(r["update µs/step"] for r in rows), update],
    }
    left = np.zeros(len(labels))
    for (part, widths), colour in zip(parts.items(), ("#bbbbbb", "#4477aa", "#ee6677"), strict=True):
        axes.barh(labels, widths, left=left, color=colour, label=part)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("µs per environment step")
    networks = f"networks of 2 × {rows[0]['width']}"
    setting = f"{rows[0]['n_envs']} sub-environments, {'NatureCNN' if 'Images' in rows[0]['environment'] else networks}"
    axes.set_title(f"{rows[0]['environment'].rpartition(':')[2]}: {setting}, one thread", fontsize="medium")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_scaling(rows: list[dict[str, Any]], scale: str, path: pathlib.Path) -> None:
    """Steps per second against one number of the setting."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(r["contender"] for r in rows):
        own = [r for r in rows if r["contender"] == name]
        axes.plot([r[scale] for r in own], [r["steps/s"] for r in own], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(SCALES[scale], [str(x) for x in SCALES[scale]])
    axes.set_xlabel(scale)
    axes.set_ylabel("environment steps per second")
    axes.set_title(f"{rows[0]['environment']}, one thread")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, and write the table and the figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name, contender in CONTENDERS.items() if contender.installed]
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--contenders", nargs="+", choices=installed, metavar="NAME", help=", ".join(installed))
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each contender")
    parser.add_argument("--rollouts", type=int, default=4, help="of a turn, each with its update")
    parser.add_argument("--scale", choices=list(SCALES), help="measure at several values of this")
    for name, value in SETTING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--device", default="cpu", help="of the networks")
    parser.add_argument("--vec-env", choices=["sb3", "gymnasium"], help="of all contenders, instead of each one's own")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the table and the figure")
    arguments = parser.parse_args()
    setting = {name: getattr(arguments, name) for name in SETTING}
    chosen = arguments.contenders or [name for name in installed if CONTENDERS[name].vec_env == "sb3"]
    settings = [setting | {arguments.scale: x} for x in SCALES[arguments.scale]] if arguments.scale else [setting]

    rows = []
    for one in settings:
        print(f"{arguments.env}, {one}, {device_name(arguments.device)}")
        measured = arguments.repetitions, arguments.rollouts, arguments.device, arguments.vec_env
        results = measure(chosen, arguments.env, one, *measured)
        rows += [row(arguments.env, one, name, result) for name, result in results.items()]
        print_rows(rows[-len(results) :])
    if not rows:
        raise SystemExit("nothing was measured")
    floors = floor(arguments.env, setting)
    parts = ", ".join(f"{1e6 * x:.1f}" for x in floors)
    print(f"networks of a PPO alone, µs/step: of acting and of {setting['n_epochs']} epochs: {parts}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        stem = f"throughput_{arguments.env.rpartition(':')[2]}"
        stem = f"{stem}_{arguments.scale}" if arguments.scale else stem
        with (arguments.out / f"{stem}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        path = arguments.out / f"{stem}.png"
        plot_scaling(rows, arguments.scale, path) if arguments.scale else plot_parts(rows, floors, path)


if __name__ == "__main__":
    main()
