"""
Claim: what changes between two calls of ``learn`` of an off-policy algorithm has with ``compile=True`` the effect that
it has without, at once; what the replay buffer has of its own is not changed by the model's.

Graphs are traced here, not compiled: ``test_compiled.py`` compiles.
"""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import OffPolicyActorCritic
from sb3_pgext.engine import graphs
from tests.environments import RewardsAndLimits
from tests.tracing import traced_only

VECTOR, BOX, DISCRETE = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)

DRAWN = {"gradient": "all_action", "n_action_samples": 2, "actions": BOX}


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)


def learnt(change, compile, actions=DISCRETE, **options):
    """The parameters after two calls of ``learn``, between which something changes."""
    env = DummyVecEnv([lambda: RewardsAndLimits(copy.deepcopy(VECTOR), copy.deepcopy(actions))])
    small = {"learning_starts": 4, "buffer_size": 100, "batch_size": 8, "learning_rate": 0.01, "tau": 0.1, "seed": 0}
    arguments = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu", "ent_coef": 0.1, **small, **options}
    model = OffPolicyActorCritic("MlpPolicy", env, compile=compile, **arguments)
    model.learn(12)
    change(model)
    model.learn(12, reset_num_timesteps=False)
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


def setting(**values):
    def change(model):
        for name, value in values.items():
            setattr(model, name, value)
        model._setup_lr_schedule()

    return change


def nothing(model):
    pass


def empty_the_replay(model):
    model.replay_buffer = ReplayBuffer(100, model.observation_space, model.action_space, device="cpu")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (setting(gamma=0.5), {}),
        (setting(tau=0.9), {}),
        (setting(ent_coef=1.0), {}),
        (setting(learning_rate=0.1), {}),
        (setting(batch_size=4), {}),
        (setting(gradient_steps=3), {}),
        (setting(learning_starts=18), {}),
        (setting(train_freq=TrainFreq(4, TrainFrequencyUnit.STEP)), {}),
        (setting(target_update_interval=2), {"gradient_steps": 2}),
        (setting(target_entropy=0.1), {"ent_coef": "auto"}),
        (setting(gradient="all_action"), {"gradient": "sampled"}),
        (setting(weight_clip=0.1), {"gradient": "sampled"}),
        (setting(n_action_samples=5), DRAWN),
        (setting(gradient="reparameterized", n_action_samples=None), DRAWN),
        (empty_the_replay, {}),
    ],
)  # fmt: skip
def test_a_change_has_the_same_effect_compiled(change, options):
    wanted = learnt(change, False, **options)
    assert not th.allclose(wanted, learnt(nothing, False, **options), rtol=0, atol=1e-6), (
        "it changes nothing uncompiled"
    )
    th.testing.assert_close(learnt(change, True, **options), wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_the_replay_keeps_its_number_of_rewards(compile):
    kept = learnt(nothing, compile, n_steps=3)
    assert th.equal(learnt(setting(n_steps=1), compile, n_steps=3), kept)

    def change(model):
        model.replay_buffer.n_steps = 1

    assert not th.allclose(learnt(change, compile, n_steps=3), kept, rtol=0, atol=1e-6)
