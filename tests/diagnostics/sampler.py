"""Episodes of any policy on a finite MDP, thousands at once, and policies at a given distance from a model's."""

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_pgext import ISPG
from sb3_pgext.diagnostics import action_probabilities
from sb3_pgext.rollouts import EpisodeBatch, EpisodeReplay
from tests.diagnostics.laboratory import HIDDEN_LAYER, present_estimates


def ispg_on(env, **parameters):
    """A model that drops no batch, however dead."""
    defaults = {"policy_kwargs": HIDDEN_LAYER, "seed": 0, "device": "cpu", "min_ess": 0.0}
    model = ISPG("MlpPolicy", env, **{**defaults, **parameters})
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def sample_episodes(mdp, probabilities, n_episodes, rng):
    """
    :param mdp: a TabularMDP with a horizon and rewards ``(S, A)``
    :param probabilities: π(a|s), ``(S, A)``
    :param n_episodes: how many
    :param rng: numpy's random generator
    :return: a batch of episodes without values
    """

    def draw(distribution):
        """One index of each row; one past the last for the probability that is left."""
        return (rng.random((n_episodes, 1)) >= distribution.cumsum(1)).sum(1)

    n_states = len(mdp.initial)
    state = np.minimum(draw(np.tile(mdp.initial, (n_episodes, 1))), n_states - 1)
    alive, columns = np.ones(n_episodes, dtype=bool), []
    for _ in range(mdp.horizon):
        action = np.minimum(draw(probabilities[state]), probabilities.shape[1] - 1)
        columns.append((state, action, mdp.expected_rewards[state, action], alive))
        following = draw(mdp.transitions[state, action])
        alive = alive & (following < n_states)
        state = np.minimum(following, n_states - 1)
    states, actions, rewards, recorded = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    lengths = th.as_tensor(recorded.sum(1))
    n_steps = int(lengths.sum())
    return EpisodeBatch(
        observations=th.as_tensor(states[recorded]),
        actions=th.as_tensor(actions[recorded]),
        rewards=th.as_tensor(rewards[recorded], dtype=th.float32),
        values=th.zeros(n_steps),
        episode=th.arange(n_episodes).repeat_interleave(lengths),
        time=th.arange(n_steps) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths),
        lengths=lengths,
        truncated=th.zeros(n_episodes, dtype=th.bool),
        bootstrap_values=th.zeros(n_episodes),
    )


class Behaviour:
    """
    A policy near the model's, in a random direction.

    :param model: an ISPG
    :param mdp: the MDP that it is for
    :param kl: KL(π_θ ‖ μ), the mean over the states
    :param seed: of the direction
    """

    def __init__(self, model, mdp, kl, seed):
        own = model._numbers_of_policy()
        generator = th.Generator().manual_seed(seed)
        direction = {name: th.randn(x.shape, generator=generator) for name, x in own.items()}
        pi, low, high = action_probabilities(model.policy, mdp), 0.0, 64.0
        for _ in range(60):
            scale = (low + high) / 2
            self.numbers = {name: x + scale * direction[name] for name, x in own.items()}
            model.policy.load_state_dict(self.numbers, strict=False)
            mu = action_probabilities(model.policy, mdp)
            far = (pi * (pi / mu).log()).sum(1).mean().item() > kl
            low, high = (low, scale) if far else (scale, high)
        model.policy.load_state_dict(own, strict=False)
        self.probabilities = mu


def replay_of(mdp, behaviours, n_episodes, rng):
    """A batch of each policy, in the replay that a model would have of them."""
    replay = EpisodeReplay(len(behaviours))
    for mu in behaviours:
        batch = sample_episodes(mdp, mu.probabilities.numpy(), n_episodes, rng)
        log_prob = mu.probabilities.log()[batch.observations, batch.actions].float()
        replay.add(batch, log_prob, mu.numbers)
    return replay


def off_policy_estimates(model, mdp, behaviours, options_of, n_batches, n_episodes, seed=0):
    """ĝ of the same batches under each of the options, ``(n_batches, P)`` each; n_episodes of each policy."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_batches):
        model.replay_buffer = replay_of(mdp, behaviours, n_episodes, rng)
        samples.append(present_estimates(model, options_of))
    return [th.stack(column) for column in zip(*samples, strict=True)]
