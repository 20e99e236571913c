"""
Variance of the estimate of one policy's improvement, by sampling actions (REINFORCE) or parameters (search gradients),
over the number of parameters and over the horizon.

    python -m benchmarks.action_or_parameter_space --out docs/results/action_or_parameter_space.png

An episode passes through S = 8 states, over and over, for H steps. In each state one of two actions is right. At the
end the episode pays 1 for each right action among its first 8 steps, and noise of standard deviation 1. With features
φ(s), orthonormal in P dimensions, and θ = 0, a stochastic policy takes the right action with probability
sigmoid(φ(s)ᵀθ). A policy with sampled parameters takes it if φ(s)ᵀ(θ + σε) > 0, which has the probability Φ(φ(s)ᵀθ/σ).
With σ = 4/√(2π) both have the same gradient of the expected return, Σ_s φ(s)/4. Each estimate is from 16 episodes.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch as th

from sb3_pgext.diagnostics import gradient_statistics
from sb3_pgext.estimators.search import leave_one_out, mirrored, search_gradient

N_STATES, N_EPISODES, N_BATCHES, SIGMA = 8, 16, 2000, 4 / math.sqrt(2 * math.pi)
LINES = {
    "actions: REINFORCE, leave-one-out baseline": "o-",
    "parameters: leave-one-out baseline": "s--",
    "parameters: antithetic": "^:",
}


def features(n_parameters: int) -> th.Tensor:
    """φ(s), orthonormal, ``(S, P)``."""
    return th.linalg.qr(th.randn(n_parameters, N_STATES))[0].T


def returns(right: th.Tensor) -> th.Tensor:
    """F of episodes whose right actions among the first 8 steps are given, ``(N, 8)``; ``(N,)``."""
    return right.float().sum(1) + th.randn(len(right))


def by_actions(phi: th.Tensor, horizon: int) -> th.Tensor:
    """ĝ = mean of (F − b) Σ_t ∇log π(a_t|s_t), ``(P,)``."""
    right = th.rand(N_EPISODES, horizon) < 0.5
    scores = (right.float() - 0.5) @ phi[th.arange(horizon) % N_STATES]
    return leave_one_out(returns(right[:, :N_STATES])) @ scores / N_EPISODES


def by_parameters(phi: th.Tensor, antithetic: bool) -> th.Tensor:
    """The search gradient, ``(P,)``."""
    noise = th.randn(N_EPISODES // (2 if antithetic else 1), phi.shape[1])
    noise = mirrored(noise) if antithetic else noise
    fitness = returns(noise @ phi.T > 0)
    return search_gradient(fitness if antithetic else leave_one_out(fitness), noise, SIGMA)


def measured(n_parameters: int, horizon: int) -> list[tuple[float, float, float]]:
    """tr Cov ĝ / ‖g‖² of each line, with its interval; the mean is the exact gradient."""
    phi = features(n_parameters)
    exact = phi.sum(0) / 4
    rows = []
    for estimate in (
        lambda: by_actions(phi, horizon),
        lambda: by_parameters(phi, antithetic=False),
        lambda: by_parameters(phi, antithetic=True),
    ):
        statistics = gradient_statistics(th.stack([estimate() for _ in range(N_BATCHES)]), exact)
        assert statistics.bias is not None
        assert abs(statistics.bias) < 5 * statistics.bias_error
        trace = statistics.trace
        rows.append(tuple(x / (exact @ exact).item() for x in (trace.value, trace.low, trace.high)))
    return rows


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("action_or_parameter_space.png"))
    arguments = parser.parse_args()
    th.manual_seed(0)
    panels = {
        "number of parameters, P (H = 8)": ([8, 16, 32, 64, 128, 256, 512], lambda p: measured(p, N_STATES)),
        "horizon, H (P = 8)": ([8, 16, 32, 64, 128, 256, 512], lambda h: measured(N_STATES, h)),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (title, (values, measure)) in zip(axes, panels.items(), strict=True):
        columns = list(zip(*map(measure, values), strict=True))
        print(title, values)
        for (name, style), column in zip(LINES.items(), columns, strict=True):
            middle, low, high = zip(*column, strict=True)
            axis.plot(values, middle, style, label=name, markersize=4)
            axis.fill_between(values, low, high, alpha=0.2)
            print(f"{name}: " + ", ".join(f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in column))
        axis.set(yscale="log", xlabel=title)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("variance of ĝ, tr Cov ĝ / ‖g‖²")
    axes[0].legend(fontsize=8)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
