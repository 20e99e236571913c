"""One step of acting, as every collection needs it: finite numbers, actions within bounds, nothing validated twice."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from traceback import walk_tb
from types import CodeType
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

__all__ = [
    "ActingAlgorithm",
    "afresh_after_failure",
    "copy_of",
    "drawing_actions",
    "environment_actions",
    "has_sb3s",
    "observation_of",
    "require_finite",
    "require_observation",
    "require_observations",
    "require_step",
    "step_of",
    "takes_single_precision",
    "unvalidated_distributions",
]


class ActingAlgorithm(OnPolicyAlgorithm):
    """What every collection asks of the policy."""

    def _acting_policy(self) -> Callable[[PyTorchObs], Sequence[th.Tensor]]:
        """What maps observations to actions, values and log-probabilities during a rollout: the policy itself."""
        return self.policy

    def _values(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: ``(K, *observation shape)``
        :return: V of the current critic, ``(K,)``, constant
        """
        with th.no_grad():
            return self.policy.predict_values(observations).flatten().float()  # as SB3's buffers keep them

    def _setup_learn(self, *arguments: Any, **options: Any) -> tuple[int, BaseCallback]:
        """SB3's, which resets the environment."""
        with _afresh_after_failure(self):
            try:
                begun = super()._setup_learn(*arguments, **options)
            except _MISFITS as error:
                raise_named(error, 0)
                raise
            assert self.env is not None
            require_observations(self.env, self._last_obs, 0)
            return begun

    def _require_finite_parameters(self) -> None:
        """
        :raises ValueError: naming a parameter of the policy that is NaN or infinite
        """
        parameters = dict(self.policy.named_parameters())
        if not th.cat([p.detach().flatten() for p in parameters.values()]).isfinite().all():
            name = next(name for name, parameter in parameters.items() if not parameter.isfinite().all())
            raise ValueError(f"parameter {name} of the policy is NaN or infinite: allowed are finite numbers only")


def environment_actions(model: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """
    The policy's actions as the environment takes them: a Box's are unscaled or clipped to its bounds.

    :param model: whose policy and action space
    :param actions: ``(E, …)``
    :return: ``(E, …)``
    """
    if not isinstance(model.action_space, spaces.Box):
        return actions
    if model.policy.squash_output:
        return model.policy.unscale_action(actions)
    return np.clip(actions, model.action_space.low, model.action_space.high)


def copy_of(obs: Any) -> Any:
    """
    :param obs: an array, or a dict of arrays
    :return: a copy
    """
    return {key: np.array(value) for key, value in obs.items()} if isinstance(obs, dict) else np.array(obs)


def observation_of(obs: Any, env_index: int) -> Any:
    """
    :param obs: ``(E, *observation shape)``, or a dict of such arrays
    :param env_index: sub-environment
    :return: its observation, not batched
    """
    return {key: value[env_index] for key, value in obs.items()} if isinstance(obs, dict) else obs[env_index]


def has_sb3s(policy: th.nn.Module, *methods: str) -> bool:
    """
    :param policy: any; one that torch has compiled as a whole is of a class of torch's
    :param methods: of SB3's ActorCriticPolicy
    :return: whether it has them from there, replaced neither by its class nor in it
    """
    return isinstance(policy, ActorCriticPolicy) and not any(
        name in vars(policy) or getattr(type(policy), name) is not getattr(ActorCriticPolicy, name) for name in methods
    )


def takes_single_precision(policy: th.nn.Module) -> bool:
    """
    :param policy: any
    :return: whether it is known to make its observations single before anything else, as SB3's policies do
    """
    methods = ("forward", "evaluate_actions", "get_distribution", "predict_values", "extract_features")
    return has_sb3s(policy, *methods)


def require_finite(what: str, array: Any, n_steps: int, env_index: int | None = None) -> None:
    """
    :param what: name of the quantity, for the message
    :param array: one row per sub-environment, ``(E, …)``, or that of a single one; a dict of such arrays
    :param n_steps: vector steps since the start of the rollout, for the message
    :param env_index: sub-environment, if the array is of a single one
    :raises ValueError: naming the first sub-environment with a NaN or an infinity
    """
    if isinstance(array, dict):
        for key, value in array.items():
            require_finite(f"{what} {key!r}", value, n_steps, env_index)
        return
    if not _surely_finite(array):
        rows = np.asarray(array) if env_index is None else np.asarray(array)[np.newaxis]
        bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            e = int(np.argmax(bad))
            raise ValueError(
                f"{what}={rows[e]} of sub-environment {e if env_index is None else env_index} at vector step "
                f"{n_steps} of this rollout: allowed are finite numbers only"
            )


def _surely_finite(array: Any) -> bool:
    """The sum of squares is not finite if any entry is not, and several times cheaper than looking at each."""
    if isinstance(array, dict):
        return all(map(_surely_finite, array.values()))
    array = np.asarray(array)
    return array.dtype.kind != "f" or math.isfinite(np.vdot(array, array))


def _require_finite_of_all(what: str, array: Any, env: VecEnv, n_steps: int) -> None:
    """
    :func:`require_finite` of what an environment has returned. VecNormalize takes a NaN of one sub-environment into the
    statistics, and so gives it to all; with ``training=False`` it clips an infinity. What it was given tells.
    """
    normalizers = _normalizers(env)
    if normalizers and _surely_finite(array) and all(normalizer.training for normalizer in normalizers):
        return
    for normalizer in reversed(normalizers):
        require_finite(what, vars(normalizer).get(_GIVEN[what], np.zeros(0)), n_steps)
    require_finite(what, array, n_steps)


_GIVEN = {"observation": "old_obs", "reward": "old_reward"}
"""The attributes of VecNormalize that hold what it was given last."""


def _normalizers(env: VecEnv) -> list[VecNormalize]:
    """Those around an environment, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def require_observations(env: VecEnv, observations: Any, n_steps: int) -> None:
    """
    :param env: which they are of
    :param observations: ``(E, *observation shape)``, or a dict of such arrays
    :param n_steps: vector steps since the start of the rollout, for the message
    :raises ValueError: they have another shape, are not finite, or are no numbers of a discrete space
    """
    _require_shapes("observation", observations, env.observation_space, (env.num_envs,), f"vector step {n_steps}")
    _require_encodable("observation", observations, env.observation_space, n_steps)
    _require_finite_of_all("observation", observations, env, n_steps)


def require_observation(space: spaces.Space, observation: Any, n_steps: int, env_index: int) -> None:
    """:func:`require_observations` for the last one of an episode of a sub-environment."""
    where = f"sub-environment {env_index} at vector step {n_steps}"
    _require_shapes("terminal observation", observation, space, (), where)
    _require_encodable("terminal observation", observation, space, n_steps, env_index)
    require_finite("terminal observation", observation, n_steps, env_index)


def require_step(env: VecEnv, observations: Any, rewards: np.ndarray, n_steps: int) -> None:
    """
    :param env: the environment
    :param observations: what a step has led to, ``(E, *observation shape)``, or a dict of such arrays
    :param rewards: what it has paid, ``(E,)``
    :param n_steps: vector steps before it in the rollout, for the message
    :raises ValueError: one of them has another shape, or is not finite
    """
    if rewards.shape != (env.num_envs,):
        raise ValueError(f"shape of rewards={rewards.shape} at vector step {n_steps}: allowed is ({env.num_envs},)")
    _require_finite_of_all("reward", rewards, env, n_steps)
    require_observations(env, observations, n_steps + 1)


def _require_shapes(what: str, array: Any, space: spaces.Space, before: tuple[int, ...], where: str) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(array, dict) or array.keys() < space.spaces.keys():
            present = list(array) if isinstance(array, dict) else type(array).__name__
            raise ValueError(f"keys of {what}={present} of {where}: allowed are {list(space.spaces)}")
        for key, part in space.spaces.items():
            _require_shapes(f"{what} {key!r}", array[key], part, before, where)
        return
    if np.shape(array) != (*before, *space.shape):  # type: ignore[misc]
        allowed = (*before, *space.shape)  # type: ignore[misc]
        raise ValueError(
            f"shape of {what}={np.shape(array)} of {where}: allowed is {allowed}, as the observation space says"
        )


def _require_encodable(what: str, array: Any, space: spaces.Space, n_steps: int, env_index: int | None = None) -> None:
    """What SB3's networks take of a discrete space, wherever it starts. torch names nobody, and gives up a GPU."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _require_encodable(f"{what} {key!r}", array[key], part, n_steps, env_index)
        return
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return
    end = space.n if isinstance(space, spaces.Discrete) else space.nvec
    rows = np.asarray(array) if env_index is None else np.asarray(array)[np.newaxis]
    bad = (rows < 0) | (rows >= end)
    if bad.any():
        e = int(np.argmax(bad.reshape(len(rows), -1).any(axis=1)))
        raise ValueError(
            f"{what}={rows[e]} of sub-environment {e if env_index is None else env_index} at vector step {n_steps} "
            f"of this rollout: allowed is a whole number >= 0 and < {end}"
        )


_MISFITS = (AssertionError, IndexError, KeyError, TypeError, ValueError)
"""What numpy and the vectorised environments raise where something does not fit into their arrays."""


def step_of(env: VecEnv, actions: np.ndarray, n_steps: int) -> VecEnvStepReturn:
    """
    :param env: the environment
    :param actions: ``(E, …)``
    :param n_steps: vector steps before it in the rollout, for the message
    :return: what its ``step`` does
    :raises ValueError: a sub-environment has returned what does not fit into the arrays of all
    """
    try:
        return env.step(actions)
    except _MISFITS as error:
        raise_named(error, n_steps)
        raise


def raise_named(error: Exception, n_steps: int) -> None:
    """
    Name the sub-environment whose observation, reward or tuple was what SB3's or gymnasium's vectorised environment
    failed with. Nothing happens where it was something else that failed, such as the environment itself.

    :param error: what ``step`` or ``reset`` has raised
    :param n_steps: vector steps before it in the rollout, for the message
    :raises ValueError: from ``error``
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    while frames and frames[-1].f_globals.get("__name__", "").partition(".")[0] == "numpy":
        frames.pop()
    if not frames:
        return
    last, codes = frames[-1], {frame.f_code: frame for frame in frames}
    of_all = _putting_together()
    if last.f_code in of_all:
        for e, observation in enumerate(last.f_locals[of_all[last.f_code]]):
            space = last.f_locals["space"]
            _require_shapes("observation", observation, space, (), f"sub-environment {e} at vector step {n_steps}")
    of_dummy = next((codes[code] for code in _OF_DUMMY_VEC_ENV if code in codes), None)
    if of_dummy is None or last.f_code not in (*_OF_DUMMY_VEC_ENV, *_OF_MONITOR):
        return
    where = f"sub-environment {of_dummy.f_locals['env_idx']} at vector step {n_steps}"
    if last.f_code is DummyVecEnv._save_obs.__code__:
        observation, space = last.f_locals["obs"], last.f_locals["self"].observation_space
        _require_shapes("observation", observation, space, (), where)
        raise ValueError(f"observation={observation!r} of {where}: allowed is one of {space}. {error}") from error
    raise ValueError(
        f"what {where} has returned: allowed is (observation, reward, terminated, truncated, info) of a step, with a "
        f"number as reward, and (observation, info) of a reset. {error}"
    ) from error


_OF_DUMMY_VEC_ENV = (DummyVecEnv._save_obs.__code__, DummyVecEnv.step_wait.__code__, DummyVecEnv.reset.__code__)
_OF_MONITOR = (Monitor.step.__code__, Monitor.reset.__code__)


def _putting_together() -> dict[CodeType, str]:
    """
    What puts the observations of all sub-environments together, of SB3 and of gymnasium, and its name for them. Neither
    is public: where one is gone, an error is as it was raised.
    """
    found = {}
    with contextlib.suppress(ImportError, AttributeError):
        from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

        found[_stack_obs.__code__] = "obs_list"
    with contextlib.suppress(ImportError, AttributeError):
        from gymnasium.vector.utils import concatenate

        found[concatenate.dispatch(spaces.Box).__code__] = "items"
    return found


@contextmanager
def drawing_actions(policy: ActorCriticPolicy, observations: PyTorchObs, n_steps: int) -> Iterator[None]:
    """
    Without a graph, and :func:`unvalidated_distributions`: from probabilities that are NaN torch draws nothing, and
    does not say whose they are.

    :param policy: whose actions are drawn meanwhile
    :param observations: ``(E, *observation shape)``
    :param n_steps: vector steps since the start of the rollout, for the message
    :return: context
    :raises ValueError: naming the first sub-environment whose log-probabilities are not finite
    """
    with th.no_grad(), unvalidated_distributions():
        try:
            yield
        except RuntimeError:
            distribution = policy.get_distribution(observations)
            log_prob = distribution.log_prob(distribution.mode())
            require_finite("log-probability", log_prob.cpu().numpy(), n_steps)
            raise


Collection = TypeVar("Collection", bound=Callable[..., bool])


def afresh_after_failure(collect_rollouts: Collection) -> Collection:
    """
    After an error, or Ctrl-C, the sub-environments may be anywhere, and VecNormalize may have learnt from a NaN: the
    next training is to begin with new episodes, and with the statistics of before.

    :param collect_rollouts: of an algorithm
    :return: the same method
    """

    @wraps(collect_rollouts)
    def collect(model: OnPolicyAlgorithm, *arguments: Any, **options: Any) -> bool:
        with _afresh_after_failure(model):
            return collect_rollouts(model, *arguments, **options)

    return collect  # type: ignore[return-value]


@contextmanager
def _afresh_after_failure(model: OnPolicyAlgorithm) -> Iterator[None]:
    assert model.env is not None
    statistics = [rms for normalizer in _normalizers(model.env) for rms in _statistics(normalizer)]
    before = [dict(vars(rms)) for rms in statistics]
    try:
        yield
    except BaseException:
        model._last_obs = None
        for rms, numbers in zip(statistics, before, strict=True):
            vars(rms).update(numbers)
        raise


def _statistics(normalizer: VecNormalize) -> list[RunningMeanStd]:
    of_observations: Any = normalizer.obs_rms if normalizer.norm_obs else {}
    return [
        normalizer.ret_rms,
        *(of_observations.values() if isinstance(of_observations, dict) else [of_observations]),
    ]


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Without torch's validation of distribution arguments: a fifth of the time of acting, and a synchronisation."""
    validate = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(validate)
