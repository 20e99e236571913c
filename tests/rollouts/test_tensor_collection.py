"""
Claim: collecting in tensors is collecting through numpy, from the same seeds: the same batch and the same training, up
to the rounding of values that are computed together; callbacks, checkpoints and errors are the same, too. So is the way
of a GPU, where no number is looked at before the rollout ends, here on the CPU.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_pgext import (
    NPG,
    REINFORCE,
    VPG,
    CheckpointCallback,
    ClippedCriticPPO,
    TensorVecEnv,
    TensorVecNormalize,
    load,
    resume,
)
from sb3_pgext.checkpoints import files
from sb3_pgext.engine import graphs
from sb3_pgext.envs import chain
from sb3_pgext.rollouts import StepCollector, TensorCollector
from sb3_pgext.vec_envs import TorchCartPole, TorchEnv, TorchMDP
from tests.checkpoints.models import assert_same
from tests.tracing import traced_only

SMALL = {
    VPG: {"n_steps": 12, "batch_size": 16, "n_critic_updates": 2},
    NPG: {"n_steps": 12, "batch_size": 16, "n_critic_updates": 2},
    ClippedCriticPPO: {"n_steps": 12, "batch_size": 16, "n_epochs": 2},
}


class Walk(TorchEnv):
    """
    A random walk that ends beyond 2, where every fifth step is a time limit; for any spaces.

    :param what: "observations" or "rewards", of which those of the third sub-environment are wrong at step ``at``
    """

    def __init__(self, num_envs=4, observed="box", low=-1.0, what=None, wrong=float("nan"), at=7):
        box = spaces.Box(-9, 9, (2,), np.float32)
        kinds = {"box": box, "dict": spaces.Dict({"far": spaces.Discrete(2), "walk": box})}
        self.observed, self.what, self.wrong, self.at, self.n_steps = observed, what, wrong, at, 0
        super().__init__(num_envs, kinds[observed], spaces.Box(low, 1, (2,), np.float32), 2, max_episode_steps=5)

    def initial(self, uniform):
        return uniform - 0.5

    def transition(self, state, actions, uniform):
        state = state + actions + uniform - 0.5
        return state, actions.sum(1) - state.square().sum(1), state.abs().amax(1) > 2

    def observe(self, state):
        return {"walk": state, "far": (state[:, 0].abs() > 1).long()} if self.observed == "dict" else state

    def step(self, actions):
        self.n_steps += 1
        step = super().step(actions)
        if self.what and self.n_steps == self.at:
            getattr(step, self.what)[2] = self.wrong
        return step


def cart_pole(n=4):
    return TorchCartPole(n, max_episode_steps=10)


CASES = {
    "cart pole": (cart_pole, {}),
    "finite MDP": (lambda: TorchMDP(chain(4, horizon=5), 4), {}),
    "box": (Walk, {}),
    "box, gSDE": (Walk, {"use_sde": True, "sde_sample_freq": 3}),
    "box, squashed": (lambda: Walk(low=-0.5), {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "dict": (lambda: Walk(observed="dict"), {}),
}


def model_of(env, cls=ClippedCriticPPO, wrap=TensorVecEnv, **arguments):
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return cls(policy, wrap(env), **{"seed": 0, "device": "cpu", **SMALL.get(cls, {}), **arguments})


def through_numpy(env):
    return VecMonitor(TensorVecEnv(env))


def in_normalize(env):
    return TensorVecNormalize(TensorVecEnv(env))


@pytest.fixture(params=["at hand", "as on a GPU"])
def way(request, monkeypatch):
    """Numbers are looked at as they come, or not before the rollout ends."""
    if request.param == "as on a GPU":
        for module in ("tensors", "tensor_normalize"):
            monkeypatch.setattr(f"sb3_pgext.vec_envs.{module}.at_hand", lambda device: False)
    return request.param


def collected(model, callback=None):
    _, callback = model._setup_learn(10**9, callback)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def columns(model):
    """The rollout as the update sees it."""
    rollout = vars(model.rollout)
    observations = rollout.pop("observations")
    return rollout | (observations if isinstance(observations, dict) else {"observations": observations})


def assert_close(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        th.testing.assert_close(found[name], column, **tolerances, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("case", CASES)
def test_the_batch_is_that_of_the_numpy_side(case, way):
    env, arguments = CASES[case]
    ours = collected(model_of(env(), **arguments))
    assert type(ours.collector) is TensorCollector
    theirs = collected(model_of(env(), wrap=through_numpy, **arguments))
    assert type(theirs.collector) is StepCollector
    found, expected = columns(ours), columns(theirs)
    for name in expected.keys() - {"advantages", "returns"}:  # which have the values of final observations in them
        assert th.equal(found[name], expected[name]), name
    assert_close(found, expected)
    assert len(theirs.collector.final_observations) > 0  # there were time limits
    np.testing.assert_array_equal(ours._last_episode_starts, theirs._last_episode_starts)
    assert ours.num_timesteps == theirs.num_timesteps == 48


@pytest.mark.parametrize("cls", SMALL)
def test_the_training_is_that_of_the_numpy_side(cls, way):
    ours, theirs = (model_of(cart_pole(), cls, wrap).learn(400) for wrap in (TensorVecEnv, through_numpy))
    for one, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    found, expected = ([(info["r"], info["l"]) for info in model.ep_info_buffer] for model in (ours, theirs))
    assert found == expected
    assert len(found) > 20


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (ClippedCriticPPO, {"recompute_advantage": True}),
        (VPG, {"advantage": "n_step", "critic_target": "mc"}),
        (VPG, {"critic": "q", "advantage": "q", "critic_target": "sarsa"}),
    ],
    ids=["recomputed", "n_step", "critic of Q"],
)
def test_other_advantages(cls, arguments, way):
    ours, theirs = (model_of(cart_pole(), cls, wrap, **arguments).learn(200) for wrap in (TensorVecEnv, through_numpy))
    for one, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_normalised(way):
    def normalised(wrap, learn):
        model = model_of(Walk(), wrap=wrap)
        return model.learn(200) if learn else collected(model)

    def sb3s(env):
        return VecNormalize(through_numpy(env))

    ours, theirs = (normalised(wrap, learn=False) for wrap in (in_normalize, sb3s))
    assert_close(columns(ours), columns(theirs), rtol=1e-4, atol=1e-4)
    assert type(ours.collector) is TensorCollector
    ours, theirs = (normalised(wrap, learn=True) for wrap in (in_normalize, sb3s))
    for name in ("obs_rms", "ret_rms"):
        found, expected = (getattr(model.get_vec_normalize_env(), name) for model in (ours, theirs))
        for moment in ("mean", "var", "count"):
            np.testing.assert_allclose(getattr(found, moment), getattr(expected, moment), rtol=1e-3, atol=1e-3)
    assert [e["r"] for e in ours.ep_info_buffer] == pytest.approx([e["r"] for e in theirs.ep_info_buffer], rel=1e-3)


def test_an_environment_may_write_into_the_same_memory(way):
    class InPlace(Walk):
        kept = None

        def step(self, actions):
            step = super().step(actions)
            self.kept = self.kept or type(step)(*map(th.clone, step))
            for x, new in zip(self.kept, step, strict=True):
                x.copy_(new)
            return self.kept

    assert_close(columns(collected(model_of(InPlace()))), columns(collected(model_of(Walk()))))


@pytest.mark.parametrize("dtype", [th.float64, th.float16, th.bfloat16])
def test_rewards_of_another_precision(dtype, way):
    class Other(Walk):
        def step(self, actions):
            step = super().step(actions)
            return step._replace(rewards=step.rewards.to(dtype))

    found, expected = (columns(collected(model_of(env))) for env in (Other(), Walk()))
    assert_close(found, expected, rtol=0.1, atol=0.2)
    assert not th.equal(found["advantages"], expected["advantages"]) or dtype == th.float64


def test_whole_episodes_go_through_numpy():
    model = REINFORCE("MlpPolicy", TensorVecEnv(cart_pole()), n_episodes=4, seed=0, device="cpu").learn(100)
    assert len(model.ep_info_buffer) > 4


def test_the_collector_is_that_of_the_environment():
    model = model_of(cart_pole()).learn(48)
    assert type(model.collector) is TensorCollector
    model.set_env(through_numpy(cart_pole()))
    model.learn(48)
    assert type(model.collector) is StepCollector


def test_a_buffer_of_ones_own():
    class Own(RolloutBuffer):
        n_added = 0

        def add(self, *columns):
            self.n_added += 1
            super().add(*columns)

    ours = collected(model_of(cart_pole(), rollout_buffer_class=Own))
    assert ours.rollout_buffer.n_added == 12
    assert_close(columns(ours), columns(collected(model_of(cart_pole()))))


def test_as_on_a_gpu_it_must_be_ours(monkeypatch):
    monkeypatch.setattr("sb3_pgext.vec_envs.tensors.at_hand", lambda device: False)
    allowed = "rollout_buffer_class='RolloutBuffer': allowed is None or a subclass of StepBuffer or DictStepBuffer"
    with pytest.raises(ValueError, match=allowed):
        collected(model_of(cart_pole(), rollout_buffer_class=RolloutBuffer))


# --- compiled ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_compiled_it_is_the_same(case, monkeypatch):
    monkeypatch.setattr(graphs, "package_of", traced_only)
    env, arguments = CASES[case]
    compiled = collected(model_of(env(), compile=True, **arguments))
    assert_close(columns(compiled), columns(collected(model_of(env(), **arguments))), rtol=1e-4, atol=1e-5)


def test_acting_and_the_step_are_one_graph(monkeypatch):
    monkeypatch.setattr(graphs, "package_of", traced_only)
    env, calls = cart_pole(), []
    model = model_of(env, compile=True)
    transition = env.transition
    env.transition = lambda *arguments: calls.append(1) or transition(*arguments)
    for limit, n_graphs in ((10, 1), (10, 1), (3, 2)):  # another number is another graph
        env.max_episode_steps = limit
        collected(model)
        assert len(calls) == n_graphs
    assert {info["l"] for info in model.ep_info_buffer} == {3}


@pytest.mark.filterwarnings("ignore:compile=True. acting runs uncompiled:UserWarning")
def test_a_step_that_cannot_be_compiled(monkeypatch):
    class Looks(TorchCartPole):
        def transition(self, state, actions, uniform):
            assert state.isfinite().all().item()
            return super().transition(state, actions, uniform)

    compiled = []
    monkeypatch.setattr(graphs, "package_of", lambda *graph: compiled.append(graph) or traced_only(*graph))
    found = collected(model_of(Looks(4, 10), compile=True))
    assert len(compiled) == 1  # acting
    assert_close(columns(found), columns(collected(model_of(cart_pole()))), rtol=1e-4, atol=1e-5)


# --- callbacks ---------------------------------------------------------------------------------------------------


class Watch(BaseCallback):
    """Keeps what it finds at each step, and ends the training at one."""

    def __init__(self, until=10**9):
        super().__init__()
        self.seen, self.until = [], until

    def _on_step(self):
        names = ("actions", "clipped_actions", "new_obs", "rewards", "dones")
        arrays = [np.array(self.locals[name]) for name in names]
        tensors = [self.locals[name].clone() for name in ("obs_tensor", "values", "log_probs")]
        infos = [{k: v for k, v in info.items() if k != "episode"} for info in self.locals["infos"]]
        returns = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.seen.append((arrays, tensors, infos, returns, self.num_timesteps))
        return len(self.seen) < self.until


def test_callbacks_find_what_they_find_in_sb3(way):
    seen = []
    for cls, wrap in ((ClippedCriticPPO, TensorVecEnv), (ClippedCriticPPO, through_numpy), (PPO, through_numpy)):
        watch = Watch()
        arguments = {} if cls is ClippedCriticPPO else SMALL[ClippedCriticPPO]
        model_of(Walk(low=-0.5), cls, wrap, **arguments).learn(48, watch)
        seen.append(watch.seen)
    for steps in zip(*seen, strict=True):
        for found, expected in pairwise(steps):
            for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype)
                np.testing.assert_array_equal(one, other)
            for one, other in zip(found[2], expected[2], strict=True):
                assert one.keys() == other.keys()
                np.testing.assert_array_equal(one.get("terminal_observation"), other.get("terminal_observation"))
                assert one["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert found[3] == pytest.approx(expected[3], rel=1e-5)
            assert found[4] == expected[4]


def test_a_callback_ends_the_training(way):
    ours, theirs = (model_of(cart_pole(), wrap=wrap).learn(400, Watch(17)) for wrap in (TensorVecEnv, through_numpy))
    assert ours.num_timesteps == theirs.num_timesteps == 17 * 4
    np.testing.assert_array_equal(ours._last_obs, theirs._last_obs)
    assert ours.rollout_buffer.pos == theirs.rollout_buffer.pos == 4


def test_sb3s_callbacks(way, tmp_path):
    model = model_of(cart_pole())
    model.learn(10_000, StopTrainingOnMaxEpisodes(5))
    assert 20 <= len(model.ep_info_buffer) < 24  # 5 in each sub-environment
    env = TensorVecNormalize(TensorVecEnv(cart_pole()))
    model = ClippedCriticPPO("MlpPolicy", env, seed=0, device="cpu", **SMALL[ClippedCriticPPO])
    evaluation = TensorVecNormalize(TensorVecEnv(cart_pole()), training=False, norm_reward=False)
    callback = EvalCallback(evaluation, n_eval_episodes=3, eval_freq=24, log_path=str(tmp_path), warn=False)
    model.learn(96, callback)
    assert callback.last_mean_reward > 1
    assert evaluation.obs_rms.count == pytest.approx(env.obs_rms.count, abs=60)


def test_what_is_written_into_the_buffer_is_learnt_from(way):
    class Zero(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.rollout_buffer.rewards[:] = 0

    found = collected(model_of(cart_pole()), Zero())
    expected = collected(model_of(cart_pole(), wrap=through_numpy), Zero())
    assert_close(columns(found), columns(expected))


def test_episodes_are_logged(way):
    model = model_of(cart_pole()).learn(96)
    model.dump_logs()
    logged = np.mean([info["r"] for info in model.ep_info_buffer])
    assert 5 < logged <= 10
    many = collected(model_of(cart_pole(64), stats_window_size=7))
    assert len(many.ep_info_buffer) == 7


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [TensorVecEnv, in_normalize])
@pytest.mark.parametrize("given_env", [False, True])
def test_a_training_is_resumed_to_the_bit(wrap, given_env, tmp_path):
    whole = model_of(cart_pole(), wrap=wrap).learn(480, CheckpointCallback(48, tmp_path, keep=100))
    checkpoint = files.found(tmp_path)[4]
    th.manual_seed(5)
    model = resume(checkpoint, env=wrap(cart_pole()) if given_env else None)
    assert 0 < model.num_timesteps < 480
    model.learn(480 - model.num_timesteps, reset_num_timesteps=False)
    assert_same(whole, model)


def test_statistics_are_loaded_with_the_model(tmp_path):
    model = model_of(cart_pole(), wrap=in_normalize).learn(480, CheckpointCallback(48, tmp_path))
    env = in_normalize(cart_pole())
    load(tmp_path, env=env)
    assert 0 < env.obs_rms.count <= model.get_vec_normalize_env().obs_rms.count
    assert env.obs_rms.count > 300
    assert env.ret_rms.var != 1


def test_sb3s_save_and_load(tmp_path):
    model = model_of(cart_pole()).learn(96)
    model.save(tmp_path / "model")
    loaded = ClippedCriticPPO.load(tmp_path / "model", env=TensorVecEnv(cart_pole()), device="cpu")
    loaded.learn(96)
    assert type(loaded.collector) is TensorCollector


# --- bad input ---------------------------------------------------------------------------------------------------

BAD = {
    "nan reward": ({"what": "rewards"}, r"reward=nan of sub-environment 2 at vector step 6 of this rollout"),
    "infinite reward": (
        {"what": "rewards", "wrong": float("inf")},
        r"reward=inf of sub-environment 2 at vector step 6 of this rollout",
    ),
    "nan observation": (
        {"what": "observations"},
        r"observation=\[nan nan\] of sub-environment 2 at vector step 7 of this rollout",
    ),
}


@pytest.mark.parametrize("wrap", [TensorVecEnv, in_normalize])
@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_are_named(case, wrap, way):
    arguments, message = BAD[case]
    if way == "as on a GPU":
        message = r"action, reward or observation of sub-environment 2 at vector step 6 of this rollout is not finite"
    model = model_of(Walk(), wrap=wrap)
    model.learn(96)
    env, normalizer = model.env.unwrapped.env, model.get_vec_normalize_env()
    vars(env).update({"what": "rewards", "wrong": float("nan")} | arguments | {"n_steps": 0})
    parameters = [p.clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=message):
        model.learn(96, reset_num_timesteps=False)
    for before, p in zip(parameters, model.policy.parameters(), strict=True):
        assert th.equal(before, p)
    if normalizer is not None:
        assert np.isfinite(normalizer.obs_rms.mean).all()
        assert np.isfinite(normalizer.ret_rms.var)
    model.learn(96)  # with new episodes


def test_a_final_observation_that_is_not_finite(way):
    class Bad(Walk):
        def step(self, actions):
            step = super().step(actions)
            step.final_observations[step.truncated.nonzero()] = float("nan")
            return step

    message = r"V of the terminal observation of sub-environment . at vector step \d of this rollout is not finite"
    with pytest.raises(ValueError, match=message):
        collected(model_of(Bad()))


def test_shapes_are_named_with_their_step(way):
    class Bad(Walk):
        def step(self, actions):
            step = super().step(actions)
            return step._replace(rewards=step.rewards[:2]) if self.n_steps == 5 else step

    with pytest.raises(ValueError, match=r"shape of rewards=\(2,\): allowed is \(4,\)"):
        collected(model_of(Bad()))


def test_a_device_that_is_not_the_models():
    model = model_of(cart_pole())
    _, callback = model._setup_learn(10**9)
    model.env.device = th.device("meta")
    with pytest.raises(ValueError, match="device of env='meta': allowed is 'cpu', that of the model"):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)


# --- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You are trying to run:UserWarning")
@pytest.mark.parametrize("cls", SMALL)
def test_it_trains_on_each_device(cls, device):
    env = TensorVecNormalize(TensorVecEnv(TorchCartPole(4, max_episode_steps=10, device=device)))
    model = cls("MlpPolicy", env, seed=0, device=device, **SMALL[cls]).learn(192)
    assert type(model.collector) is TensorCollector
    assert all(column.device.type == device for column in columns(model).values())
    assert len(model.ep_info_buffer) > 10
    assert env.obs_rms.count == pytest.approx(196)
    assert np.isfinite(env.obs_rms.mean).all()


# --- learning ----------------------------------------------------------------------------------------------------


def test_it_learns_cart_pole():
    model = model_of(TorchCartPole(64), n_steps=32, batch_size=512, n_epochs=10, learning_rate=3e-3)
    model.learn(64 * 32 * 25)
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > 200
