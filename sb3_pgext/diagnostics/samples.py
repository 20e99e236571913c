"""Samples of the gradient that an algorithm would step along."""

from collections.abc import Callable

import torch as th

from sb3_pgext.algorithms import REINFORCE

__all__ = ["gradient_samples"]


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
    try:
        model.n_episodes = own_n_episodes if n_episodes is None else n_episodes
        model._check_arguments()
        _, callback = model._setup_learn(model.num_timesteps, reset_num_timesteps=False)
        assert model.env is not None
        samples = []
        for done in range(1, n_batches + 1):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_episodes)
            samples.append(model.estimate_gradient())
            progress(done)
    finally:
        model.n_episodes = own_n_episodes
    return th.stack(samples)
