"""The contents of SB3's replay buffers, and of those that keep log-probabilities, as arrays."""

from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_pgext.rollouts.transitions import DictLogProbReplayBuffer, LogProbReplayBuffer, NStepLogProbReplayBuffer

__all__ = ["replay_of", "restored_replay"]

_BUFFERS = (
    *(ReplayBuffer, DictReplayBuffer, NStepReplayBuffer),
    *(LogProbReplayBuffer, DictLogProbReplayBuffer, NStepLogProbReplayBuffer),
)
_ARGUMENTS = (
    *("observation_space", "action_space", "n_envs", "optimize_memory_usage", "handle_timeout_termination"),
    *("n_steps", "gamma"),  # of the NStepReplayBuffer
)
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "log_probs")


def replay_of(buffer: Any) -> Any:
    """
    The content of a replay buffer, without the part that is still empty.

    :param buffer: a replay buffer of any class; None for none
    :return: a mapping for the buffers of SB3 and ours; any other buffer itself
    """
    if type(buffer) not in _BUFFERS:
        return buffer
    # With `optimize_memory_usage`, the newest next observation lies where the next transition will be.
    n_rows = buffer.buffer_size if buffer.full else buffer.pos + 1
    arguments = {name: getattr(buffer, name) for name in _ARGUMENTS if hasattr(buffer, name)}
    return {
        "class": type(buffer),
        # The constructor divides the size among the sub-environments.
        "arguments": {**arguments, "buffer_size": buffer.buffer_size * buffer.n_envs},
        "arrays": {name: _first(getattr(buffer, name), n_rows) for name in _ARRAYS if hasattr(buffer, name)},
        "pos": buffer.pos,
        "full": buffer.full,
    }


def restored_replay(saved: Any, device: th.device) -> Any:
    """
    :param saved: the outcome of :func:`replay_of`
    :param device: where the sampled tensors are to be
    :return: the replay buffer
    :raises ValueError: it is of no such class
    """
    if not isinstance(saved, Mapping):
        return saved
    if saved["class"] not in _BUFFERS:
        raise ValueError(f"replay_buffer/class={saved['class']}: allowed is one of {_BUFFERS}")
    buffer = saved["class"](**saved["arguments"], device=device)
    for name in _ARRAYS:
        if hasattr(buffer, name):
            _fill(getattr(buffer, name), saved["arrays"][name])
    buffer.pos, buffer.full = saved["pos"], saved["full"]
    return buffer


def _first(array: Any, n_rows: int) -> Any:
    return {key: part[:n_rows] for key, part in array.items()} if isinstance(array, dict) else array[:n_rows]


def _fill(array: Any, rows: Any) -> None:
    if isinstance(array, dict):
        for key, part in array.items():
            _fill(part, rows[key])
    else:
        array[: len(rows)] = rows
