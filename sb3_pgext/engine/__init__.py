"""How a function of the policy is computed and a step is taken."""

from sb3_pgext.engine.compiled import CompiledEngine
from sb3_pgext.engine.eager import Engine, LossFunction, Step, evaluation_mode
from sb3_pgext.engine.nested import minibatches, rows
from sb3_pgext.engine.plain import foreign_part, has_sb3s, parameters_of, replaced_methods
from sb3_pgext.engine.regression import regress
from sb3_pgext.engine.whole_updates import require_finite_losses, require_finite_state, whole_update

__all__ = [
    "CompiledEngine",
    "Engine",
    "LossFunction",
    "Step",
    "evaluation_mode",
    "foreign_part",
    "has_sb3s",
    "minibatches",
    "parameters_of",
    "regress",
    "replaced_methods",
    "require_finite_losses",
    "require_finite_state",
    "rows",
    "whole_update",
]
