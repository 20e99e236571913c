"""Acting and storing: between the policy and the estimators."""

from sb3_pgext.rollouts.buffers import DictStepBuffer, EpisodeBatch, EpisodeBuffer, Rollout, StepBuffer
from sb3_pgext.rollouts.dataset import EpisodeDataset
from sb3_pgext.rollouts.episodes import EpisodeCollector
from sb3_pgext.rollouts.replay import EpisodeReplay, ReplayedBatch
from sb3_pgext.rollouts.steps import Segments, StepCollector
from sb3_pgext.rollouts.tensors import TensorCollector

__all__ = [
    "DictStepBuffer",
    "EpisodeBatch",
    "EpisodeBuffer",
    "EpisodeCollector",
    "EpisodeDataset",
    "EpisodeReplay",
    "ReplayedBatch",
    "Rollout",
    "Segments",
    "StepBuffer",
    "StepCollector",
    "TensorCollector",
]
