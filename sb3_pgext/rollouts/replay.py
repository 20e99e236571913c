"""The last batches of episodes, kept to be learnt from again."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch as th
from stable_baselines3.common.save_util import open_path

from sb3_pgext.arguments import require
from sb3_pgext.rollouts.buffers import EpisodeBatch
from sb3_pgext.rollouts.files import replacing
from sb3_pgext.vec_envs.observations import each

__all__ = ["EpisodeReplay", "OffPolicyBatch", "ReplayedBatch", "concatenated"]

MAX_CACHED = 2**23
"""Log-probabilities of one batch's policy on another's steps that are kept, 32 MiB; others are computed each time."""


@dataclass(frozen=True)
class ReplayedBatch:
    """
    A batch of episodes and the policy that played them.

    :param episodes: the batch, M steps
    :param log_prob: log μ(a_t|s_t) of the policy that acted, ``(M,)``
    :param policy: the numbers that this policy depends on: name → tensor
    :param number: how many batches came before it
    """

    episodes: EpisodeBatch
    log_prob: th.Tensor
    policy: dict[str, th.Tensor]
    number: int


class EpisodeReplay:
    """
    The last batches, oldest first, and what their policies make of each other's steps.

    :param n_batches: how many are kept, the newest among them
    """

    def __init__(self, n_batches: int):
        self.n_batches = n_batches
        self.batches: list[ReplayedBatch] = []
        self._n_added = 0
        self._cache: dict[tuple[int, int], th.Tensor] = {}

    def add(self, episodes: EpisodeBatch, log_prob: th.Tensor, policy: dict[str, th.Tensor]) -> None:
        """
        Keep one more batch, and forget the oldest if there is no place for it.

        :param episodes: the batch, M steps; not copied
        :param log_prob: log μ(a_t|s_t) of the policy that acted, ``(M,)``
        :param policy: the numbers that this policy depends on, which nobody else may write to
        """
        new = ReplayedBatch(episodes, log_prob, policy, self._n_added)
        self._n_added += 1
        self.keep([*self.batches, new][-self.n_batches :])

    def some(self) -> list[ReplayedBatch]:
        """
        :return: the batches
        :raises ValueError: there are none
        """
        require(
            len(self.batches) > 0, "number of batches in the replay", 0, "at least 1: learn first, or load a replay"
        )
        return self.batches

    def require_fitting(self, policy: Mapping[str, th.Tensor], needed: Collection[str]) -> None:
        """
        Require that all batches were played by policies of one architecture.

        :param policy: its numbers, and the critic's: name → tensor
        :param needed: names of those that it cannot do without
        :raises ValueError: naming the numbers that differ
        """
        shapes = {name: x.shape for name, x in policy.items()}
        for batch in self.batches:
            other = {name for name, x in batch.policy.items() if shapes.get(name) != x.shape}
            differ = sorted(other | (set(needed) - batch.policy.keys()))
            require(
                not differ, "replay buffer", differ, "one of policies that have the same parameters, of the same shapes"
            )

    def keep(self, batches: list[ReplayedBatch]) -> None:
        """
        Forget all others.

        :param batches: which are kept
        """
        self.batches = batches
        numbers = {batch.number for batch in batches}
        self._cache = {key: column for key, column in self._cache.items() if numbers.issuperset(key)}

    def save(self, path: str | Path | io.BufferedIOBase, verbose: int = 0) -> None:
        """
        Write all of it to a file.

        :param path: a file, which stays open, or its name; ``.pkl`` is added where it has no ending. A file of this
            name is replaced at once or stays whole
        :param verbose: Verbosity level of SB3's
        """
        if not isinstance(path, (str, Path)):
            th.save(self, open_path(path, "w", verbose))
            return
        path = Path(path)
        path = path if path.suffix else path.with_name(f"{path.name}.pkl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            th.save(self, file)

    @classmethod
    def load(
        cls, path: str | Path | io.BufferedIOBase, device: th.device | str = "cpu", verbose: int = 0
    ) -> "EpisodeReplay":
        """
        Read what :meth:`save` has written; only from files that you trust.

        :param path: a file, or its name; ``.pkl`` is added where it is missing
        :param device: where the tensors are to be
        :param verbose: Verbosity level of SB3's
        :return: the replay
        :raises ValueError: something else is in the file
        """
        file = open_path(path, "r", verbose, suffix="pkl")
        try:
            replay = th.load(file, map_location=device, weights_only=False)
        finally:
            if file is not path:
                file.close()
        require(isinstance(replay, cls), "replay buffer", replay, "one that save_replay_buffer has saved")
        return replay

    def log_prob(
        self,
        batch: ReplayedBatch,
        other: ReplayedBatch,
        evaluate: Callable[[EpisodeBatch, dict[str, th.Tensor]], th.Tensor],
    ) -> th.Tensor:
        """
        Log-probabilities of one batch's steps under another's policy; computed once, as long as there is room for it.

        :param batch: whose steps
        :param other: whose policy
        :param evaluate: computes it: episodes, policy → ``(M,)``
        :return: log π_other(a_t|s_t), ``(M,)``
        """
        if other.number == batch.number:
            return batch.log_prob
        key = batch.number, other.number
        if key in self._cache:
            return self._cache[key]
        log_prob = evaluate(batch.episodes, other.policy)
        if sum(map(len, self._cache.values())) + len(log_prob) <= MAX_CACHED:
            self._cache[key] = log_prob
        return log_prob


@dataclass(frozen=True)
class OffPolicyBatch:
    """
    Episodes, and the likelihoods that those of the current policy are compared with.

    :param episodes: the batch, M steps
    :param advantages: Ψ_t, not weighted, ``(M,)``; with per-decision weights without the return, -b_t
    :param log_prob: log μ(a_t|s_t) of the policy that played the episode, ``(M,)``
    :param log_mixture: how much more likely the mixture of all policies makes it, ``(M,)``; 0 for no mixture
    :param group: of each episode: which are left out together, ``(N,)``; None for one each
    """

    episodes: EpisodeBatch
    advantages: th.Tensor
    log_prob: th.Tensor
    log_mixture: th.Tensor
    group: th.Tensor | None


def concatenated(batches: list[EpisodeBatch]) -> EpisodeBatch:
    """
    :param batches: several batches of episodes
    :return: one of all their episodes, in this order, without final observations; of a single batch itself
    """
    if len(batches) == 1:
        return batches[0]
    names = [f.name for f in fields(EpisodeBatch) if f.name != "final_observations"]
    joined = {name: each(lambda *parts: th.cat(parts), *(getattr(batch, name) for batch in batches)) for name in names}
    sizes = th.tensor([batch.n_episodes for batch in batches])
    before = (sizes.cumsum(0) - sizes).tolist()
    joined["episode"] = th.cat([batch.episode + n for batch, n in zip(batches, before, strict=True)])
    return EpisodeBatch(**joined)
