"""Samples of the gradient that an algorithm would step along."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_pgext.algorithms import REINFORCE
from sb3_pgext.algorithms.base import require_one_of
from sb3_pgext.diagnostics.exact import exact_policy_gradient

__all__ = ["estimated_gradient", "gradient_samples", "set_options"]


def set_options(model: REINFORCE, **options: Any) -> dict[str, Any]:
    """
    Give a model other options of its estimator. What they make ineffective gets the only value it may then have.

    :param model: an algorithm of this family; changed in place, its parameters are not
    :param options: name → value, of the arguments in the class's ``estimate_options``
    :return: what else was changed, name → new value
    :raises ValueError: an option that ĝ does not depend on, or a value that is not allowed
    """
    for name in options:
        require_one_of("option", name, type(model).estimate_options)
    before = {name: getattr(model, name) for name in type(model).estimate_options}
    try:
        for name, value in options.items():
            setattr(model, name, value)
        ineffective = {name: only for name, (only, _) in model.ineffective_arguments().items() if name not in options}
        changed = {name: only for name, only in ineffective.items() if getattr(model, name) != only}
        for name, only in changed.items():
            setattr(model, name, only)
        model._check_arguments()
    except ValueError:
        for name, value in before.items():
            setattr(model, name, value)
        raise
    return changed


def estimated_gradient(model: REINFORCE, mdp: gym.Env) -> th.Tensor:
    """
    The exact gradient that the model's options mean to estimate: with or without the weights γ^t.

    :param model: an algorithm of this family
    :param mdp: the :class:`~sb3_pgext.envs.TabularMDP` that it learns on, wrapped or not
    :return: ``(P,)``, float64
    """
    weighted = model.discount_weighting or model.credit == "trajectory"
    return exact_policy_gradient(model.policy, mdp, model.gamma, weighted)


def gradient_samples(
    model: REINFORCE,
    n_batches: int,
    n_episodes: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> th.Tensor:
    """
    The estimator's ĝ at frozen parameters, from fresh batches, through the very code path that ``train()`` uses.

    Neither the policy nor the critic is changed; the environment, its statistics and ``num_timesteps`` go on.

    :param model: an algorithm of this family
    :param n_batches: how many
    :param n_episodes: episodes per batch; None for the model's own
    :param progress: called after each batch with the number of batches done
    :return: ``(n_batches, P)``, on the model's device
    :raises ValueError: ``n_batches < 1``, or ``n_episodes`` is not allowed for the model
    """
    if n_batches < 1:
        raise ValueError(f"n_batches={n_batches!r}: allowed is a whole number >= 1")
    own_n_episodes = model.n_episodes
    statistics = {name: tensor.clone() for name, tensor in model.policy.named_buffers()}
    try:
        model.n_episodes = own_n_episodes if n_episodes is None else n_episodes
        model._check_arguments()
        with _no_log(model):
            _, callback = model._setup_learn(model.num_timesteps, reset_num_timesteps=False)
            assert model.env is not None
            samples = []
            for done in range(1, n_batches + 1):
                model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_episodes)
                samples.append(model.estimate_gradient())
                progress(done)
    finally:
        model.n_episodes = own_n_episodes
        model.policy.set_training_mode(False)
        for name, tensor in model.policy.named_buffers():
            tensor.copy_(statistics[name])
    return th.stack(samples)


@contextmanager
def _no_log(model: REINFORCE) -> Iterator[None]:
    """Without a run of its own in the log, and with the model's logger in place afterwards."""
    own = {
        name: getattr(model, name)
        for name in ("tensorboard_log", "verbose", "_logger", "_custom_logger")
        if hasattr(model, name)
    }
    model.tensorboard_log, model.verbose = None, 0
    model.set_logger(Logger(folder=None, output_formats=[]))
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(model, name, value)
        if "_logger" not in own:
            del model._logger
