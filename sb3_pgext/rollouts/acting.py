"""One vector step, as every collection takes it: actions of the policy, and the checked answer of the environment."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_pgext.rollouts.checks import first_not_finite, normalizers_of, require_finite, step_check, surely_finite

__all__ = [
    "Act",
    "Actions",
    "checked_steps",
    "copied",
    "copy_statistics",
    "draw_actions",
    "explain",
    "fresh_after_failure",
    "renew_noise",
    "require_finite_parameters",
    "statistics_of",
    "statistics_of_env",
    "unvalidated_distributions",
]

Act = Callable[[PyTorchObs], Sequence[Any]]
"""Observations → actions, values and log-probabilities, as the policy's ``forward``."""


class Actions(NamedTuple):
    """
    The actions of one vector step.

    :param obs: what they answer to, in the space's dtype, ``(E, *observation shape)`` or a dict of such arrays; a copy,
        as the environment may write its next observations into the same memory
    :param observations: the same as tensors on the policy's device
    :param tensor: as the policy drew them, ``(E, *action shape)``
    :param values: V, ``(E, 1)``; None where only actions were asked for
    :param log_probs: log π, ``(E,)``, or None likewise
    :param drawn: ``tensor`` as an array
    :param clipped: as the environment takes them: unscaled, or clipped to the bounds of a Box
    """

    obs: Any
    observations: PyTorchObs
    tensor: th.Tensor
    values: Any
    log_probs: Any
    drawn: np.ndarray
    clipped: np.ndarray


def draw_actions(model: Any, act: Act, n_steps: int, last_obs: Any = None) -> Actions:
    """
    Let the policy act.

    :param model: an SB3 algorithm with an actor-critic policy
    :param act: the policy's ``forward``, compiled or not
    :param n_steps: vector steps since the start of the rollout
    :param last_obs: what it acts on; None for the model's last observations
    :return: the actions
    :raises ValueError: naming the first sub-environment whose log-probabilities or actions are not finite
    """
    renew_noise(model, n_steps)
    obs = copied(model, model._last_obs if last_obs is None else last_obs)
    observations = obs_as_tensor(obs, model.device)
    try:
        tensor, values, log_probs = act(observations)
    except RuntimeError:  # from probabilities that are NaN torch draws nothing, and does not say whose they are
        if not hasattr(model.policy, "get_distribution"):
            raise
        with th.no_grad(), unvalidated_distributions():
            distribution = model.policy.get_distribution(observations)
            log_prob = distribution.log_prob(distribution.mode())
        require_finite("log-probability", log_prob.cpu().numpy(), n_steps)
        raise
    tensor = tensor.reshape(-1, *model.action_space.shape)
    drawn = tensor.cpu().numpy()
    if not surely_finite(drawn):
        require_finite("action", drawn, n_steps)
    return Actions(obs, observations, tensor, values, log_probs, drawn, _environment_actions(model, drawn))


def renew_noise(model: Any, n_steps: int) -> None:
    """
    Sample gSDE's noise anew, where it is time.

    :param model: an SB3 algorithm with an actor-critic policy
    :param n_steps: vector steps since the start of the rollout
    """
    if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
        model.policy.reset_noise(model.n_envs)


def copied(model: Any, observations: Any) -> Any:
    """
    A copy of observations in the dtype of their space, which an environment need not keep to.

    :param model: whose environment they come from
    :param observations: ``(E, *observation shape)``, or a dict of such arrays
    :return: the copy
    """
    normalized = model.get_vec_normalize_env() is not None  # whole numbers become others, in a space that stays

    def copy(array: Any, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: copy(array[key], part) for key, part in space.spaces.items()}
        array, dtype = np.array(array), np.dtype(space.dtype)
        return array if normalized and dtype.kind != "f" else array.astype(dtype, copy=False)

    return copy(observations, model.observation_space)


def _environment_actions(model: Any, actions: np.ndarray) -> np.ndarray:
    if not isinstance(model.action_space, spaces.Box):
        return actions
    if model.policy.squash_output:
        return model.policy.unscale_action(actions)
    return np.clip(actions, model.action_space.low, model.action_space.high)


def checked_steps(model: Any, env: VecEnv) -> Callable[[np.ndarray, int], VecEnvStepReturn]:
    """
    The steps of a rollout, whose results are looked at before anybody else does: who saves on a step must not save what
    a NaN has spoilt.

    :param model: counts the steps
    :param env: the environment
    :return: a function of actions, ``(E, …)``, and of the vector steps before: observations, rewards, dones as booleans
        whatever they came as, infos. It raises what :func:`~sb3_pgext.rollouts.checks.step_check` does. Whatever else
        the environment raises goes through, with a note of the step (Python 3.11 or newer)
    """
    check = step_check(env)

    def step(actions: np.ndarray, n_steps: int) -> VecEnvStepReturn:
        try:
            observations, rewards, dones, infos = env.step(actions)
        except Exception as error:
            explain(error, env, f"at vector step {n_steps} of this rollout")
            raise
        model.num_timesteps += env.num_envs
        check(observations, rewards, n_steps)
        return observations, rewards, np.asarray(dones, dtype=bool), infos

    return step


def explain(error: Exception, env: VecEnv, when: str) -> None:
    """
    Say when an environment raised an error.

    :param error: gets a note
    :param env: the environment
    :param when: the time, in words
    :raises ValueError: the error is a VecEnv's that looks for a key of a Dict observation in vain
    """
    keys = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {}
    if isinstance(error, KeyError) and error.args and error.args[0] in keys:
        missing = f"keys of observation: {error.args[0]!r} is missing {when}"
        raise ValueError(f"{missing}: allowed are {list(keys)}") from error
    if hasattr(error, "add_note"):
        error.add_note(f"(raised by the environment {when})")


def require_finite_parameters(policy: th.nn.Module) -> None:
    """
    Require that all parameters are finite.

    :param policy: a network
    :raises ValueError: naming a parameter that is NaN or infinite
    """
    name = first_not_finite(dict(policy.named_parameters()))
    if name is not None:
        raise ValueError(f"parameter {name} of the policy is NaN or infinite: allowed are finite numbers only")


@contextmanager
def fresh_after_failure(model: BaseAlgorithm) -> Iterator[None]:
    """
    Begin with new episodes, and with the statistics of before, after an error or Ctrl-C within this context.

    The sub-environments may be anywhere then, and VecNormalize may have learnt from a NaN.

    :param model: with an environment
    """
    assert model.env is not None
    statistics = statistics_of_env(model.env)
    before = [dict(vars(rms)) for rms in statistics]
    try:
        yield
    except BaseException:
        model._last_obs = None
        for rms, numbers in zip(statistics, before, strict=True):
            vars(rms).update(numbers)
        raise


def statistics_of_env(env: VecEnv) -> list[RunningMeanStd]:
    """:func:`statistics_of` each VecNormalize around an environment, the outermost first."""
    return [rms for normalizer in normalizers_of(env) for rms in statistics_of(normalizer)]


def copy_statistics(statistics: Sequence[RunningMeanStd], into: Sequence[RunningMeanStd]) -> None:
    """
    Copy statistics.

    :param statistics: these
    :param into: as many, which have the same numbers afterwards, in memory of their own
    """
    for one, other in zip(statistics, into, strict=True):
        vars(other).update(vars(one.copy()))


def statistics_of(normalizer: VecNormalize) -> list[RunningMeanStd]:
    """The statistics of returns and of observations, those of Dict observations in the order of their keys."""
    of_observations: Any = normalizer.obs_rms if normalizer.norm_obs else {}
    of_keys = of_observations if isinstance(of_observations, dict) else {None: of_observations}
    return [normalizer.ret_rms, *of_keys.values()]


class _Unvalidated:
    """torch's switch, which belongs to the process: the last thread that leaves puts back what the first one found."""

    def __init__(self) -> None:
        self.lock, self.n_inside, self.default = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self.lock:
            if self.n_inside == 0:
                self.default = th.distributions.Distribution._validate_args
                th.distributions.Distribution.set_default_validate_args(False)
            self.n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.n_inside -= 1
            if self.n_inside == 0:
                th.distributions.Distribution.set_default_validate_args(self.default)


_unvalidated = _Unvalidated()


def unvalidated_distributions() -> _Unvalidated:
    """Leave out torch's validation of distribution arguments: a fifth of the time of acting, and a synchronisation."""
    return _unvalidated
