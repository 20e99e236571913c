"""How well NPG keeps to its trust region: the divergence of each update, as measured after the step.

usage: python benchmarks/trust_region.py [--env HalfCheetah-v5] [--updates 200] [--out runs/trust_region]

With the environment's configuration in zoo_configs/npg.yml, once without and once with the line search.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pgext.zoo.configs import read_config
from sb3_pgext.zoo.experiments import experiment, model_of, one_torch_thread


class Divergences(BaseCallback):
    """Keeps what each update has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        logged = self.logger.name_to_value
        if "train/kl" in logged:
            names = ("kl", "kl_quadratic", "cg_iterations", "cg_residual")
            self.rows.append({name: logged[f"train/{name}"] for name in names})


def divergences(environment: str, line_search: bool, n_updates: int, seed: int) -> pd.DataFrame:
    """
    :return: one row per update, with the divergence as a multiple of the target
    """
    config = read_config("npg", environment) | {"line_search": line_search}
    n_timesteps = (n_updates + 1) * config["n_steps"] * config["n_envs"]
    callback = Divergences()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),  # what rl_zoo3 prints
        one_torch_thread(),
        model_of(experiment("npg", environment, config | {"n_timesteps": n_timesteps}, seed, Path(folder))) as model,
    ):
        model.learn(n_timesteps, callback=callback, log_interval=None)  # type: ignore[arg-type]
    table = pd.DataFrame(callback.rows[:n_updates])
    return table.assign(ratio=table.kl / config["target_kl"], line_search=line_search)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/trust_region"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = joblib.Parallel(arguments.jobs)(
        joblib.delayed(divergences)(arguments.env, line_search, arguments.updates, arguments.seed)
        for line_search in (False, True)
    )
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for table in tables:
        name = "with line search" if table.line_search[0] else "without line search"
        quantiles = "  ".join(f"{q:.0%} {np.quantile(table.ratio, q):.3f}" for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
        within = ((table.ratio <= 1.5) & (table.ratio >= 1 / 1.5)).mean()
        print(f"{name}, {len(table)} updates: KL / target_kl: {quantiles}")
        print(f"  within a factor of 1.5: {within:.1%}; above the target: {(table.ratio > 1).mean():.1%}")
        products, residual = table.cg_iterations.mean(), table.cg_residual.median()
        print(f"  conjugate gradients: {products:.1f} products, residual {residual:.1e}")
        axes.plot(np.arange(1, len(table) + 1), table.ratio, ".", markersize=4, label=name)
    axes.axhspan(1 / 1.5, 1.5, color="0.9", zorder=0, label="within a factor of 1.5")
    axes.axhline(1, color="0.5", linewidth=0.8, zorder=0)
    axes.set(xlabel="update", ylabel="measured KL / target_kl", ylim=(0, None), title=f"NPG on {arguments.env}")
    axes.legend()
    pd.concat(tables).to_csv(arguments.out / "divergences.csv.new", index_label="update")
    (arguments.out / "divergences.csv.new").replace(arguments.out / "divergences.csv")
    for suffix in (".png", ".svg"):
        figure.savefig(arguments.out / f"divergences.new{suffix}", dpi=150)
        (arguments.out / f"divergences.new{suffix}").replace(arguments.out / f"divergences{suffix}")
    print(f"written to {arguments.out}: divergences.csv, divergences.png and .svg")


if __name__ == "__main__":
    main()
