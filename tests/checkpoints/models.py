"""Small models of each algorithm, and whether two are the same to the bit."""

from operator import attrgetter

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO, SearchGradient

SMALL = {
    REINFORCE: {"n_episodes": 4},
    VPG: {"n_steps": 64, "batch_size": 32, "learning_rate_kl_target": 1e-9},
    NPG: {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2},
    ClippedCriticPPO: {
        "n_steps": 64,
        "batch_size": 32,
        "n_epochs": 2,
        "surrogate": "adaptive_kl",
        "desired_kl": 1e-4,
    },
    ISPG: {"n_episodes": 4, "gradient_steps": 2, "replay_batches": 2, "min_ess": 0.0},
    SearchGradient: {"n_directions": 3, "zero_policy": False},
}


def small(algorithm, env_id="CartPole-v1", n_envs=2, normalize=False, env_kwargs=None, **arguments):
    """A model whose learning rate changes with the progress; episodes of whole-episode collection are short."""
    if algorithm is SearchGradient:
        env_kwargs = {"max_episode_steps": 25, **(env_kwargs or {})}
    env = make_vec_env(env_id, n_envs, seed=3, env_kwargs=env_kwargs)
    env = VecNormalize(env) if normalize else env
    if issubclass(algorithm, (REINFORCE, ISPG)):
        arguments = {"max_episode_steps": 40, **arguments}
    arguments = {**SMALL[algorithm], **arguments}
    policy_kwargs = {"net_arch": [16], **arguments.pop("policy_kwargs", {})}
    schedule = LinearSchedule(3e-3, 1e-3, 1.0)  # also the last update moves the parameters
    return algorithm(
        "MlpPolicy", env, learning_rate=schedule, seed=1, device="cpu", policy_kwargs=policy_kwargs, **arguments
    )


_COUNTERS = (
    *("num_timesteps", "_n_updates", "_total_timesteps", "_current_progress_remaining", "_episode_num", "kl_coef"),
    "learning_rate_factor",
    *("_last_obs", "_last_original_obs", "_last_episode_starts"),
)
_REPLAY = ("pos", "full", "observations", "next_observations", "actions", "rewards", "dones", "timeouts", "log_probs")


def assert_same(model, other):
    """Parameters, optimizers, replay, counters, statistics of the normalisation, last observations, next actions."""
    names, variables = model._get_torch_save_params()
    for name in (*names, *variables):
        ours, theirs = (attrgetter(name)(m) for m in (model, other))
        _assert_equal(*((ours, theirs) if name in variables else (ours.state_dict(), theirs.state_dict())), name)
    for name in _COUNTERS:
        _assert_equal(getattr(model, name, None), getattr(other, name, None), name)
    replays = [getattr(m, "replay_buffer", None) for m in (model, other)]
    assert type(replays[0]) is type(replays[1])
    for name in _REPLAY:
        _assert_equal(*(getattr(replay, name, None) for replay in replays), name)
    normalizers = [m.get_vec_normalize_env() for m in (model, other)]
    if normalizers != [None, None]:
        for name in ("obs_rms.mean", "obs_rms.var", "obs_rms.count", "ret_rms.mean", "ret_rms.var", "returns"):
            _assert_equal(*map(attrgetter(name), normalizers), name)
    returns = [[info["r"] for info in m.ep_info_buffer] for m in (model, other)]
    assert returns[0] == returns[1]
    _assert_equal(_next_actions(model), _next_actions(other), "next actions")


def _assert_equal(ours, theirs, name):
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), name
        for key, part in ours.items():
            _assert_equal(part, theirs[key], f"{name}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), name
        for one, other in zip(ours, theirs, strict=True):
            _assert_equal(one, other, name)
    else:
        same = th.equal if isinstance(ours, th.Tensor) else np.array_equal
        assert same(ours, theirs), name


def _next_actions(model):
    with th.random.fork_rng():
        th.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        return model.predict(model._last_obs)[0]
