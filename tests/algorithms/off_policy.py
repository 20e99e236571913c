"""Small off-policy models, and whether two are the same to the bit."""

from copy import deepcopy

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import OffPolicyActorCritic
from tests.environments import ACTIONS, VECTOR, RewardsAndLimits

SETTINGS = {"buffer_size": 500, "learning_starts": 20, "batch_size": 16, "seed": 0, "device": "cpu"}


def small(algorithm, env="Pendulum-v1", policy="MlpPolicy", **arguments):
    """A model that is quick to train; some environments of an id are made with a seed."""
    env = make_vec_env(env, 1, seed=0) if isinstance(env, str) else env
    policy_kwargs = {"net_arch": [16], **arguments.pop("policy_kwargs", {})}
    return algorithm(policy, env, **{**SETTINGS, **arguments}, policy_kwargs=policy_kwargs)


def on_actions(action, n_envs=1, observation=VECTOR, algorithm=OffPolicyActorCritic, **arguments):
    """A model on an environment with one of the action spaces, whose rewards vary."""
    space = ACTIONS[action] if isinstance(action, str) else action
    env = make_vec_env(lambda: RewardsAndLimits(deepcopy(observation), deepcopy(space)), n_envs, seed=0)
    return small(algorithm, env, **arguments)


def vector_of(model):
    """All parameters, those of the targets too."""
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


def numbers_of(model):
    """What is trained, by name: networks with their statistics, optimizers, temperature."""
    numbers = dict(model.policy.state_dict())
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "alpha": model.ent_coef_optimizer}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()["state"] if optimizer else {}
        numbers |= {f"{name} {i} {key}": th.as_tensor(x) for i, part in state.items() for key, x in part.items()}
    alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef
    return {name: x.detach().clone() for name, x in (numbers | {"alpha": alpha}).items()}


def assert_equal(model, other, but=()):
    """Networks, optimizers, temperature, replay, counters and log."""
    ours, theirs = numbers_of(model), numbers_of(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not th.equal(ours[name], theirs[name]) and name not in but] == []
    assert (model.num_timesteps, model._n_updates) == (other.num_timesteps, other._n_updates)
    replays = [m.replay_buffer for m in (model, other)]
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        of_model, of_other = (getattr(replay, name, None) for replay in replays)
        np.testing.assert_equal(of_model, of_other)
    logged = [{k: v for k, v in m.logger.name_to_value.items() if not k.startswith("time/")} for m in (model, other)]
    assert logged[0].keys() == logged[1].keys()
    for key in logged[0]:
        np.testing.assert_allclose(logged[0][key], logged[1][key], rtol=1e-5, atol=1e-7, err_msg=key)


def as_sac(make_env, total, policy="MlpPolicy", but=(), **arguments):
    """Both trained: they have the same numbers."""
    models = [small(cls, make_env(), policy, **deepcopy(arguments)).learn(total) for cls in (OffPolicyActorCritic, SAC)]
    assert models[0]._n_updates > 0
    assert_equal(*models, but)
    observations = models[0].env.reset()
    for deterministic in (True, False):
        actions = []
        for model in models:
            th.manual_seed(0)
            actions.append(model.predict(observations, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)
    return models
