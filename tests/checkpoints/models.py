"""Small models of each algorithm, and whether two are the same to the bit."""

from operator import attrgetter

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO

SMALL = {
    REINFORCE: {"n_episodes": 4},
    VPG: {"n_steps": 64, "batch_size": 32},
    NPG: {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2},
    ClippedCriticPPO: {
        "n_steps": 64,
        "batch_size": 32,
        "n_epochs": 2,
        "surrogate": "adaptive_kl",
        "kl_target": 1e-4,
    },
    ISPG: {"n_episodes": 4, "n_gradient_steps": 2, "replay_batches": 2, "min_ess": 0.0},
}


def small(algorithm, env_id="CartPole-v1", n_envs=2, normalize=False, env_kwargs=None, **arguments):
    """A model whose learning rate changes with the progress; episodes of whole-episode collection are short."""
    env = make_vec_env(env_id, n_envs, seed=3, env_kwargs=env_kwargs)
    env = VecNormalize(env) if normalize else env
    if issubclass(algorithm, REINFORCE):
        arguments = {"max_episode_steps": 40, **arguments}
    arguments = {**SMALL[algorithm], **arguments}
    policy_kwargs = {"net_arch": [16], **arguments.pop("policy_kwargs", {})}
    schedule = LinearSchedule(3e-3, 1e-3, 1.0)  # also the last update moves the parameters
    return algorithm(
        "MlpPolicy", env, learning_rate=schedule, seed=1, device="cpu", policy_kwargs=policy_kwargs, **arguments
    )


def assert_same(model, other):
    """Parameters, optimizer, counters, statistics of the normalisation, last observations and the next actions."""
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, other.policy.state_dict()[name]), name
    ours, theirs = (m.policy.optimizer.state_dict() for m in (model, other))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in ours["state"].items():
        for name, value in state.items():
            assert th.equal(value, theirs["state"][key][name]), name
    for name in ("num_timesteps", "_n_updates", "_total_timesteps", "_current_progress_remaining", "kl_coef"):
        assert getattr(model, name, None) == getattr(other, name, None), name
    normalizers = [m.get_vec_normalize_env() for m in (model, other)]
    if normalizers != [None, None]:
        for name in ("obs_rms.mean", "obs_rms.var", "obs_rms.count", "ret_rms.mean", "ret_rms.var", "returns"):
            ours, theirs = map(attrgetter(name), normalizers)
            assert np.array_equal(ours, theirs), name
    returns = [[info["r"] for info in m.ep_info_buffer] for m in (model, other)]
    assert returns[0] == returns[1]
    _assert_equal(model._last_obs, other._last_obs)
    assert np.array_equal(_next_actions(model), _next_actions(other))


def _assert_equal(array, other):
    if isinstance(array, dict):
        assert list(array) == list(other)
        for key, part in array.items():
            _assert_equal(part, other[key])
    else:
        assert np.array_equal(array, other)


def _next_actions(model):
    with th.random.fork_rng():
        th.manual_seed(0)
        return model.predict(model._last_obs)[0]
