"""Given batches: one for each rank, and their concatenation for one process."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pgext.rollouts.replay import concatenated
from tests.conformance.models import collected, small
from tests.environments import ACTIONS, VECTOR, AnySpaces

ARRAYS = ("observations", "actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")


class Uneven(AnySpaces):
    """Episodes of 2 to 7 steps, half of them truncated, with rewards that vary."""

    def reset(self, *, seed=None, options=None):
        outcome = super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 8))
        return outcome

    def step(self, action):
        observation, *_ = super().step(action)
        ended, odd = self.t == self.length, self.length % 2 == 1
        return observation, float(self.t + np.sum(action)), ended and odd, ended and not odd, {}


def uneven(n_envs, action_space="box"):
    """Sub-environments whose episodes have different lengths."""
    return make_vec_env(lambda: Uneven(deepcopy(VECTOR), deepcopy(ACTIONS[action_space])), n_envs)


class Precise(FlattenExtractor):
    """Features in the precision that the networks are to have."""

    dtype = th.float32

    def forward(self, observations):
        return super().forward(observations).to(self.dtype)


def of_ranks(algorithm, size, env=uneven, n_rollouts=1, **arguments):
    """
    Models with equal parameters in double precision, each with a batch of its own, and one with all of them.

    :param algorithm: on-policy
    :param size: number of ranks
    :param env: a function of the number of sub-environments to an environment
    :param n_rollouts: how many each collects; for the first ones the parameters are moved a little
    :param arguments: of the algorithm
    :return: the models of the ranks, and that of a process alone
    """
    arguments = {"policy_kwargs": {"features_extractor_class": Precise, "net_arch": [8]}, **arguments}
    models = [small(algorithm, env(n_envs=2), seed=r, **arguments) for r in range(size)]
    alone = small(algorithm, env(n_envs=2 * size), seed=size, **whole(arguments, size))
    state = {name: x.clone() for name, x in models[0].policy.state_dict().items()}
    for model in (*models, alone):
        model.policy.load_state_dict(state)
    for k in reversed(range(n_rollouts)):
        moved = {name: x + 0.02 * k * x.sign() for name, x in state.items()}
        for model in models:
            model.policy.load_state_dict(moved)
            collected(model)
    alone._setup_learn(10**9)
    for model in (*models, alone):
        make_precise(model.policy)
    if hasattr(models[0], "episodes"):
        for model in models:
            model.episodes = precise(model.episodes)
        alone.episodes = joined([model.episodes for model in models])
        replays = [model.replay_buffer.batches for model in models if hasattr(model, "replay_buffer")]
        for of_models in zip(*replays, strict=True):
            episodes = joined([batch.episodes for batch in of_models])
            policy = {name: x.double() for name, x in of_models[0].policy.items()}
            alone.replay_buffer.add(episodes, th.cat([batch.log_prob for batch in of_models]), policy)
    else:
        fill(alone.rollout_buffer, [model.rollout_buffer for model in models])
        for name in ("last_obs", "last_values", "last_dones"):
            parts = [getattr(model.collector, name) for model in models]
            setattr(alone.collector, name, (th.cat if th.is_tensor(parts[0]) else np.concatenate)(parts))
        for r, model in enumerate(models):
            finals = {(t, e + 2 * r): final for (t, e), final in model.collector.final_observations.items()}
            alone.collector.final_observations |= finals
    return models, alone


def make_precise(policy):
    """Compute in double precision from now on."""
    policy.double()
    for module in policy.modules():
        if isinstance(module, Precise):
            module.dtype = th.float64


def whole(arguments, size):
    """The arguments of one process that does what the ranks do together."""
    per_rank = ("batch_size", "n_episodes", "n_directions")
    return {name: value * size if name in per_rank else value for name, value in arguments.items()}


def joined(batches):
    """The episodes of several batches, with the last observations of those that were cut."""
    final_observations = [x for batch in batches if (x := batch.final_observations) is not None]
    final_observations = th.cat(final_observations) if final_observations else None
    return replace(concatenated(batches), final_observations=final_observations)


def precise(episodes):
    """The same episodes with rewards and values in double precision."""
    names = ("rewards", "values", "bootstrap_values")
    return replace(episodes, **{name: getattr(episodes, name).double() for name in names})


def fill(buffer, parts, dtype=np.float64):
    """Fill a rollout buffer with those of several ranks, in this precision on both sides."""
    for part in parts:
        for name in ("values", "log_probs", "advantages", "returns", "rewards"):
            setattr(part, name, getattr(part, name).astype(dtype))
    for name in ARRAYS:
        setattr(buffer, name, np.concatenate([getattr(part, name) for part in parts], axis=1))
    buffer.pos, buffer.full = parts[0].pos, True
