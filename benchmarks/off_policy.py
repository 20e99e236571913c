"""
Bias and variance of the four importance weights against the exact gradient, on the finite MDPs of the test suite.

    python -m benchmarks.off_policy

Prints, for each MDP and distance of the behaviour policy, the relative bias (exact, and as it was measured) and the
variance of batches of 500 episodes, both in units of the exact gradient's length.
"""

from sb3_pgext.diagnostics import exact_policy_gradient, gradient_statistics
from sb3_pgext.estimators.importance import WEIGHTS
from tests.diagnostics.sampler import Behaviour, off_policy_estimates
from tests.diagnostics.test_off_policy import GAMMA, expectation, laboratory


def main() -> None:
    print("MDP | KL   | weights      | bias exact | bias measured | tr Cov / |g|²")
    for seed in (2, 5):
        for kl in (0.05, 0.3):
            mdp, model = laboratory(seed)
            mu = Behaviour(model, mdp, kl, seed)
            exact = exact_policy_gradient(model.policy, mdp, GAMMA)
            samples = off_policy_estimates(model, mdp, [mu], [{"weights": w} for w in WEIGHTS], 100, 500, seed)
            for weights, estimates in zip(WEIGHTS, samples, strict=True):
                bias = (expectation(model, mdp, mu, weights) - exact).norm() / exact.norm()
                measured = gradient_statistics(estimates, exact)
                found, variance = measured.bias_norm.value, measured.trace.value / exact.square().sum()
                print(f"{seed:3} | {kl:4} | {weights:12} | {bias:10.3f} | {found:13.3f} | {variance:.4f}")


if __name__ == "__main__":
    main()
