"""Fixed-length collection from environments that speak tensors: no array, and no object for each sub-environment."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch.func import functional_call

from sb3_pgext.arguments import require
from sb3_pgext.rollouts.acting import explain, renew_noise
from sb3_pgext.rollouts.buffers import DictStepBuffer, StepBuffer
from sb3_pgext.rollouts.checks import require_finite
from sb3_pgext.rollouts.steps import StepCollector
from sb3_pgext.vec_envs import tensors
from sb3_pgext.vec_envs.observations import each
from sb3_pgext.vec_envs.tensors import NumpySide, StepInfos, TensorStep, TensorVecEnv
from sb3_pgext.vec_envs.torch_envs import TorchEnv

__all__ = ["Fetched", "TensorCollector", "speaks_tensors"]


class Cuts(NamedTuple):
    """
    The K steps of a rollout in which a time limit cut an episode.

    :param time: vector steps, ``(K,)``
    :param env_index: sub-environments, ``(K,)``
    :param observations: what followed, ``(K, *observation shape)``
    :param values: V of it, which the buffer's rewards have γ times in them, ``(K,)``
    """

    time: th.Tensor
    env_index: th.Tensor
    observations: PyTorchObs
    values: th.Tensor


class Played(NamedTuple):
    """
    The part of a vector step that is kept until the rollout ends.

    :param ended: where an episode has, ``(E,)``, bool
    :param returns: sums of rewards, ``(E,)``
    :param lengths: numbers of steps, ``(E,)``
    :param finite: where all numbers are, ``(E,)``, bool; None where that has been looked at
    :param cut: where a time limit has cut an episode, ``(E,)``, bool
    :param final_observations: of those, or of all, ``(…, *observation shape)``
    """

    ended: th.Tensor
    returns: th.Tensor
    lengths: th.Tensor
    finite: th.Tensor | None
    cut: th.Tensor
    final_observations: PyTorchObs


class Fetched:
    """
    A tensor on a GPU, which becomes an array, after a synchronisation, where a callback looks at it.

    :param tensor: it
    """

    def __init__(self, tensor: th.Tensor):
        self.tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor.numpy(force=True), dtype=dtype)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]


def speaks_tensors(env: VecEnv) -> bool:
    """True for a TensorVecEnv, alone or in a TensorVecNormalize."""
    return isinstance(env, NumpySide)


class TensorCollector(StepCollector):
    """
    :class:`~sb3_pgext.rollouts.StepCollector` for environments that speak tensors.

    A callback finds in its ``locals`` what it finds in SB3: on the CPU arrays that share the memory of the tensors, on
    a GPU :class:`Fetched`. There the columns of the rollout buffer are tensors, and what needs to know a number waits
    for the end of the rollout: the checks, the log of the episodes, the statistics that TensorVecNormalize shows.

    Time limits are bootstrapped with the values of all final observations of the rollout at once.
    """

    cuts: Cuts

    def _begin(self, model: Any, env: Any) -> None:
        of_model = model.policy.device  # with the number of the GPU
        require(env.device == of_model, "device of env", str(env.device), f"{str(of_model)!r}, that of the model")
        if not tensors.at_hand(env.device):
            buffer, kinds = model.rollout_buffer, (StepBuffer, DictStepBuffer)
            allowed = f"None or a subclass of {' or '.join(kind.__name__ for kind in kinds)} with {env.device}"
            require(isinstance(buffer, kinds), "rollout_buffer_class", type(buffer).__name__, allowed)
            buffer.to_device(env.device)

    def _play(self, model: Any, env: Any, callback: BaseCallback, rollout_buffer: Any, seen: dict[str, Any]) -> bool:
        play, base, at_hand = _player(model, env), env.base, tensors.at_hand(env.device)
        observations, starts = obs_as_tensor(model._last_obs, env.device), th.as_tensor(model._last_episode_starts)
        starts = starts.to(env.device)
        played: list[Played] = []
        for n_steps in range(seen["n_rollout_steps"]):
            renew_noise(model, n_steps)
            acted = play(observations if at_hand else each(_drawable, observations), n_steps)
            actions, values, log_probs, clipped, step = acted
            model.num_timesteps += env.num_envs
            if at_hand:
                _require_finite(actions, base.last_step, n_steps)
            played.append(_played(base, step, actions, at_hand))
            seen.update(n_steps=n_steps, obs_tensor=observations, values=values, log_probs=log_probs)
            seen.update(actions=_shown(actions), clipped_actions=_shown(clipped), rewards=_shown(step.rewards))
            seen.update(new_obs=each(_shown, step.observations), dones=_shown(base.ended), infos=StepInfos(base, step))
            callback.update_locals(seen)
            goes_on = callback.on_step()
            if goes_on:
                columns = (each(_stored, observations), *map(_stored, (actions, step.rewards, starts)))
                rollout_buffer.add(*columns, values.float(), log_probs.float())
            # A copy, as the environment may write its next observations into the same memory.
            observations, starts = each(th.clone, step.observations), base.ended
            if not goes_on:
                break
        if not at_hand:
            _require_all_finite(played)
            env.hand_over()
        model._last_obs = each(lambda x: x.numpy(force=True).copy(), observations)
        model._last_episode_starts = starts.numpy(force=True)
        _log_episodes(model, base, played)
        if goes_on:
            self._bootstrap(model, rollout_buffer, played, at_hand)
        return goes_on

    def _bootstrap(self, model: Any, rollout_buffer: RolloutBuffer, played: list[Played], at_hand: bool) -> None:
        """Add γV(s_T) to the rewards of the steps that a time limit cut."""
        cut = th.stack([step.cut for step in played])
        time, env_index = cut.nonzero(as_tuple=True)
        together = each(lambda *parts: th.cat(parts), *(step.final_observations for step in played))
        observations = together if at_hand else each(lambda x: x[cut.flatten()], together)
        values = model._values(observations) if len(time) else th.zeros(0, device=cut.device)
        self.cuts = Cuts(time, env_index, observations, values)
        th.as_tensor(rollout_buffer.rewards)[time, env_index] += model.gamma * values
        good = values.isfinite()
        if not good.all():
            t, e = (int(x[~good][0]) for x in (time, env_index))
            where = f"sub-environment {e} at vector step {t} of this rollout"
            raise ValueError(f"V of the terminal observation of {where} is not finite: allowed are finite numbers only")

    def recomputed_advantages(self, model: Any, rollout_buffer: RolloutBuffer, values: th.Tensor) -> th.Tensor:
        """See :meth:`~sb3_pgext.rollouts.StepCollector.recomputed_advantages`."""
        time, env_index, observations, old_values = self.cuts
        rewards = th.as_tensor(rollout_buffer.rewards)
        before = rewards.clone()
        if len(time):
            rewards[time, env_index] += model.gamma * (model._values(observations) - old_values)
        advantages = super().recomputed_advantages(model, rollout_buffer, values)
        rewards.copy_(before)
        return advantages


def _stored(x: th.Tensor) -> Any:
    return x.numpy() if tensors.at_hand(x.device) else x


def _shown(x: th.Tensor) -> Any:
    return x.numpy() if tensors.at_hand(x.device) else Fetched(x)


def _drawable(x: th.Tensor) -> th.Tensor:
    """Without what is not finite, which is told later: a distribution of NaN gives up the GPU."""
    return th.nan_to_num(x, 0.0, 0.0, 0.0) if x.is_floating_point() else x


def _player(model: Any, env: Any) -> Callable[[PyTorchObs, int], tuple[Any, ...]]:
    """
    Acting and stepping, in one graph where both are functions that can be compiled.

    :param model: with an actor-critic policy
    :param env: speaks tensors
    :return: observations and the vector steps before → actions, values, log-probabilities, the actions as the
        environment takes them, and the step
    """
    act, space, torch_env = model.engine.acting(), model.action_space, env.base.env
    box = isinstance(space, spaces.Box)
    bounds = [th.as_tensor(x, device=env.device) for x in (space.low, space.high)] if box else []

    def drawn(observations: PyTorchObs, bounds: list[th.Tensor], act: Callable[..., Any]) -> tuple[Any, ...]:
        actions, values, log_probs = act(observations)
        actions = clipped = actions.reshape(-1, *space.shape)
        if bounds:
            low, high = bounds
            squashed = model.policy.squash_output
            clipped = low + 0.5 * (actions + 1.0) * (high - low) if squashed else actions.clamp(low, high)
        return actions, values, log_probs, clipped

    def stepped(step: Callable[[Any], TensorStep], x: Any, n_steps: int) -> TensorStep:
        try:
            return step(x)
        except Exception as error:
            explain(error, env, f"at vector step {n_steps} of this rollout")
            raise

    def separately(observations: PyTorchObs, n_steps: int) -> tuple[Any, ...]:
        acted = drawn(observations, bounds, act)
        return *acted, stepped(env.step_tensors, acted[-1], n_steps)

    if env is not env.base or not isinstance(torch_env, TorchEnv) or type(torch_env).step is not TorchEnv.step:
        return separately

    def together(given: Any, act: Callable[..., Any]) -> tuple[Any, ...]:
        observations, bounds, buffers, state, time, uniform = given
        acted = drawn(observations, bounds, act)
        return *acted, *functional_call(torch_env, buffers, (state, time, acted[-1], uniform))

    in_one = model.engine.acting(True, partial(together, act=model.policy), torch_env, partial(together, act=act))
    buffers = dict(torch_env.named_buffers())

    def in_one_graph(observations: PyTorchObs, n_steps: int) -> tuple[Any, ...]:
        given = observations, bounds, buffers, torch_env.state, torch_env.time, torch_env.uniform()
        *acted, torch_env.state, torch_env.time, step = in_one(given)
        return *acted, stepped(env.stepped, step, n_steps)

    return in_one_graph


def _played(env: TensorVecEnv, step: TensorStep, actions: th.Tensor, at_hand: bool) -> Played:
    cut, finite, final = step.truncated & ~step.terminated, None, step.final_observations
    if at_hand:
        rows = cut.nonzero().squeeze(1)
        final = each(lambda x: x[rows], final)
    else:  # clones: the environment may write into the same memory again
        final, observations = each(th.clone, final), env.last_step.observations
        numbers = [*observations.values()] if isinstance(observations, dict) else [observations]
        numbers += [env.last_step.rewards, actions]
        finite = th.stack([x.reshape(env.num_envs, -1).isfinite().all(1) for x in numbers]).all(0)
    return Played(env.ended, env.returns, env.lengths, finite, cut, final)


def _require_finite(actions: th.Tensor, step: TensorStep, n_steps: int) -> None:
    """
    :param actions: of the policy
    :param step: of the environment, without wrappers
    :param n_steps: vector steps before
    :raises ValueError: naming the first sub-environment with a number that is not finite
    """
    require_finite("action", actions.numpy(), n_steps)
    require_finite("reward", step.rewards.numpy(), n_steps)
    require_finite("observation", each(lambda x: x.numpy(), step.observations), n_steps + 1)


def _require_all_finite(played: list[Played]) -> None:
    """The same at the end of the rollout."""
    finite = th.stack([step.finite for step in played if step.finite is not None])
    if not finite.all():
        t, e = (~finite).nonzero()[0].tolist()
        where = f"sub-environment {e} at vector step {t} of this rollout"
        raise ValueError(f"action, reward or observation of {where} is not finite: allowed are finite numbers only")


def _log_episodes(model: Any, env: TensorVecEnv, played: list[Played]) -> None:
    """Show SB3's log the episodes that have ended: as many of the last ones as it looks at."""
    ended, returns, lengths = (th.stack(column) for column in list(zip(*played, strict=True))[:3])
    columns = (x[ended][-model.ep_info_buffer.maxlen :].tolist() for x in (returns, lengths))
    seconds = env.seconds
    model.ep_info_buffer.extend({"r": r, "l": length, "t": seconds} for r, length in zip(*columns, strict=True))
