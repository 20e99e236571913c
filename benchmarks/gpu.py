"""Environment steps per second with the networks on a GPU, beside SB3's PPO and contrib's TRPO on the same one.

usage: python -m benchmarks.gpu [--out runs/gpu.md] [--settings cartpole_8 cartpole_256 images …] [--device cuda]

As ``benchmarks.throughput``, in four settings, in less than eight minutes. All contenders of a setting have vectorised
environments of the same kind, and compile at the same time. One that fails has no row, and the script ends with 1.
"""

import argparse
import pathlib
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from benchmarks.throughput import CONTENDERS, SETTING, device_name, measure, row

PPOS = ["PPO", "ClippedCriticPPO", "ClippedCriticPPO compiled"]
ALL = [*PPOS, "TRPO", "NPG", "NPG compiled"]
IMAGES = "RandomImages-v0"
COLUMNS = [
    *("contender", "steps/s", "times as fast", "from", "to", "update times as fast", "environment µs/step"),
    *("collection µs/step", "update µs/step", "waits/vector step", "waits/update", "first turn s"),
]


@dataclass(frozen=True)
class Comparison:
    """
    :param env: id of the environment
    :param setting: see :func:`benchmarks.throughput.measure`
    :param rollouts: of a turn
    :param vec_env: kind of the vectorised environments
    :param contenders: who is measured
    """

    env: str
    setting: dict[str, int]
    rollouts: int
    vec_env: str
    contenders: list[str]


COMPARISONS = {
    "cartpole_8": Comparison("CartPole-v1", SETTING, 1, "gymnasium", ALL),
    "images": Comparison(
        f"benchmarks.gpu:{IMAGES}",
        SETTING | {"n_steps": 128, "batch_size": 256, "n_epochs": 4},
        4,
        "sb3",
        PPOS,
    ),
    "cartpole_256": Comparison(
        "CartPole-v1", SETTING | {"n_envs": 256, "n_steps": 128, "batch_size": 4096}, 4, "gymnasium", ALL
    ),
    "cartpole_4096": Comparison(
        "CartPole-v1", SETTING | {"n_envs": 4096, "n_steps": 16, "batch_size": 16384}, 1, "gymnasium", PPOS
    ),
    # TensorVecEnv's CartPole belongs here, beside the same numbers: its kind is one for benchmarks.throughput.make_env.
}


class RandomImages(gym.Env):
    """Frames of Atari's size that nobody has to compute; an episode has 500 steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  which SB3 asks for
    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Discrete(6)

    def __init__(self) -> None:
        self._frames = np.random.default_rng(0).integers(0, 256, (64, 84, 84, 4), np.uint8)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The first frame."""
        super().reset(seed=seed)
        self._t = 0
        return self._frames[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """The next frame; a reward for one action in six."""
        self._t += 1
        return self._frames[self._t % len(self._frames)], float(action == self._t % 6), self._t == 500, False, {}


gym.register(IMAGES, RandomImages)


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(f"{r[c]:,}" if c == "steps/s" else str(r[c]) for c in COLUMNS) + " |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure one comparison after the other; what has been measured is written each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="those of a setting")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each contender")
    parser.add_argument("--n-steps", type=int, help="vector steps of a rollout, in all settings")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds for one answer of a contender")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=pathlib.Path, help="file for the tables")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not th.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    sections, failed = [f"On {device_name(arguments.device)}, torch {th.__version__}."], []
    for name in arguments.settings:
        comparison, start = COMPARISONS[name], time.perf_counter()
        setting = comparison.setting | ({"n_steps": arguments.n_steps} if arguments.n_steps else {})
        chosen = [c for c in comparison.contenders if c in (arguments.contenders or ALL)]
        measured = arguments.repetitions, comparison.rollouts, arguments.device, comparison.vec_env
        results = measure(chosen, comparison.env, setting, *measured, together=True, patience=arguments.patience)
        failed += [f"{contender} of {name}" for contender in chosen if contender not in results]
        words = ", ".join(f"{key} {value}" for key, value in setting.items())
        rows = [row(comparison.env, setting, contender, result) for contender, result in results.items()]
        sections.append(f"{comparison.env.rpartition(':')[2]}: {words}\n\n{table(rows)}")
        print(f"{name} took {time.perf_counter() - start:.0f} s\n\n{sections[-1]}\n", flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("\n\n".join(sections) + "\n")
    print("\n\n".join(sections))
    if failed:
        raise SystemExit(f"without a result: {', '.join(failed)}")


if __name__ == "__main__":
    main()
