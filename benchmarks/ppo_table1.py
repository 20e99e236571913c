"""The study of the PPO paper's Table 1 (Schulman et al. 2017, section 6.1): which surrogate, and which coefficient.

usage: python benchmarks/ppo_table1.py [--environments HalfCheetah-v5 …] [--seeds 3] [--steps 300000] [--jobs 2]

A run's score is the mean return of its last 100 training episodes, shifted and scaled in each environment so that the
untrained policy is at 0 and the best run at 1. A setting's score is the mean over its runs; intervals are 95 %
bootstrap, stratified by environment. Settings are the paper's Table 3, with 8 × 256 steps where the paper has 1 × 2048,
and observations and rewards normalised.

Each run is kept in a file named by its settings: started again, the study does what is missing.
"""

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from rich.progress import track
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pgext.compare.statistics import bootstrapped
from sb3_pgext.zoo.experiments import experiment, model_of, one_torch_thread

PAPER = {
    "no clipping or penalty": ({"surrogate": "none"}, -0.39),
    "clipping, ε = 0.1": ({"surrogate": "clip", "clip_range": 0.1}, 0.76),
    "clipping, ε = 0.2": ({"surrogate": "clip", "clip_range": 0.2}, 0.82),
    "clipping, ε = 0.3": ({"surrogate": "clip", "clip_range": 0.3}, 0.70),
    "adaptive KL, d = 0.003": ({"surrogate": "adaptive_kl", "desired_kl": 0.003}, 0.68),
    "adaptive KL, d = 0.01": ({"surrogate": "adaptive_kl", "desired_kl": 0.01}, 0.74),
    "adaptive KL, d = 0.03": ({"surrogate": "adaptive_kl", "desired_kl": 0.03}, 0.71),
    "fixed KL, β = 0.3": ({"surrogate": "kl", "kl_coef": 0.3}, 0.62),
    "fixed KL, β = 1": ({"surrogate": "kl", "kl_coef": 1.0}, 0.71),
    "fixed KL, β = 3": ({"surrogate": "kl", "kl_coef": 3.0}, 0.72),
    "fixed KL, β = 10": ({"surrogate": "kl", "kl_coef": 10.0}, 0.69),
}
"""Setting → its parameters, and its score in the paper (7 environments, 3 seeds, 1M steps)."""

COMMON = {
    "policy": "MlpPolicy",
    "normalize": True,
    "n_envs": 8,
    "n_steps": 256,
    "batch_size": 64,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "learning_rate": 3e-4,
    "max_grad_norm": None,
    "normalize_advantage": "rollout",
}
UNTRAINED = "untrained"
N_EPISODES = 100


def score(environment: str, setting: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """
    Train one run, unless its file is there.

    :return: a row of the table: environment, setting, seed, and the mean return of the last episodes
    """
    parameters = {} if setting == UNTRAINED else PAPER[setting][0]
    config = COMMON | parameters | {"n_timesteps": 0 if setting == UNTRAINED else steps}
    digest = hashlib.sha256(json.dumps([environment, seed, config], sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{digest}.json"
    if not path.exists():
        with (
            tempfile.TemporaryDirectory() as own,
            contextlib.redirect_stdout(io.StringIO()),  # what rl_zoo3 prints
            one_torch_thread(),
            model_of(experiment("ppo_cc", environment, config | {"compile": True}, seed, Path(own))) as model,
        ):
            if setting == UNTRAINED:
                value, _ = evaluate_policy(model, model.env, N_EPISODES, deterministic=False)
            else:
                model.learn(steps)
                value = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        row = {"environment": environment, "setting": setting, "seed": seed, "return": value}
        path.with_suffix(".new").write_text(json.dumps(row))
        path.with_suffix(".new").replace(path)
    return json.loads(path.read_text())


def table_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """
    :param rows: of all runs, the untrained policies among them
    :return: one row per setting: score, interval, the paper's score, both ranks, and the score of each environment
    """
    runs = pd.DataFrame(rows)
    untrained = runs[runs.setting == UNTRAINED].groupby("environment")["return"].mean()
    runs = runs[runs.setting != UNTRAINED]
    low, best = runs.environment.map(untrained), runs.groupby("environment")["return"].transform("max")
    runs = runs.assign(score=(runs["return"] - low) / (best - low))
    scores = {
        name: group.pivot(index="seed", columns="environment", values="score").to_numpy()
        for name, group in runs.groupby("setting")
    }
    means = {name: bootstrapped(of_runs, lambda x: np.asarray(x.mean())) for name, of_runs in scores.items()}
    table = pd.DataFrame(
        {
            "score": {name: float(mean.value) for name, mean in means.items()},
            "low": {name: float(mean.low) for name, mean in means.items()},
            "high": {name: float(mean.high) for name, mean in means.items()},
            "paper": {name: paper for name, (_, paper) in PAPER.items()},
        }
    ).loc[[name for name in PAPER if name in scores]]
    for name in ("score", "paper"):
        table[f"rank ({name})"] = table[name].rank(ascending=False).astype(int)
    by_environment = runs.pivot_table(index="setting", columns="environment", values="score")
    return table.join(by_environment)


def plot(table: pd.DataFrame, title: str, path: Path) -> None:
    """Our scores with their intervals beside the paper's, into ``<path>.png`` and ``.svg``."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    y = np.arange(len(table))
    ours = [table.score - table.low, table.high - table.score]
    axes.errorbar(table.score, y - 0.12, xerr=ours, fmt="o", capsize=3, label="here (95 % interval)")
    axes.plot(table.paper, y + 0.12, "D", markerfacecolor="none", label="Schulman et al. 2017")
    axes.set_yticks(y, table.index)
    axes.invert_yaxis()
    axes.set_xlabel("normalised score (0: untrained policy, 1: best run)")
    figure.suptitle(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(".new" + suffix), dpi=150)
        path.with_suffix(".new" + suffix).replace(path.with_suffix(suffix))


def main() -> None:
    """Train what is missing, and print and draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environments = ["HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5"]
    parser.add_argument("--environments", nargs="+", default=environments)
    parser.add_argument("--settings", nargs="+", default=list(PAPER), choices=list(PAPER), metavar="SETTING")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--jobs", type=int, default=joblib.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/ppo_table1"))
    arguments = parser.parse_args()
    (arguments.out / "runs").mkdir(parents=True, exist_ok=True)
    tasks = [
        (environment, setting, seed, arguments.steps, arguments.out / "runs")
        for seed in range(arguments.seeds)
        for environment in arguments.environments
        for setting in [UNTRAINED, *arguments.settings]
    ]
    done = joblib.Parallel(arguments.jobs, return_as="generator_unordered")(joblib.delayed(score)(*t) for t in tasks)
    table = table_of(track(done, "runs", total=len(tasks)))
    table.to_csv(arguments.out / "table1.csv")
    title = f"{', '.join(arguments.environments)}: {arguments.seeds} seeds, {arguments.steps:,} steps"
    plot(table, title, arguments.out / "table1")
    print(table.round(2).to_string())
    print(f"rank correlation with the paper: {table.score.corr(table.paper, method='spearman'):.2f}")
    print(f"written to {arguments.out}: table1.csv, table1.png and .svg")


if __name__ == "__main__":
    main()
