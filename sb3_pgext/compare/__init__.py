"""Studies: algorithms × environments × seeds, trained in parallel and compared."""

from sb3_pgext.compare.command import compare
from sb3_pgext.compare.study import Evaluation, Run, Study, read_study

__all__ = ["Evaluation", "Run", "Study", "compare", "read_study"]
