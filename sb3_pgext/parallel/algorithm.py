"""SB3's algorithms on several ranks: seeds, logs, callbacks and files."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_pgext.parallel.group import present
from sb3_pgext.parallel.normalizers import merge_statistics
from sb3_pgext.parallel.ranks import Ranks
from sb3_pgext.parallel.start import callbacks_of_rank

__all__ = ["ParallelAlgorithm"]


class ParallelAlgorithm(BaseAlgorithm):
    """Any of SB3's algorithms, of which rank 0 alone logs, calls callbacks and writes files."""

    @property
    def ranks(self) -> Ranks:
        """The ranks that train this model together."""
        return present()

    @property
    def logger(self) -> Logger:
        """SB3's, also before the first ``learn()``; on ranks other than 0 one without output."""
        if not hasattr(self, "_logger"):
            name = type(self).__name__
            own = (0, None) if self.ranks.rank else (self.verbose, self.tensorboard_log)
            self._logger = configure_logger(*own, name)
        return self._logger

    def set_random_seed(self, seed: int | None = None) -> None:
        """SB3's, with a seed that depends on the rank too."""
        super().set_random_seed(self.ranks.seed(seed))

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """SB3's, for the callbacks of this rank."""
        if self.ranks.several and self.env is not None:
            merge_statistics(self.ranks, self.env)  # of the first observations, which have just been made
        of_rank = callbacks_of_rank(self.ranks, callback)
        return super()._init_callback(of_rank, progress_bar and self.ranks.rank == 0)

    def save(self, *arguments: Any, **options: Any) -> None:
        """SB3's, on rank 0; elsewhere nothing is written."""
        if self.ranks.rank == 0:
            super().save(*arguments, **options)
