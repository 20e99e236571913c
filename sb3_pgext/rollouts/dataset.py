"""Recorded episodes with the log-probabilities of whoever played them, in memory and in a file."""

import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th

from sb3_pgext.rollouts.buffers import EpisodeBatch

__all__ = ["EpisodeDataset"]

_FORMAT = {"format": "sb3-pgext episodes", "version": 1}
_OF_STEPS = ("actions", "rewards", "values")
_OF_EPISODES = ("lengths", "truncated", "bootstrap_values")


@dataclass(frozen=True)
class EpisodeDataset:
    """
    Recorded episodes.

    The file is one of numpy's ``.npz``, without pickles. Its arrays, for N episodes of M steps in all, those of an
    episode next to each other and in order of time:

    * ``header``: the text ``{"format": "sb3-pgext episodes", "version": 1}``
    * ``observations``: ``(M, *observation shape)``; for Dict spaces one ``observations/<key>`` for each key
    * ``actions``: as the policy drew them, before they were clipped to the bounds of the space
    * ``rewards`` and ``log_prob``, log μ(a_t|s_t): ``(M,)``
    * ``lengths``: steps of each episode, ``(N,)``, integer
    * ``truncated``: which episodes were cut by a limit, ``(N,)``, bool
    * ``values`` ``(M,)`` and ``bootstrap_values`` ``(N,)``: V(s_t), and V(s_T) of the episodes that were cut, of a
      critic; 0 where there is none

    :param episodes: the episodes, M steps
    :param log_prob: log μ(a_t|s_t) of the policy that acted, ``(M,)``
    """

    episodes: EpisodeBatch
    log_prob: th.Tensor

    def save(self, path: str | Path) -> None:
        """
        Write the file; one that is there is replaced at once or stays whole.

        :param path: its name, as it is
        """
        episodes, path = self.episodes, Path(path)
        arrays = {name: getattr(episodes, name).numpy(force=True) for name in (*_OF_STEPS, *_OF_EPISODES)}
        arrays |= {"log_prob": self.log_prob.numpy(force=True), "header": np.array(json.dumps(_FORMAT))}
        observations = episodes.observations
        if isinstance(observations, dict):
            arrays |= {f"observations/{key}": value.numpy(force=True) for key, value in observations.items()}
        else:
            arrays["observations"] = observations.numpy(force=True)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(content.getbuffer())
        os.replace(file.name, path)

    @classmethod
    def load(cls, path: str | Path, device: th.device | str = "cpu") -> "EpisodeDataset":
        """
        Read what :meth:`save`, or somebody else in its format, has written.

        :param path: name of the file
        :param device: where the tensors are to be
        :return: the dataset
        :raises ValueError: the file has another format, or the arrays' lengths do not fit
        """
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = str(arrays.pop("header", ""))
        if header != json.dumps(_FORMAT):
            raise ValueError(f"header={header!r} of {path}: allowed is {json.dumps(_FORMAT)!r}")
        tensors = {name: th.as_tensor(array, device=device) for name, array in arrays.items()}
        lengths, n_steps = tensors["lengths"], len(tensors["rewards"])
        for name, tensor in tensors.items():
            rows = len(lengths) if name in _OF_EPISODES else int(lengths.sum())
            if len(tensor) != rows:
                raise ValueError(f"length {len(tensor)} of {name!r} in {path}: allowed is {rows}, as lengths says")
        keys = [name for name in tensors if name.startswith("observations/")]
        episode = th.arange(len(lengths), device=device).repeat_interleave(lengths)
        return cls(
            EpisodeBatch(
                observations={key.partition("/")[2]: tensors[key] for key in keys} or tensors["observations"],
                episode=episode,
                time=th.arange(n_steps, device=device) - (lengths.cumsum(0) - lengths)[episode],
                **{name: tensors[name] for name in (*_OF_STEPS, *_OF_EPISODES)},
            ),
            tensors["log_prob"],
        )
