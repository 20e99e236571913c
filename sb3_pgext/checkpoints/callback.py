"""Checkpoints while a model learns."""

import warnings
from pathlib import Path

from filelock import FileLock, Timeout
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext.arguments import require, require_count
from sb3_pgext.checkpoints.files import LOCK, add_checkpoint, good_checkpoints, num_timesteps_at, together
from sb3_pgext.checkpoints.saving import contents
from sb3_pgext.parallel import present

__all__ = ["CheckpointCallback"]

_DRAW_NOISE_FIRST = (OnPolicyAlgorithm.collect_rollouts, OffPolicyAlgorithm.collect_rollouts)


class CheckpointCallback(BaseCallback):
    """
    Write checkpoints that :func:`~sb3_pgext.resume` continues from as if nothing had happened.

    One is written before the first update, one after the last, and one between two updates each time that ``every``
    more environment steps have been taken. Among several callbacks it stands first: what others do before it, at the
    start of a rollout, they would do again when the training is resumed. Of several ranks, rank 0 writes what all have.

    :param every: environment steps
    :param path: a folder for the checkpoints of this training alone
    :param keep: how many good ones stay: the last ones
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: ``every`` or ``keep`` is no whole number >= 1
    """

    on_every_rank = True

    def __init__(self, every: int, path: str | Path = "checkpoints", keep: int = 3, verbose: int = 0):
        super().__init__(verbose)
        require_count("every", every)
        require_count("keep", keep)
        self.every, self.path, self.keep = every, Path(path), keep

    def _on_training_start(self) -> None:
        """
        :raises ValueError: another process or thread trains into the folder, or it has checkpoints of a training that
            got further, which this one would delete
        """
        self._written_at: int | None = None
        if present().rank:
            return
        furthest = max(map(num_timesteps_at, good_checkpoints(self.path)), default=0)
        there = f"there is a checkpoint of step {furthest}, and this training is at step {self.model.num_timesteps}"
        fits = furthest <= self.model.num_timesteps
        require(fits, "path", str(self.path), f"a folder of its own, or to resume: {there}")
        if type(self.model).collect_rollouts in _DRAW_NOISE_FIRST and self.model.use_sde:  # type: ignore[attr-defined]
            why = f"{type(self.model).__name__} draws that of gSDE before a checkpoint can be written"
            message = f"a resumed training will draw other noise than the uninterrupted one: {why}"
            warnings.warn(message, stacklevel=2)
        self.path.mkdir(parents=True, exist_ok=True)
        # One for each thread: a training that was interrupted has not let go of its lock, and may be resumed there.
        self._lock = FileLock(self.path / LOCK, is_singleton=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            message = "another training is writing its checkpoints there: allowed is a folder of its own"
            raise ValueError(f"path={str(self.path)!r}: {message}") from error

    def _on_rollout_start(self) -> None:
        # Between two updates: the rollout's actions are drawn, and its environments are reset, afterwards.
        before, now = self._written_at, self.model.num_timesteps
        if before is None or now // self.every > before // self.every:
            self._write()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self._written_at != self.model.num_timesteps:
            self._write()
        if present().rank == 0:
            self._lock.release(force=True)

    def _write(self) -> None:
        self._written_at = self.model.num_timesteps
        of_ranks = present().at_first(contents(self.model))
        if not of_ranks:
            return
        written = add_checkpoint(self.path, self._written_at, together(of_ranks), self.keep)
        if self.verbose > 0:
            print(f"Checkpoint: {written}")
