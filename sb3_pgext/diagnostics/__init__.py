"""The laboratory: exact quantities on finite MDPs, gradient samples, and studies of variance and bias."""

from sb3_pgext.algorithms.base import policy_parameters
from sb3_pgext.diagnostics.exact import (
    action_probabilities,
    exact_fisher,
    exact_policy_gradient,
    exact_return,
    exact_values,
)
from sb3_pgext.diagnostics.samples import gradient_samples

__all__ = [
    "action_probabilities",
    "exact_fisher",
    "exact_policy_gradient",
    "exact_return",
    "exact_values",
    "gradient_samples",
    "policy_parameters",
]
