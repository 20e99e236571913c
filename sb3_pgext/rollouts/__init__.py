"""Acting and storing: what happens between the policy and the estimators."""

from sb3_pgext.rollouts.buffers import EpisodeBatch, EpisodeBuffer
from sb3_pgext.rollouts.episodes import EpisodicAlgorithm

__all__ = ["EpisodeBatch", "EpisodeBuffer", "EpisodicAlgorithm"]
