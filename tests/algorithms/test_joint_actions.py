"""Claim: joint actions of a discrete space are numbered once each, with the probabilities of SB3's distributions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import make_proba_distribution

from sb3_pgext.algorithms.distributions import JointActions

SPACES = {
    "discrete": spaces.Discrete(5),
    "multi": spaces.MultiDiscrete([2, 3, 4]),
    "two axes": spaces.MultiDiscrete([[2, 3], [3, 2]]),
    "binary": spaces.MultiBinary(4),
    "binary, two axes": spaces.MultiBinary((2, 3)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_log_probs_are_the_distributions(space):
    joint = JointActions.of(space)
    every = np.array(list(np.ndindex(*joint.sizes)))
    actions = th.as_tensor(every[:, 0] if isinstance(space, spaces.Discrete) else every)
    th.testing.assert_close(joint.numbers(actions), th.arange(len(joint)))

    if isinstance(space, spaces.MultiDiscrete):
        space = spaces.MultiDiscrete(space.nvec.flatten())
    distribution = make_proba_distribution(space if space.shape is None or len(space.shape) < 2 else flat(space))
    logits = th.randn(3, sum(joint.sizes) if not isinstance(space, spaces.MultiBinary) else len(joint.sizes))
    log_probs = joint.log_probs(distribution.proba_distribution(logits))
    for number, action in enumerate(actions):
        th.testing.assert_close(log_probs[:, number], distribution.log_prob(action.expand(3, *action.shape).float()))
    th.testing.assert_close(log_probs.exp().sum(1), th.ones(3))


def flat(space):
    return spaces.MultiBinary(int(np.prod(space.shape)))


def test_what_is_not_enumerated():
    assert JointActions.of(spaces.Box(-1, 1, (1,))) is None
    assert JointActions.of(spaces.MultiBinary(9)) is None
    assert len(JointActions.of(spaces.MultiBinary(8))) == 256
