"""Samples of the gradient that an algorithm would step along."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_pgext.algorithms import ISPG, VPG, SearchGradient
from sb3_pgext.algorithms.episodic import EpisodicAlgorithm
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.arguments import require, require_count, require_one_of
from sb3_pgext.diagnostics.exact import exact_policy_gradient
from sb3_pgext.engine import evaluation_mode
from sb3_pgext.envs import TabularMDP

__all__ = ["estimated_gradient", "gradient_samples", "set_options"]

_LOGGING = ("tensorboard_log", "verbose", "_logger", "_custom_logger")


def set_options(model: EpisodicAlgorithm | VPG | SearchGradient, **options: Any) -> dict[str, Any]:
    """
    Give a model other options of its estimator. What they make ineffective gets the only value it may then have.

    :param model: an algorithm of this family; changed in place, its parameters are not, but for another ``critic``:
        that is a new one, for the same policy
    :param options: name → value, of the arguments in the class's ``estimate_options``
    :return: what else was changed, name → new value
    :raises ValueError: an option that ĝ does not depend on, or a value that is not allowed
    """
    for name in options:
        require_one_of("option", name, type(model).estimate_options)
    trial = copy(model)
    vars(trial).update(options)
    ineffective = {name: only for name, (only, _) in trial.ineffective_arguments().items() if name not in options}
    changed = {name: only for name, only in ineffective.items() if getattr(trial, name) != only}
    vars(trial).update(changed)
    del trial.policy  # it may get another critic
    trial.check_arguments()
    new_critic = "critic" in options | changed and trial.critic != model.critic
    vars(model).update(options | changed)
    if new_critic:
        before: Any = model.policy
        del model.policy
        actor = {name: parameter.detach() for name, parameter in policy_parameters(before).items()}
        model._setup_model()
        model.policy.load_state_dict(actor, strict=False)
    elif isinstance(model, FixedLengthAlgorithm) and model.rollout_buffer.full:
        model.collector.compute_advantages(model, model.rollout_buffer)
    return changed


def estimated_gradient(model: EpisodicAlgorithm | VPG | SearchGradient, mdp: gym.Env) -> th.Tensor | None:
    """
    The exact gradient that the model's options mean to estimate: with or without the weights γ^t.

    The mean over the steps of a rollout has an exact expectation where all episodes have the same length and the
    rollout consists of whole ones: the gradient without γ^t, divided by that length. Where rollouts cut episodes it
    depends on where they do.

    :param model: an algorithm of this family
    :param mdp: the :class:`~sb3_pgext.envs.TabularMDP` that it learns on, wrapped or not
    :return: ``(P,)``, float64; None where there is none
    """
    if isinstance(model, SearchGradient):  # a sum over all deterministic policies
        return None
    if isinstance(model, EpisodicAlgorithm):
        weighted = model.discount_weighting or model.credit == "trajectory"
        return exact_policy_gradient(model.policy, mdp, model.gamma, weighted)
    length = _length_of_all_episodes(mdp)
    if length is None or model.n_steps % length != 0:
        return None
    return exact_policy_gradient(model.policy, mdp, model.gamma, discount_weighting=False) / length


def _length_of_all_episodes(mdp: gym.Env) -> int | None:
    """The horizon of a task whose episodes end with it and never before; None for any other."""
    tables = mdp.unwrapped
    assert isinstance(tables, TabularMDP)
    ends_only_there = tables.at_horizon == "terminate" and np.allclose(tables.transitions.sum(axis=2), 1.0)
    return tables.horizon if ends_only_there else None


def gradient_samples(
    model: EpisodicAlgorithm | VPG | SearchGradient,
    n_batches: int,
    size: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> th.Tensor:
    """
    The estimator's ĝ at frozen parameters, from fresh batches, through the very code path that ``train()`` uses.

    Neither the policy nor the critic is changed; the environment, its statistics and ``num_timesteps`` go on. So a
    rollout of fixed length goes on where the one before was cut, as in training: its steps should be many times those
    of an episode where the batches are to be independent.

    The policy is that which played the batch. So all weights of :class:`~sb3_pgext.ISPG` are 1 here, and the samples
    say nothing about them: they are those of REINFORCE.

    :param model: an algorithm of this family, without a replay: old batches would be in several samples
    :param n_batches: how many
    :param size: of a batch: its episodes, or its steps of each sub-environment, as the model's ``batch_argument``
        says; None for the model's own
    :param progress: called after each batch with the number of batches done
    :return: ``(n_batches, P)``, on the model's device
    :raises ValueError: ``n_batches < 1``, ``size`` is not allowed for the model, or the model has a replay
    """
    require_count("n_batches", n_batches)
    if isinstance(model, ISPG):
        allowed = "0: samples that share old batches are dependent"
        require(model.replay_batches == 0, "replay_batches", model.replay_batches, allowed)
    own_size = getattr(model, model.batch_argument)
    size = own_size if size is None else size
    statistics = {name: tensor.clone() for name, tensor in model.policy.named_buffers()}
    try:
        setattr(model, model.batch_argument, size)
        model.check_arguments()
        with _no_log(model), evaluation_mode(model.policy):
            _, callback = model._setup_learn(model.num_timesteps, reset_num_timesteps=False)
            assert model.env is not None
            samples = []
            for done in range(1, n_batches + 1):
                model.collect_rollouts(model.env, callback, model.rollout_buffer, size)
                samples.append(model.estimate_gradient())
                progress(done)
    finally:
        setattr(model, model.batch_argument, own_size)
        for name, tensor in model.policy.named_buffers():
            tensor.copy_(statistics[name])
    return th.stack(samples)


@contextmanager
def _no_log(model: Any) -> Iterator[None]:
    """Without a run of its own in the log, and with the model's logger in place afterwards."""
    own = {name: value for name, value in vars(model).items() if name in _LOGGING}
    model.tensorboard_log, model.verbose = None, 0
    model.set_logger(Logger(folder=None, output_formats=[]))
    try:
        yield
    finally:
        for name in _LOGGING:
            vars(model).pop(name, None)
        vars(model).update(own)
