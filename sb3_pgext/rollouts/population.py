"""Populations: each member plays whole episodes with parameters of its own, and all of them act at once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.vec_env.async_eval import AsyncEval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.func import functional_call, vmap

from sb3_pgext.arguments import require
from sb3_pgext.rollouts.acting import checked_steps, draw_actions
from sb3_pgext.rollouts.checks import require_observations
from sb3_pgext.rollouts.episodes import EpisodeSchedule, begin_episodes
from sb3_pgext.vec_envs.observations import each

__all__ = ["Members", "Played", "act_together", "play_elsewhere", "play_together", "seen_since"]

Members = dict[str, th.Tensor]
"""Parameters of a policy by name, those of all members stacked: ``(K, *shape)`` each."""


class Played(NamedTuple):
    """
    The episodes of a population.

    :param returns: mean over its episodes of each member's sum of rewards, as they were before VecNormalize, ``(K,)``
    :param lengths: the mean of their lengths, ``(K,)``
    """

    returns: np.ndarray
    lengths: np.ndarray


def act_together(policy: th.nn.Module, observations: PyTorchObs, members: Members) -> th.Tensor:
    """
    Actions of many policies in one forward pass.

    :param policy: their network
    :param observations: one for each member, ``(E, *observation shape)``
    :param members: their parameters, ``(E, *shape)`` each; what is not among them all have in common
    :return: the actions, ``(E, *action shape)``
    """

    def of_member(parameters: Members, observation: PyTorchObs) -> th.Tensor:
        one_row = each(lambda x: x.unsqueeze(0), observation)
        return functional_call(policy, parameters, (one_row,)).squeeze(0)

    return vmap(of_member)(members, observations)


def play_together(
    model: Any, callback: BaseCallback, act: Callable[[Any], Sequence[Any]], members: Members, n_eval_episodes: int
) -> Played | None:
    """
    Let all members play at once, one in each sub-environment.

    With E sub-environments and K members, sub-environment e plays the members e, e + E, e + 2E, … (modulo K), one after
    the other, until each has played its episodes: nothing depends on which episode ends first. A sub-environment that
    is done steps on until all are; these steps count in ``num_timesteps``, and nothing is learnt from them.

    :param model: an SB3 algorithm with an environment
    :param callback: called at each vector step
    :param act: :func:`act_together` of the model's policy, compiled or not, as a function of a tuple
    :param members: K
    :param n_eval_episodes: whole episodes of each member
    :return: their episodes; None if the callback ended the training
    :raises ValueError: an observation, an action or a reward is not finite; the message names who was playing
    """
    env, normalizer = model.env, model._vec_normalize_env
    n_envs, n_members = env.num_envs, len(next(iter(members.values())))
    begin_episodes(model, env)
    require_observations(env, model._last_obs, 0)
    schedule = EpisodeSchedule(n_members * n_eval_episodes, n_envs)
    episode = np.arange(n_envs)  # the number of the one that each sub-environment plays
    so_far = np.zeros((2, n_envs))  # its rewards, and its steps
    totals = np.zeros((2, n_members))
    playing, rows = episode % n_members, _of(members, episode % n_members)
    seen = {"self": model, "env": env, "callback": callback}
    step, n_steps = checked_steps(model, env), 0
    while not schedule.complete:
        try:
            actions = draw_actions(model, partial(_draw, act, rows), n_steps)
            new_obs, rewards, dones, infos = step(actions.clipped, n_steps)
        except ValueError as error:
            raise ValueError(f"{error}. The sub-environments play members {playing.tolist()}") from error
        seen.update(n_steps=n_steps, obs_tensor=actions.observations, actions=actions.drawn, members=playing)
        seen.update(clipped_actions=actions.clipped, new_obs=new_obs, rewards=rewards, dones=dones, infos=infos)
        callback.update_locals(seen)
        if not callback.on_step():
            return None

        so_far[0] += rewards if normalizer is None else normalizer.get_original_reward()
        so_far[1] += 1
        ended, _ = schedule.step(dones)
        n_steps += 1
        model._last_obs = new_obs
        if ended.any():
            for e in np.flatnonzero(ended):
                totals[:, playing[e]] += so_far[:, e]
            so_far[:, ended] = 0.0
            episode[ended] += n_envs
            if not np.array_equal(playing, episode % n_members):
                playing, rows = episode % n_members, _of(members, episode % n_members)
            model._update_info_buffer([infos[e] for e in np.flatnonzero(ended)], ended[ended])
    model._last_episode_starts = dones
    model.logger.record("rollout/idle_fraction", 1 - totals[1].sum() / (n_steps * n_envs))
    return Played(*(totals / n_eval_episodes))


def _of(members: Members, chosen: np.ndarray) -> Members:
    return {name: stacked[chosen] for name, stacked in members.items()}


def _draw(act: Callable[[Any], Sequence[Any]], members: Members, observations: PyTorchObs) -> tuple[Any, None, None]:
    return act((observations, members))[0], None, None


def play_elsewhere(
    model: Any, callback: BaseCallback, async_eval: AsyncEval, vectors: th.Tensor, n_eval_episodes: int
) -> Played | None:
    """
    Let the members play in the processes of sb3-contrib's ``AsyncEval``.

    The statistics of a VecNormalize are the model's when the episodes begin; what the processes have seen since is
    added to them, once. Callbacks are called afterwards, as often as each process has taken steps.

    :param model: an SB3 algorithm
    :param callback: see above
    :param async_eval: made for ``n_eval_episodes``, with environments in a VecNormalize if the model's is in one
    :param vectors: all parameters of each member, ``(K, P)``
    :param n_eval_episodes: whole episodes of each member
    :return: their episodes; None if the callback ended the training
    :raises ValueError: ``async_eval`` plays another number of episodes, or does not normalise as the model does
    """
    normalizer = model._vec_normalize_env
    normalizes = normalizer is not None and normalizer.norm_obs
    if normalizes:
        unlike = None in async_eval.get_obs_rms()
        require(not unlike, "async_eval", async_eval, "one whose environments are in a VecNormalize, as the model's")
        async_eval.sync_obs_rms(normalizer.obs_rms.copy())
    async_eval.send_jobs(vectors, len(vectors))
    played = Played(np.zeros(len(vectors)), np.zeros(len(vectors)))
    n_steps = 0
    for member, (returns, lengths) in async_eval.get_results():
        allowed = f"{n_eval_episodes}, the model's"
        require(len(returns) == n_eval_episodes, "n_eval_episodes of async_eval", len(returns), allowed)
        played.returns[member], played.lengths[member] = np.mean(returns), np.mean(lengths)
        infos = [{"episode": {"r": r, "l": n}} for r, n in zip(returns, lengths, strict=True)]
        model._update_info_buffer(infos)
        n_steps += int(np.sum(lengths))
    if normalizes:
        before = normalizer.obs_rms.copy()
        for theirs in async_eval.get_obs_rms():
            mean, variance, count = seen_since(before, theirs)
            if count > 0:
                normalizer.obs_rms.update_from_moments(mean, variance, count)

    n_workers = len(async_eval.remotes)
    for taken in range(0, n_steps, n_workers):
        model.num_timesteps += min(n_workers, n_steps - taken)
        if not callback.on_step():
            return None
    return played


def seen_since(before: RunningMeanStd, after: RunningMeanStd) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Take apart what statistics have seen before and since (Chan et al. 1983, reversed).

    :param before: the statistics before
    :param after: those that went on from them
    :return: mean and variance of the rows in between, and their number
    """
    count = after.count - before.count
    if count <= 0:
        return np.zeros_like(after.mean), np.zeros_like(after.mean), 0.0
    mean = (after.mean * after.count - before.mean * before.count) / count
    squares = after.var * after.count - before.var * before.count
    squares -= (mean - before.mean) ** 2 * before.count * count / after.count
    return mean, np.maximum(squares, 0.0) / count, count
