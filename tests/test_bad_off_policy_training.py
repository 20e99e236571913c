"""
What goes wrong in an off-policy training stops it where it appears, by name; nothing of a failed update stays, neither
in networks, targets, optimizers and temperature, nor in the replay or the statistics; and the training can go on.
"""

import contextlib
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pgext import CheckpointCallback, DiscreteSAC, OffPolicyActorCritic, resume
from sb3_pgext.engine import graphs
from tests.algorithms.off_policy import numbers_of
from tests.environments import AnySpaces
from tests.test_bad_training import Mishap as DiscreteMishap
from tests.test_bad_training import statistics
from tests.tracing import traced_only


class Mishap(DiscreteMishap):
    """The same on any actions."""

    def __init__(self, at=None, happens=None, action_space=None):
        super().__init__(at, happens)
        self.action_space = action_space or self.action_space


BOX = spaces.Box(-1, 1, (2,), np.float32)
KINDS = {
    "sac": (OffPolicyActorCritic, BOX, {}),
    "sampled": (OffPolicyActorCritic, BOX, {"gradient": "sampled", "n_action_samples": 2}),
    "sacd": (DiscreteSAC, spaces.Discrete(2), {}),
    "multi_binary": (OffPolicyActorCritic, spaces.MultiBinary(2), {"gradient": "sampled", "n_steps": 3}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def model_with(kind, at=None, happens=None, wrapper=lambda env: env, **arguments):
    """Two sub-environments; something happens at a step of the second one."""
    algorithm, space, of_kind = KINDS[kind]
    env = wrapper(
        DummyVecEnv([lambda: Monitor(Mishap(None, None, space)), lambda: Monitor(Mishap(at, happens, space))])
    )
    arguments = {
        **{"buffer_size": 200, "learning_starts": 10, "batch_size": 8, "train_freq": 4, "gradient_steps": 4},
        **{"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [4]}, **of_kind, **arguments},
    }
    return algorithm("MlpPolicy", env, **arguments)


def state(model):
    """Also counters, learning rates and the replay."""
    optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    rates = {f"lr {i}": th.tensor(o.param_groups[0]["lr"]) for i, o in enumerate(optimizers) if o is not None}
    return numbers_of(model) | rates | {"n": th.tensor(model._n_updates)}


@contextlib.contextmanager
def nothing_moves(model):
    """Something is raised, and all is as after the last whole update."""
    train, before = type(model).train, [state(model)]

    def train_and_remember(model, *arguments, **options):
        train(model, *arguments, **options)
        before[0] = state(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "train", train_and_remember)
        yield
    after = state(model)
    assert before[0].keys() == after.keys()
    assert [name for name in after if not th.equal(before[0][name], after[name])] == []
    buffer = model.replay_buffer
    assert np.isfinite(buffer.rewards).all()
    assert np.isfinite(buffer.observations).all()
    assert np.isfinite(buffer.next_observations).all()


def goes_on(model):
    before, size = model._n_updates, model.replay_buffer.size()
    model.learn(40, reset_num_timesteps=False)
    assert model._n_updates > before
    assert model.replay_buffer.size() > size


# --- what environments return ----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["reward", "observation", "terminal observation"])
def test_a_bad_number_from_an_environment_is_named(kind, bad, what):
    """With the step of the rollout of 4 in which it came."""

    def happens(observation, reward, *rest):
        if what == "reward":
            return observation, bad, *rest
        return observation + bad, reward, what.startswith("terminal"), *rest[1:]

    model = model_with(kind, 19, happens).learn(32)
    step = 2 if what == "reward" else 3
    with (
        nothing_moves(model),
        pytest.raises(ValueError, match=rf"{what}=.*(nan|inf).* of sub-environment 1 at vector step {step} of this"),
    ):
        model.learn(60, reset_num_timesteps=False)
    goes_on(model)


@pytest.mark.parametrize("kind", ["sac", "sacd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_statistics_that_a_bad_number_has_spoilt_are_put_back(kind, bad, what):
    """Those of before the rollout."""

    def happens(observation, reward, *rest):
        return (observation, bad, *rest) if what == "reward" else (observation + bad, reward, *rest)

    model = model_with(kind, 19, happens, VecNormalize).learn(32)
    before = statistics(model)
    with nothing_moves(model), pytest.raises(ValueError, match=rf"{what}=.*{bad}.* of sub-environment 1"):
        model.learn(8, reset_num_timesteps=False)
    for now, then in zip(statistics(model), before, strict=True):
        assert np.array_equal(now, then)
    goes_on(model)


def test_a_first_observation():
    class BadStart(AnySpaces):
        n_resets = 0

        def reset(self, **options):
            observation, info = super().reset(**options)
            self.n_resets += 1
            return (observation * math.nan if self.n_resets == 1 else observation), info

    env = DummyVecEnv([lambda: BadStart(spaces.Box(-1, 1, (2,)), BOX)])
    model = OffPolicyActorCritic("MlpPolicy", VecNormalize(env), learning_starts=5, batch_size=4, buffer_size=50)
    with pytest.raises(ValueError, match=r"observation=.*nan.* of sub-environment 0 at vector step 0"):
        model.learn(20)
    model.learn(20)


@each_kind
def test_an_error_of_the_environment_goes_through(kind):
    class OwnError(Exception):
        pass

    model = model_with(kind, 19, OwnError("mine")).learn(32)
    with nothing_moves(model), pytest.raises(OwnError, match=r"^mine(\n.*vector step 2 of this rollout\))?$"):
        model.learn(60, reset_num_timesteps=False)
    goes_on(model)


def test_keys_and_shapes():
    class LacksKey(AnySpaces):
        def step(self, action):
            observation, *rest = super().step(action)
            del observation["kind"]
            return observation, *rest

    space = spaces.Dict(kind=spaces.Discrete(3), vector=spaces.Box(-1, 1, (2,)))
    env = DummyVecEnv([lambda: LacksKey(space, BOX)])
    with pytest.raises(ValueError, match=r"keys of observation: 'kind' is missing at vector step 0"):
        OffPolicyActorCritic("MultiInputPolicy", env, buffer_size=50, learning_starts=5).learn(10)
    wide = model_with("sac", 3, lambda obs, reward, *rest: (np.zeros(2, np.float32), reward, False, True, {}))
    with pytest.raises(ValueError, match=r"shape of terminal observation=\(2,\) of sub-environment 1 at vector step 3"):
        wide.learn(20)


# --- acting ----------------------------------------------------------------------------------------------------------


@each_kind
def test_parameters_that_are_nan_do_not_act(kind):
    model = model_with(kind).learn(32)
    layer = model.actor.mu if isinstance(model.action_space, spaces.Box) else model.actor.action_net
    with th.no_grad():
        layer.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"parameter actor\.(mu|action_net)\.bias of the policy is NaN or infinite"):
        model.learn(20, reset_num_timesteps=False)


@each_kind
def test_actions_that_are_nan_are_named(kind):
    """Finite parameters, and yet no probabilities."""
    model = model_with(kind, 19, lambda observation, *rest: (observation * 1e30, *rest)).learn(32)
    layer = model.actor.mu if isinstance(model.action_space, spaces.Box) else model.actor.action_net
    with th.no_grad():
        model.actor.latent_pi[0].weight[:] = 1e10
        layer.weight[0, ::2], layer.weight[0, 1::2] = 1e20, -1e20
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    with (
        nothing_moves(model),
        pytest.raises(ValueError, match=r"(action|log-probability)=.*nan.* of sub-environment 1 at vector step 3 "),
    ):
        model.learn(8, reset_num_timesteps=False)


# --- updates ---------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop], ids=["flat Adam", "any optimizer"])
def test_a_loss_that_is_nan_in_the_middle_of_an_update(kind, network, optimizer):
    """Some gradient steps have been taken; nothing of them stays."""
    model = model_with(kind, policy_kwargs={"net_arch": [4], "optimizer_class": optimizer}).learn(32)
    layer = model.critic.q_networks[0] if network == "critic" else model.actor.latent_pi
    calls = []

    def poison(module, inputs, output):
        calls.append(1)
        return output * math.nan if len(calls) > 5 and model.actor.training else output

    hook = layer.register_forward_hook(poison)
    match = r"(critic|actor)_loss=nan: allowed is a finite number \(update \d+, gradient step [123]\)"
    with nothing_moves(model), pytest.raises(ValueError, match=match):
        model.learn(60, reset_num_timesteps=False)
    hook.remove()
    goes_on(model)


@each_kind
def test_ctrl_c_in_an_update(kind, tmp_path):
    model = model_with(kind).learn(32)
    forward, calls = model.critic.q_networks[0].forward, []

    def interrupted(x):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return forward(x)

    model.critic.q_networks[0].forward = interrupted
    with nothing_moves(model), pytest.raises(KeyboardInterrupt):
        model.learn(60, CheckpointCallback(4, tmp_path), reset_num_timesteps=False)
    model.critic.q_networks[0].forward = forward
    goes_on(model)
    resumed = resume(tmp_path)
    assert resumed.num_timesteps >= 32
    goes_on(resumed)


@each_kind
def test_ctrl_c_in_the_environment(kind):
    model = model_with(kind, 19, KeyboardInterrupt()).learn(32)
    with nothing_moves(model), pytest.raises(KeyboardInterrupt):
        model.learn(60, reset_num_timesteps=False)
    goes_on(model)


class Writes(BaseCallback):
    """A number into the rewards of the replay."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.model.replay_buffer.rewards[:] = self.number


@pytest.mark.parametrize("kind", ["sac", "sacd"])
@pytest.mark.parametrize(
    ("number", "named"),
    [(math.nan, "critic_loss=nan"), (1e30, "critic_loss=inf")],
)
@pytest.mark.parametrize("compile", [False, True])
def test_numbers_in_the_replay_that_are_too_large(kind, number, named, compile, monkeypatch):
    """Whoever has written them there."""
    monkeypatch.setattr(graphs, "_compile", traced_only)
    model = model_with(kind, compile=compile).learn(32)
    before = state(model)
    with pytest.raises(ValueError, match=named):
        model.learn(8, Writes(number), reset_num_timesteps=False)
    after = state(model)
    assert [name for name in after if not th.equal(before[name], after[name])] == []
    model.replay_buffer.rewards[:] = 1.0
    goes_on(model)


def test_a_learning_rate_that_becomes_nan():
    model = model_with("sac", learning_rate=lambda progress: 0.01 if progress > 0.5 else math.nan)
    with pytest.raises(ValueError, match=r"learning_rate at progress .*=nan"):
        model.learn(100)
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_a_temperature_that_overflows():
    model = model_with("sac").learn(32)
    model.log_ent_coef.data.fill_(200.0)
    with pytest.raises(ValueError, match="finite"):
        model.learn(8, reset_num_timesteps=False)
    assert model.log_ent_coef.item() == 200.0
