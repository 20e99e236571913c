"""What goes wrong in a training stops it where it appears, by name, and nothing of a failed update stays."""

import contextlib
import math
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, CheckpointCallback, ClippedCriticPPO, resume
from sb3_pgext.engine import graphs
from sb3_pgext.vec_envs import GymnasiumVecEnv
from tests.environments import DICT, AnySpaces, Countdown
from tests.tracing import traced_only

FAMILY = (REINFORCE, VPG, NPG, ClippedCriticPPO, ISPG)
SMALL = {
    REINFORCE: {"n_episodes": 2},
    VPG: {"n_steps": 8, "batch_size": 4},
    NPG: {"n_steps": 8, "batch_size": 4, "n_critic_updates": 2},
    ClippedCriticPPO: {"n_steps": 8, "batch_size": 4, "n_epochs": 2},
    ISPG: {"n_episodes": 2, "gradient_steps": 3, "replay_batches": 1},
}
family = pytest.mark.parametrize("algorithm", FAMILY)


class Mishap(Countdown):
    """
    The other four steps of an episode are as ever.

    :param at: number of the step, over all episodes, with which it happens; None for never
    :param happens: what it returns instead of (observation, reward, terminated, truncated, info), which it is given;
        or an error that it raises
    """

    def __init__(self, at=None, happens=None):
        super().__init__()
        self.at, self.happens, self.n_steps = at, happens, 0

    def step(self, action):
        outcome = super().step(action)
        self.n_steps += 1
        if self.n_steps != self.at:
            return outcome
        if isinstance(self.happens, BaseException):
            raise self.happens
        return self.happens(*outcome)


def model_with(algorithm, *environments, vec_env=DummyVecEnv, **arguments):
    """A small model on these sub-environments."""
    arguments = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [4]}, **SMALL[algorithm], **arguments}
    return algorithm("MlpPolicy", vec_env([lambda env=env: env for env in environments]), **arguments)


def numbers(model):
    """Parameters, and the state of the optimizer, as copies."""
    state = model.policy.optimizer.state_dict()
    moments = {(key, name): th.as_tensor(x).clone() for key, of in state["state"].items() for name, x in of.items()}
    parameters = {name: x.clone() for name, x in model.policy.state_dict().items()}
    return parameters | moments | {"lr": th.tensor(state["param_groups"][0]["lr"]), "n": th.tensor(model._n_updates)}


@contextlib.contextmanager
def nothing_moves(model):
    """Something is raised, and neither parameters nor the optimizer's state are others than after the last update."""
    train, before = type(model).train, [numbers(model)]

    def train_and_remember(model):
        train(model)
        before[0] = numbers(model)

    with pytest.MonkeyPatch.context() as patch:  # of the class: a checkpoint has the model's own attributes
        patch.setattr(type(model), "train", train_and_remember)
        yield
    after = numbers(model)
    assert before[0].keys() == after.keys()
    assert all(th.equal(before[0][name], after[name]) for name in after)


@family
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_bad_number_from_an_environment_is_named(algorithm, bad, what):
    def happens(observation, reward, *rest):
        return (observation, bad, *rest) if what == "reward" else (observation * bad, reward, *rest)

    model = model_with(algorithm, Countdown(), Mishap(33, happens)).learn(30)
    with (
        nothing_moves(model),
        pytest.raises(ValueError, match=rf"{what}=.*(nan|inf).* of sub-environment 1 at vector step \d+"),
    ):
        model.learn(200, reset_num_timesteps=False)
    model.learn(40, reset_num_timesteps=False)


def normalized(makers):
    return VecNormalize(DummyVecEnv(makers))


def statistics(model):
    """Of VecNormalize, as copies."""
    normalizer = model.get_vec_normalize_env()
    return [np.array(x) for rms in (normalizer.obs_rms, normalizer.ret_rms) for x in (rms.mean, rms.var, rms.count)]


@family
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_whoever_has_spoilt_the_statistics_of_all_is_named_and_they_are_put_back(algorithm, bad, what):
    """VecNormalize makes everybody's numbers NaN."""

    def happens(observation, reward, *rest):
        return (observation, bad, *rest) if what == "reward" else (observation + bad, reward, *rest)

    model = model_with(algorithm, Countdown(), Mishap(33, happens), vec_env=normalized).learn(30)
    collected = []

    def collecting(*arguments, **options):
        collected.append(statistics(model))
        return type(model).collect_rollouts(model, *arguments, **options)

    model.collect_rollouts = collecting
    with (
        nothing_moves(model),
        pytest.raises(ValueError, match=rf"{what}=.*{bad}.* of sub-environment 1 at vector step \d+"),
    ):
        model.learn(200, reset_num_timesteps=False)
    for now, before in zip(statistics(model), collected[-1], strict=True):
        assert np.array_equal(now, before)
    model.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
def test_a_first_observation_that_spoils_the_statistics(algorithm):
    class BadStart(Countdown):
        n_resets = 0

        def reset(self, **options):
            observation, info = super().reset(**options)
            self.n_resets += 1
            return (observation * math.nan if self.n_resets == 1 else observation), info

    model = model_with(algorithm, Countdown(), BadStart(), vec_env=normalized)
    with pytest.raises(ValueError, match=r"observation=.*nan.* of sub-environment 1 at vector step 0"):
        model.learn(20)
    model.learn(20)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_an_infinity_is_not_clipped_by_a_normalisation_that_learns_no_more(algorithm, what):
    def happens(observation, reward, *rest):
        return (observation, math.inf, *rest) if what == "reward" else (observation + math.inf, reward, *rest)

    model = model_with(algorithm, Countdown(), Mishap(33, happens), vec_env=normalized).learn(30)
    model.env.training = False
    with pytest.raises(ValueError, match=rf"{what}=.*inf.* of sub-environment 1"):
        model.learn(200, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize(
    ("space", "bad"),
    [
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3), -1),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3])),
        (spaces.Dict(kind=spaces.Discrete(3)), {"kind": 3}),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_a_number_outside_a_discrete_space_is_named(algorithm, space, bad, last):
    class Outside(AnySpaces):
        def step(self, action):
            _, reward, *_ = super().step(action)
            return bad, reward, False, last, {}

    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: AnySpaces(space, spaces.Discrete(2)), lambda: Outside(space, spaces.Discrete(2))])
    model = algorithm(policy, env, device="cpu", policy_kwargs={"net_arch": [4]}, **SMALL[algorithm])
    with pytest.raises(ValueError, match=r"observation.*=.* of sub-environment 1 at vector step 1 .*whole number >= 0"):
        model.learn(10)


@family
def test_probabilities_that_are_nan_are_named(algorithm):
    """Finite parameters, and yet logits that are not."""
    model = model_with(algorithm, Countdown(), Mishap(3, lambda obs, *rest: (obs * 1e30, *rest)))
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight[:] = 1e30
        model.policy.mlp_extractor.policy_net[1] = th.nn.Identity()
        model.policy.action_net.weight[0] = 1.0
    with (
        nothing_moves(model),
        pytest.raises(ValueError, match=r"log-probability=.* of sub-environment 1 at vector step 3"),
    ):
        model.learn(100)


@family
def test_parameters_that_are_nan_do_not_act(algorithm):
    model = model_with(algorithm, Countdown())
    with th.no_grad():
        model.policy.action_net.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"parameter action_net\.bias of the policy is NaN or infinite"):
        model.learn(100)


def poisoned_after(model, n_forward):
    """The critic's n-th value from now on is such that loss and gradient are NaN."""
    calls = []

    def poison(module, inputs, output):
        calls.append(1)
        return output * math.nan if len(calls) >= n_forward and model.policy.training else output

    return model.policy.value_net.register_forward_hook(poison)


@family
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop], ids=["flat Adam", "any optimizer"])
def test_a_loss_that_is_nan_in_the_middle_of_an_update(algorithm, optimizer):
    """Some minibatches have been learnt from; nothing of them stays."""
    network = {"net_arch": [4], "optimizer_class": optimizer}
    model = model_with(algorithm, Countdown(), Countdown(), policy_kwargs=network).learn(30)
    train, nth = model.train, 4

    def train_poisoned():
        hook = poisoned_after(model, nth)
        try:
            train()
        finally:
            hook.remove()

    model.train = train_poisoned
    match = r"loss=nan: allowed is a finite number \(update \d+, gradient step \d+\)"
    with nothing_moves(model), pytest.raises(ValueError, match=match):
        model.learn(60, reset_num_timesteps=False)
    model.train = train
    model.learn(40, reset_num_timesteps=False)


@family
def test_a_gradient_that_is_not_finite(algorithm):
    """The loss is finite; the root of 0 has no slope."""
    model = model_with(algorithm, Countdown(), Countdown(), **({} if algorithm is NPG else {"max_grad_norm": 0.5}))
    model.learn(30)
    train = model.train

    def train_poisoned():
        def no_slope(module, inputs, output):
            return output + (output * 0.0).sqrt() if model.policy.training else output

        hook = model.policy.value_net.register_forward_hook(no_slope)
        try:
            train()
        finally:
            hook.remove()

    model.train = train_poisoned
    with nothing_moves(model), pytest.raises(ValueError, match="finite"):
        model.learn(60, reset_num_timesteps=False)


@family
def test_moments_that_overflow(algorithm):
    """Adam's square of a finite gradient; the step would be 0 from then on."""
    model = model_with(algorithm, Countdown(), Countdown()).learn(30)
    model.policy.value_net.weight.register_hook(lambda gradient: gradient * 0.0 + 1e30)
    named = r"the optimizer's exp_avg_sq of parameter value_net\.weight"
    if algorithm is ClippedCriticPPO:  # shortens the gradient, whose norm is infinite
        model.max_grad_norm, named = None, "finite"
    with nothing_moves(model), pytest.raises(ValueError, match=named):
        model.learn(60, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", [VPG, ClippedCriticPPO])
def test_a_compiled_update_leaves_nothing_behind_either(algorithm, monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)
    model = model_with(algorithm, Countdown(), Countdown(), compile=True).learn(30)

    class HugeTarget(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            model.rollout_buffer.returns[3] = 1e30

    with nothing_moves(model), pytest.raises(ValueError, match="finite"):
        model.learn(60, HugeTarget(), reset_num_timesteps=False)
    assert None not in graphs._graphs[model.policy].values(), "the update is compiled"


def test_a_batch_that_spoils_an_update_is_not_replayed():
    model = model_with(ISPG, Countdown(), Mishap(26, lambda obs, reward, *rest: (obs, 1e38, *rest)))
    model.learn(20)
    with nothing_moves(model), pytest.raises(ValueError, match="finite"):
        model.learn(100, reset_num_timesteps=False)
    model.learn(40, reset_num_timesteps=False)


def test_a_learning_rate_that_becomes_nan():
    schedule = lambda progress: 0.01 if progress > 0.5 else math.nan  # noqa: E731
    model = model_with(VPG, Countdown(), learning_rate=schedule)
    with pytest.raises(ValueError, match=r"learning_rate at progress .*=nan"):
        model.learn(100)
    assert all(p.isfinite().all() for p in model.policy.parameters())


@family
def test_an_error_of_the_environment_goes_through_and_the_next_training_begins_afresh(algorithm):
    class OwnError(Exception):
        pass

    model = model_with(algorithm, Countdown(), Mishap(33, OwnError("mine"))).learn(30)
    with nothing_moves(model), pytest.raises(OwnError, match=r"^mine(\n.*vector step \d+ of this rollout\))?$"):
        model.learn(200, reset_num_timesteps=False)
    seen = []
    model.learn(40, lambda local, _: seen.append(local["obs_tensor"]) or True, reset_num_timesteps=False)
    assert seen[0].eq(0).all()


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine"), KeyError("mine")])
def test_an_error_of_the_environment_is_not_taken_for_another(algorithm, error):
    with pytest.raises(type(error)) as caught:
        model_with(algorithm, Mishap(2, error)).learn(100)
    assert caught.value is error
    if hasattr(error, "add_note"):  # Python 3.11
        assert error.__notes__[-1:] == ["(raised by the environment at vector step 1 of this rollout)"]


def sync(makers):
    """gymnasium's."""
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


AT_STEP_2 = (
    r"[\s\S]*\(raised by the environment at vector step 2 of this rollout\)" if sys.version_info >= (3, 11) else ""
)


@family
@pytest.mark.parametrize("shape", [(2,), (0,)])
def test_an_observation_of_the_wrong_shape_is_an_error_of_the_vec_env(algorithm, shape):
    """Before it returns. Our note says when."""
    env = Mishap(3, lambda obs, *rest: (np.zeros(shape, np.float32), *rest))
    model = model_with(algorithm, Countdown(), env)
    with nothing_moves(model), pytest.raises(ValueError, match=rf"shape \({shape[0]},\){AT_STEP_2}"):
        model.learn(100)


@pytest.mark.parametrize(("algorithm", "vec_env"), [(REINFORCE, SubprocVecEnv), (REINFORCE, sync), (VPG, sync)])
def test_an_observation_of_the_wrong_shape_in_other_vectorised_environments(algorithm, vec_env):
    env = Mishap(3, lambda obs, *rest: (np.zeros(2, np.float32), *rest))
    model = model_with(algorithm, Countdown(), env, vec_env=vec_env)
    with pytest.raises(ValueError, match=rf"shape{AT_STEP_2}"):
        model.learn(100)
    model.env.close()


@family
@pytest.mark.parametrize("at", [0, 3])
def test_a_vec_env_that_returns_the_wrong_shape_is_named(algorithm, at):
    class Wider(VecEnvWrapper):
        n_steps = 0

        def reset(self):
            return self.seen(self.venv.reset())

        def step_wait(self):
            self.n_steps += 1
            observations, *rest = self.venv.step_wait()
            return self.seen(observations), *rest

        def seen(self, observations):
            return np.zeros((2, 2), np.float32) if self.n_steps == at else observations

    model = model_with(algorithm, Countdown(), Countdown(), vec_env=lambda makers: Wider(DummyVecEnv(makers)))
    named = rf"shape of observation=\(2, 2\) of vector step {at}: allowed is \(2, 1\)"
    with nothing_moves(model), pytest.raises(ValueError, match=named):
        model.learn(100)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
def test_a_last_observation_of_the_wrong_shape(algorithm):
    """It is not written into the array of all."""
    env = Mishap(3, lambda obs, reward, *rest: (np.zeros(2, np.float32), reward, False, True, {}))
    with pytest.raises(ValueError, match=r"shape of terminal observation=\(2,\) of sub-environment 1 at vector step 3"):
        model_with(algorithm, Countdown(), env).learn(100)


class WrongReset(AnySpaces):
    """The first observation has no place."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(7, np.float32), {}


class LacksKey(AnySpaces):
    """An observation without a part."""

    def step(self, action):
        observation, *rest = super().step(action)
        del observation["kind"]
        return observation, *rest


@family
def test_first_observations_and_those_of_dicts(algorithm):
    when = r"[\s\S]*\(raised by the environment in a reset\)" if sys.version_info >= (3, 11) else ""
    with pytest.raises(ValueError, match=rf"shape \(7,\){when}"):
        model_with(algorithm, WrongReset(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))).learn(10)
    env = DummyVecEnv([lambda: LacksKey(DICT, spaces.Discrete(2))])
    with pytest.raises(
        ValueError, match=r"keys of observation: 'kind' is missing at vector step 0 .*: allowed.*'kind'"
    ):
        algorithm("MultiInputPolicy", env, device="cpu", policy_kwargs={"net_arch": [4]}, **SMALL[algorithm]).learn(10)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize(
    "happens",
    [lambda obs, reward, *rest: (obs, np.zeros(2), *rest), lambda obs, *rest: (obs, 1.0, False, {})],
    ids=["reward", "four values"],
)
def test_what_is_no_step_is_an_error_of_the_vec_env(algorithm, monitored, happens):
    env: gym.Env = Mishap(3, happens)
    model = model_with(algorithm, Countdown(), Monitor(env) if monitored else env)
    with pytest.raises((ValueError, TypeError), match=AT_STEP_2):
        model.learn(100)


@family
def test_ctrl_c_in_the_environment_and_in_an_update(algorithm, tmp_path):
    """The last checkpoint continues; the model is as after the last whole update, and usable."""
    env = Mishap(33, KeyboardInterrupt())
    model = model_with(algorithm, Countdown(), env)
    with pytest.raises(KeyboardInterrupt):
        model.learn(200, CheckpointCallback(10, tmp_path / "env"))
    assert all(p.isfinite().all() for p in model.policy.parameters())
    resumed = resume(tmp_path / "env", model.env)
    resumed.env.set_attr("at", None)  # it has been taken back to before that step
    resumed.learn(20, reset_num_timesteps=False)
    assert resumed.num_timesteps >= 40

    model = model_with(algorithm, Countdown(), Countdown()).learn(30)
    step, count = model.policy.value_net.forward, []

    def interrupted(x):
        count.append(1)
        if len(count) > 4 and model.policy.training:
            raise KeyboardInterrupt
        return step(x)

    model.policy.value_net.forward = interrupted
    with nothing_moves(model), pytest.raises(KeyboardInterrupt):
        model.learn(200, CheckpointCallback(10, tmp_path / "update"), reset_num_timesteps=False)
    model.policy.value_net.forward = step
    model.learn(30, reset_num_timesteps=False)
    assert resume(tmp_path / "update", model.env).num_timesteps >= 30
