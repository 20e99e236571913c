"""Trainings on several ranks, of which one is killed at a random moment: how each ends.

usage: python benchmarks/kill_ranks.py [--kills 20] [--ranks 2] [--steps 20000] [--seed 0]

torchrun starts the ranks with --max-restarts. They train ClippedCriticPPO on CartPole-v1 and write checkpoints. One of
them, at random, is killed with SIGKILL, at a random moment from the start of its training to the end; torchrun starts
all of them anew. Each training must end with the parameters of the undisturbed one, to the bit, on all ranks.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import CheckpointCallback, ClippedCriticPPO, has_checkpoint, parallel, resume


def train(folder: Path, steps: int) -> None:
    """From the last checkpoint, or from the start; to the end."""
    rank = parallel.init().rank
    th.set_num_threads(1)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    checkpoints = folder / "checkpoints"
    if has_checkpoint(checkpoints):
        model = resume(checkpoints)
    else:
        env = make_vec_env("CartPole-v1", n_envs=2)
        model = ClippedCriticPPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu")
    callback = CheckpointCallback(1000, checkpoints)
    model.learn(steps - model.num_timesteps, callback, reset_num_timesteps=False)
    th.save(model.policy.state_dict(), folder / f"parameters-{rank}.pt")


def trained(folder: Path, arguments: argparse.Namespace, kill_after: float | None, victim: int) -> tuple[float, bool]:
    """Seconds from the start of the training to its end, and whether a rank has been killed."""
    folder.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    torchrun += ["--nproc-per-node", str(arguments.ranks), __file__, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder.parent)}
    with open(folder / "log", "w") as log:
        command = [*torchrun, "--steps", str(arguments.steps)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        pid = folder / f"pid-{victim}"
        while not (pid.exists() and pid.read_text()) and process.poll() is None:
            time.sleep(0.01)
        began, killed = time.perf_counter(), False
        if kill_after is not None:
            time.sleep(kill_after)
            if process.poll() is None and not (folder / f"parameters-{victim}.pt").exists():
                os.kill(int(pid.read_text()), signal.SIGKILL)
                killed = True
        process.wait()
    return time.perf_counter() - began, killed


def parameters(folder: Path, n_ranks: int) -> list[dict[str, th.Tensor]] | None:
    """The parameters of all ranks; None where one has not ended."""
    files = [folder / f"parameters-{rank}.pt" for rank in range(n_ranks)]
    return [th.load(file) for file in files] if all(file.exists() for file in files) else None


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    """True if all parameters are equal, to the bit."""
    return all(th.equal(one[name], other[name]) for name in one)


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        return train(arguments.folder, arguments.steps)

    rng, kills, n_trainings, failures = random.Random(arguments.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        duration, _ = trained(Path(temporary) / "undisturbed", arguments, None, 0)
        expected = parameters(Path(temporary) / "undisturbed", arguments.ranks)
        assert expected is not None
        print(f"undisturbed: {duration:.1f} s", flush=True)
        while kills < arguments.kills:
            n_trainings += 1
            folder, moment = Path(temporary) / str(n_trainings), rng.uniform(0, duration)
            victim = rng.randrange(arguments.ranks)
            seconds, killed = trained(folder, arguments, moment, victim)
            of_ranks = parameters(folder, arguments.ranks)
            equal = of_ranks is not None and all(same(one, expected[0]) for one in of_ranks)
            kills, failures = kills + killed, failures + (not equal)
            duration = duration if killed else min(duration, seconds)  # the machine may have had more to do
            print(f"rank {victim} killed after {moment:.1f} s: {killed}; {seconds:.1f} s; equal: {equal}", flush=True)
            if not equal:
                print((folder / "log").read_text()[-3000:])
    print(f"{kills} kills in {n_trainings} trainings on {arguments.ranks} ranks, {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
