"""Studies: algorithms × environments × seeds, trained in parallel and compared."""

from sb3_pgext.compare.command import compare
from sb3_pgext.compare.study import Evaluation, Run, Study, find_study, quick_study, read_study

__all__ = ["Evaluation", "Run", "Study", "compare", "find_study", "quick_study", "read_study"]
