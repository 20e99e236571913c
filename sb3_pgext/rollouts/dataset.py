"""Recorded episodes with the log-probabilities of whoever played them, in memory and in a file."""

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_pgext.arguments import require
from sb3_pgext.rollouts.buffers import EpisodeBatch, episode_indices
from sb3_pgext.rollouts.files import replacing
from sb3_pgext.vec_envs.observations import each

if TYPE_CHECKING:
    from minari import MinariDataset

__all__ = ["EpisodeDataset", "require_suitable"]

_FORMAT = {"format": "sb3-pgext episodes", "version": 1}
_OF_STEPS = ("actions", "rewards", "values", "log_prob")
_OF_EPISODES = ("lengths", "truncated", "bootstrap_values")


@dataclass(frozen=True)
class EpisodeDataset:
    """
    Recorded episodes.

    The file is one of numpy's ``.npz``, without pickles. Its arrays, for N episodes of M steps in all, those of an
    episode next to each other and in order of time:

    * ``header``: the text ``{"format": "sb3-pgext episodes", "version": 1}``
    * ``observations``: ``(M, *observation shape)``; for Dict spaces one ``observations/<key>`` for each key
    * ``actions``: as the policy drew them, before they were clipped to the bounds of the space: ``(M,)``, integer, for
      Discrete spaces, else ``(M, d)`` with the d numbers of an action: integer for MultiDiscrete, float for Box
      and MultiBinary
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

    def to(self, device: th.device | str) -> "EpisodeDataset":
        """
        :param device: any
        :return: the same dataset there
        """
        moved: dict[str, Any] = {
            name: None if value is None else each(lambda tensor: tensor.to(device), value)
            for name, value in vars(self.episodes).items()
        }
        return EpisodeDataset(EpisodeBatch(**moved), self.log_prob.to(device))

    def part(self, rank: int, size: int) -> "EpisodeDataset":
        """
        One of several parts of about the same size, which have no episode in common.

        :param rank: which part, from 0
        :param size: number of parts
        :return: the episodes rank, rank + size, rank + 2 size, …
        :raises ValueError: there are fewer episodes than parts
        """
        episodes = self.episodes
        if size == 1:
            return self
        n_episodes = episodes.n_episodes
        require(n_episodes >= size, "number of episodes", n_episodes, f"at least {size}, one for each rank")
        chosen = th.arange(rank, n_episodes, size, device=episodes.lengths.device)
        steps = (episodes.episode % size == rank).nonzero().flatten()
        names = ("observations", "actions", "rewards", "values")
        of_steps = {name: each(lambda x: x[steps], getattr(episodes, name)) for name in names}
        of_episodes = {name: getattr(episodes, name)[chosen] for name in _OF_EPISODES}
        part = EpisodeBatch(**of_steps, **of_episodes, **episode_indices(of_episodes["lengths"]))
        return EpisodeDataset(part, self.log_prob[steps])

    def save(self, path: str | Path) -> None:
        """
        Write the file; one that is there is replaced at once or stays whole.

        :param path: its name, as it is
        """
        columns = {**vars(self.episodes), "log_prob": self.log_prob}
        tensors = {name: columns[name] for name in (*_OF_STEPS, *_OF_EPISODES)}
        observations = columns["observations"]
        if isinstance(observations, dict):
            tensors |= {f"observations/{key}": tensor for key, tensor in observations.items()}
        else:
            tensors["observations"] = observations
        arrays = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
        with replacing(Path(path)) as file:
            np.savez_compressed(file, header=np.array(json.dumps(_FORMAT)), **arrays)

    @classmethod
    def load(cls, path: str | Path, device: th.device | str = "cpu") -> "EpisodeDataset":
        """
        Read what :meth:`save`, or somebody else in its format, has written.

        :param path: name of the file
        :param device: where the tensors are to be
        :return: the dataset
        :raises ValueError: the file has another format, or an array is missing or of another type or shape
        """
        arrays = _arrays_in(path)
        header = str(arrays.pop("header", ""))
        if _parsed(header) != _FORMAT:
            raise ValueError(f"header={header!r} of {path}: allowed is {json.dumps(_FORMAT)!r}")
        of_observations = [name for name in arrays if name.partition("/")[0] == "observations"]
        missing = sorted({*_OF_STEPS, *_OF_EPISODES} - arrays.keys()) + ["observations"] * (not of_observations)
        if missing:
            raise ValueError(f"arrays {missing} are missing in {path}")
        tensors = {}
        for name in ("lengths", *_OF_STEPS, *_OF_EPISODES, *of_observations):
            array = arrays[name]
            if array.dtype.kind not in "biuf":
                raise ValueError(f"dtype of {name!r}={array.dtype} in {path}: allowed are numbers")
            is_wide = name == "actions" or name in of_observations
            if array.ndim == 0 or (array.ndim > 1 and not is_wide):
                raise ValueError(f"shape of {name!r}={array.shape} in {path}: allowed is one row per step or episode")
            if name == "lengths" and (array.dtype.kind not in "iu" or len(array) == 0 or array.min() < 1):
                raise ValueError(f"lengths={array.tolist()} in {path}: allowed are whole numbers >= 1, one per episode")
            rows = len(arrays["lengths"]) if name in _OF_EPISODES else int(arrays["lengths"].sum())
            if len(array) != rows:
                raise ValueError(f"length {len(array)} of {name!r} in {path}: allowed is {rows}, as lengths says")
            tensors[name] = th.as_tensor(array, device=device)
        observations = {name.partition("/")[2]: tensors[name] for name in of_observations}
        log_prob = tensors.pop("log_prob")
        return cls(
            EpisodeBatch(
                observations=observations.get("", observations),
                **episode_indices(tensors["lengths"].long()),
                **{name: tensors[name] for name in tensors if name not in of_observations},
            ),
            log_prob,
        )

    @classmethod
    def from_minari(
        cls,
        dataset: "MinariDataset",
        log_prob: Callable[[PyTorchObs, th.Tensor], th.Tensor],
        device: th.device | str = "cpu",
    ) -> "EpisodeDataset":
        """
        The episodes of a Minari dataset, and what the policy that played them, which Minari does not record, says of
        their actions.

        There is no critic: all values are 0, also those of the last states of episodes that were cut.

        :param dataset: its actions must be what the policy drew, not yet clipped to the bounds of the space
        :param log_prob: log μ(a|s) of the policy that acted: observations ``(M, *observation shape)``, actions as in
            :class:`EpisodeDataset` → ``(M,)``. Of an SB3 model:
            ``lambda obs, actions: model.policy.get_distribution(obs).log_prob(actions)``
        :param device: where the tensors are to be, those given to ``log_prob`` too: of an SB3 model ``model.device``
        :return: the dataset
        :raises ValueError: there are no episodes, or spaces are neither arrays nor (observations) dicts of arrays
        """
        recorded = list(dataset.iterate_episodes())
        require(len(recorded) > 0, "number of episodes of the dataset", 0, "at least 1")

        def joined(parts: list[Any]) -> th.Tensor:
            arrays = all(isinstance(part, np.ndarray) for part in parts)
            require(arrays, "type of observations or actions", type(parts[0]).__name__, "an array, or a dict of arrays")
            tensor = th.as_tensor(np.concatenate(parts), device=device)
            # Those of MultiBinary spaces have 8 bits, and a likelihood of numbers.
            return tensor.float() if tensor.is_floating_point() or tensor.dtype in (th.int8, th.bool) else tensor

        # Minari has the s_T too.
        observations = each(
            lambda *parts: joined([part[:-1] for part in parts]), *(episode.observations for episode in recorded)
        )
        actions = joined([episode.actions for episode in recorded])
        actions = actions if actions.dim() == 1 else actions.flatten(1)
        lengths = th.tensor([len(episode.rewards) for episode in recorded], device=device)
        episodes = EpisodeBatch(
            observations=observations,
            actions=actions,
            rewards=joined([episode.rewards for episode in recorded]),
            values=th.zeros(len(actions), device=device),
            **episode_indices(lengths),
            lengths=lengths,
            truncated=th.tensor([not episode.terminations[-1] for episode in recorded], device=device),
            bootstrap_values=th.zeros(len(recorded), device=device),
        )
        with th.no_grad():
            return cls(episodes, log_prob(observations, actions))


def _arrays_in(path: str | Path) -> dict[str, np.ndarray]:
    """
    The arrays of an ``.npz`` file.

    :raises ValueError: it is another file, or damaged
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content as file:
                return {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # there is no such file, or it may not be read
        raise ValueError(f"path={str(path)!r}: allowed is an .npz file without pickles. {error}") from error
    raise ValueError(f"path={str(path)!r}: allowed is an .npz file, which this .npy file is not")


def _parsed(header: str) -> Any:
    """The contents of a JSON text; None where it is none."""
    try:
        return json.loads(header)
    except ValueError:
        return None


def require_suitable(dataset: EpisodeDataset, model: BaseAlgorithm) -> EpisodeDataset:
    """
    A dataset that a model can learn from. Shapes that do not fit would often give numbers, by broadcasting.

    :param dataset: any
    :param model: with the spaces that the episodes must be of
    :return: the dataset on the model's device
    :raises ValueError: there are no episodes, observations or actions are not of the model's spaces, the numbers of the
        episodes contradict their lengths, or rewards, values or log-probabilities are not one finite number per step
    """
    episodes, space = dataset.episodes, model.observation_space
    n_steps = len(episodes)
    require(n_steps > 0, "number of steps of the dataset", 0, "at least 1")
    of_keys = space.spaces if isinstance(space, spaces.Dict) else {"observations": space}
    observations = episodes.observations
    observations = observations if isinstance(observations, dict) else {"observations": observations}
    require(observations.keys() == of_keys.keys(), "observations", sorted(observations), f"{sorted(of_keys)}")
    for key, part in of_keys.items():
        _require_inside(f"observations of {key!r}", observations[key], (n_steps, *(part.shape or ())), part)
    actions, action_space = episodes.actions, model.action_space
    dimensions = () if isinstance(action_space, spaces.Discrete) else (math.prod(action_space.shape or ()),)
    _require_inside("actions", actions, (n_steps, *dimensions), action_space)
    if not isinstance(action_space, spaces.MultiBinary):
        is_box = isinstance(action_space, spaces.Box)
        allowed = "a floating-point one" if is_box else "an integer one"
        require(actions.is_floating_point() == is_box, "dtype of actions", actions.dtype, allowed)

    lengths = episodes.lengths
    whole = lengths.dim() == 1 and not lengths.is_floating_point() and len(lengths) > 0 and bool((lengths > 0).all())
    require(whole, "lengths", lengths.tolist(), "whole numbers >= 1, one per episode")
    require(int(lengths.sum()) == n_steps, "sum of the lengths", int(lengths.sum()), f"{n_steps}, the number of steps")
    for name, indices in episode_indices(lengths).items():
        given = getattr(episodes, name)
        same = given.shape == indices.shape and bool((given == indices).all())
        require(same, name, given.tolist(), "what the lengths say: whole episodes, one after the other")
    for name in ("rewards", "values", "log_prob", "truncated", "bootstrap_values"):
        tensor = dataset.log_prob if name == "log_prob" else getattr(episodes, name)
        _require_numbers(name, tensor, (len(lengths) if name in _OF_EPISODES else n_steps,))
    return dataset.to(model.device)


def _require_numbers(name: str, tensor: th.Tensor, shape: tuple[int, ...]) -> None:
    """Require finite numbers in this shape."""
    require(tuple(tensor.shape) == shape, f"shape of {name}", tuple(tensor.shape), f"{shape}")
    require(bool(tensor.isfinite().all()), name, "NaN or infinite", "finite numbers")


def _require_inside(name: str, tensor: th.Tensor, shape: tuple[int, ...], space: spaces.Space) -> None:
    """
    Require numbers of a space as the policy takes them: discrete ones from 0, wherever the space starts; those of a
    Box may lie beyond its bounds.
    """
    _require_numbers(name, tensor, shape)
    if isinstance(space, spaces.MultiBinary):
        require(bool(((tensor == 0) | (tensor == 1)).all()), name, "others than 0 and 1", "0 and 1")
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        ends = space.n if isinstance(space, spaces.Discrete) else space.nvec
        inside = (tensor >= 0) & (tensor < th.as_tensor(ends, device=tensor.device))
        m = int(inside.reshape(len(tensor), -1).all(1).byte().argmin())  # the first step outside, if there is one
        require(bool(inside[m].all()), f"{name} at step {m}", tensor[m].tolist(), f"whole numbers >= 0 and < {ends}")
