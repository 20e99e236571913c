"""Acting and storing: what happens between the policy and the estimators."""

from sb3_pgext.rollouts.buffers import EpisodeBatch, EpisodeBuffer, Rollout, StepBuffer
from sb3_pgext.rollouts.dataset import EpisodeDataset
from sb3_pgext.rollouts.episodes import EpisodicAlgorithm
from sb3_pgext.rollouts.replay import EpisodeReplay, ReplayedBatch
from sb3_pgext.rollouts.steps import FixedLengthAlgorithm

__all__ = [
    "EpisodeBatch",
    "EpisodeBuffer",
    "EpisodeDataset",
    "EpisodeReplay",
    "EpisodicAlgorithm",
    "FixedLengthAlgorithm",
    "ReplayedBatch",
    "Rollout",
    "StepBuffer",
]
