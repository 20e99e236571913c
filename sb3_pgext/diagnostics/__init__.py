"""The laboratory: exact quantities on finite MDPs, gradient samples, and studies of variance and bias."""

from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.diagnostics.exact import (
    action_probabilities,
    exact_actor_gradient,
    exact_fisher,
    exact_policy_gradient,
    exact_return,
    exact_values,
    exact_visitation,
)
from sb3_pgext.diagnostics.off_policy import OffPolicyEvaluation, evaluate_off_policy
from sb3_pgext.diagnostics.regret import RegretCallback, regret
from sb3_pgext.diagnostics.samples import estimated_gradient, gradient_samples, set_options
from sb3_pgext.diagnostics.statistics import GradientStatistics, Interval, gradient_statistics

__all__ = [
    "GradientStatistics",
    "Interval",
    "OffPolicyEvaluation",
    "RegretCallback",
    "action_probabilities",
    "estimated_gradient",
    "evaluate_off_policy",
    "exact_actor_gradient",
    "exact_fisher",
    "exact_policy_gradient",
    "exact_return",
    "exact_values",
    "exact_visitation",
    "gradient_samples",
    "gradient_statistics",
    "policy_parameters",
    "regret",
    "set_options",
]
