"""Claim: collecting in two halves, each of which steps while the policy acts for the other, changes no number."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from benchmarks.cores import OneAtATime
from sb3_pgext import REINFORCE, VPG, ClippedCriticPPO, HalvesVecEnv
from sb3_pgext.engine.eager import Engine
from tests.environments import RewardsAndLimits, Scripted

OBSERVATIONS = {
    "box": lambda: spaces.Box(-1, 1, (3,)),
    "dict": lambda: spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4)}),
}
ACTIONS = {"box": lambda: spaces.Box(-0.5, 0.5, (2,)), "discrete": lambda: spaces.Discrete(3)}
MODELS = {
    "VPG": lambda *a, **k: VPG(*a, n_steps=7, **k),
    "ClippedCriticPPO": lambda *a, **k: ClippedCriticPPO(*a, n_steps=8, batch_size=16, n_epochs=2, **k),
    "REINFORCE": lambda *a, **k: REINFORCE(*a, n_episodes=9, **k),
    "REINFORCE, cut": lambda *a, **k: REINFORCE(*a, n_episodes=9, max_episode_steps=3, **k),
}


class Asynchronous(DummyVecEnv):
    """Steps when it is waited for, as if by itself, and writes down when it was sent and received."""

    asynchronous = True

    def __init__(self, env_fns, log, name):
        super().__init__(env_fns)
        self.log, self.name = log, name

    def step_async(self, actions):
        self.log.append(f"send {self.name}")
        super().step_async(actions.copy())

    def step_wait(self):
        self.log.append(f"receive {self.name}")
        return super().step_wait()


class Locals(BaseCallback):
    """Keeps what each vector step shows, and writes into the log of the halves."""

    NAMES = ("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones")

    def __init__(self, log, stop_at=None):
        super().__init__()
        self.steps, self.infos, self.log, self.stop_at = [], [], log, stop_at

    def _on_step(self):
        self.log.append("callback")
        self.steps.append({name: self.locals[name] for name in self.NAMES})
        self.infos += self.locals["infos"]
        return self.stop_at is None or self.n_calls < self.stop_at


def makers(observations, actions, n_envs):
    return [lambda: RewardsAndLimits(OBSERVATIONS[observations](), ACTIONS[actions]()) for _ in range(n_envs)]


def halves(env_fns, log=None, kind=HalvesVecEnv):
    log, middle = [] if log is None else log, len(env_fns) // 2
    return kind(Asynchronous(env_fns[:middle], log, "first"), Asynchronous(env_fns[middle:], log, "second"))


def act_in_halves(monkeypatch):
    """Plain collection draws for all sub-environments at once. Here it draws for the first half, then the second."""
    plain = Engine.acting

    def acting(self, *arguments, **keywords):
        act = plain(self, *arguments, **keywords)

        def rows(x, part):
            return {k: rows(v, part) for k, v in x.items()} if isinstance(x, dict) else x[part]

        def both(observations):
            n = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
            if n < 4:  # one half, by itself
                return act(observations)
            parts = [act(rows(observations, part)) for part in (slice(0, n // 2), slice(n // 2, None))]
            return [None if a is None else th.cat([a, b]) for a, b in zip(*parts, strict=True)]

        return both

    monkeypatch.setattr(Engine, "acting", acting)


def learn(env, name, callback, n_steps=150, **parameters):
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = MODELS[name](policy, env, seed=3, device="cpu", **parameters)
    model.learn(n_steps, callback)
    return model


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif one is None:
        assert other is None
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("observations", "actions", "wrapped"),
    [("box", "box", False), ("box", "discrete", True), ("dict", "box", False)],
    ids=["bare", "monitored and normalised", "dict"],
)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_training_to_the_bit(name, observations, actions, wrapped, monkeypatch):
    """What callbacks see of whole vector steps, and parameters, beside plain collection that acts in halves."""
    act_in_halves(monkeypatch)
    seen, models = [], []
    for kind in (DummyVecEnv, halves):
        env = kind(makers(observations, actions, 4))
        if wrapped:
            env = VecNormalize(VecMonitor(env), training=False)
        callback = Locals([])
        models.append(learn(env, name, callback))
        seen.append(callback)
    assert len(seen[0].steps) == len(seen[1].steps) > 30
    for one, other in zip(seen[0].steps, seen[1].steps, strict=True):
        assert_same(one, other)
    assert [i.get("TimeLimit.truncated") for i in seen[0].infos] == [
        i.get("TimeLimit.truncated") for i in seen[1].infos
    ]
    assert models[0].num_timesteps == models[1].num_timesteps
    assert_same(*(dict(model.policy.state_dict()) for model in models))


@pytest.mark.parametrize("name", ["VPG", "REINFORCE"])
def test_one_half_is_sent_ahead_while_the_other_one_steps(name):
    log = []
    learn(halves(makers("box", "box", 4), log), name, Locals(log), 8)
    begin = ["send first", "send second", "receive first"]
    step = ["send first", "receive second", "callback", "send second", "receive first"]
    assert log[:13] == [*begin, *step, *step]
    assert log[-2:] == ["receive second", "callback"]  # at the end of a rollout nothing is ahead
    assert log.count("send first") == log.count("send second") == log.count("callback")


def test_what_the_benchmark_calls_one_half_at_a_time():
    """The same numbers, without any overlap."""
    log, models = [], []
    for kind in (HalvesVecEnv, OneAtATime):
        models.append(learn(halves(makers("box", "box", 4), log, kind), "VPG", Locals(log), 28))
        if kind is HalvesVecEnv:
            log.clear()
    assert log[:5] == ["send first", "receive first", "send second", "receive second", "send first"]
    assert_same(*(dict(model.policy.state_dict()) for model in models))


def test_a_batch_that_waits_for_a_reset(monkeypatch):
    """Cut episodes with nobody playing on: the environment is reset in the middle of the batch."""
    act_in_halves(monkeypatch)
    models = []
    for kind in (DummyVecEnv, halves):
        env = kind([lambda: Scripted([50]) for _ in range(4)])
        models.append(learn(env, "REINFORCE, cut", None, 30))
    assert_same(*(dict(model.policy.state_dict()) for model in models))
    assert models[0].num_timesteps == models[1].num_timesteps


@pytest.mark.parametrize("name", ["VPG", "REINFORCE"])
def test_a_callback_ends_the_training(name):
    """The step that was ahead counts, and the next training begins with new episodes."""
    env = halves(makers("box", "box", 4))
    model = learn(env, name, Locals([], stop_at=3))
    assert model.num_timesteps == 3 * 4 + 2
    assert not env.stepping
    assert model._last_obs is None
    callback = Locals([])
    model.learn(30, callback, reset_num_timesteps=False)
    assert len(callback.steps) >= 7
    assert_same(callback.steps[0]["dones"], np.zeros(4, bool))


def test_a_callback_that_fails_leaves_nothing_ahead():
    class Fails(BaseCallback):
        def _on_step(self):
            raise KeyError("mine")

    env = halves(makers("box", "box", 4))
    model = MODELS["VPG"]("MlpPolicy", env, device="cpu")
    with pytest.raises(KeyError, match="mine") as held:
        model.learn(30, Fails())
    assert not env.stepping
    model.learn(30)
    del held
    assert model.num_timesteps >= 30


def test_normalised_while_it_learns():
    """The first half is normalised before VecNormalize has learnt from it, and stored as the policy saw it."""

    def run(kind):
        env = VecNormalize(VecMonitor(kind(makers("box", "box", 4))))
        callback = Locals([])
        model = learn(env, "VPG", callback, 28)
        return model, callback.steps

    (model, steps), (again, _) = run(halves), run(halves)
    assert_same(dict(model.policy.state_dict()), dict(again.policy.state_dict()))
    observations = np.stack([step["obs_tensor"] for step in steps])
    new_obs = np.stack([step["new_obs"] for step in steps])
    assert (observations[1:, 2:] == new_obs[:-1, 2:]).all()
    inner = slice(1, 6)  # within a rollout
    assert (observations[inner, :2] != new_obs[0:5, :2]).all()
    _, plain = run(DummyVecEnv)
    assert np.abs(observations[inner] - np.stack([s["obs_tensor"] for s in plain])[inner]).max() < 3


@pytest.mark.parametrize("reason", ["VecFrameStack", "use_sde"])
def test_where_halves_must_step_together_a_warning_says_why(reason):
    env, sde = halves(makers("box", "box", 4)), reason == "use_sde"
    env = env if sde else VecFrameStack(env, 2)
    with pytest.warns(UserWarning, match=f"The halves of HalvesVecEnv step together, because of {reason}"):
        model = learn(env, "VPG", Locals([]), use_sde=sde)
    plain = DummyVecEnv(makers("box", "box", 4))
    other = learn(plain if sde else VecFrameStack(plain, 2), "VPG", Locals([]), use_sde=sde)
    assert_same(dict(model.policy.state_dict()), dict(other.policy.state_dict()))


def test_wrappers_around_each_half():
    log, env_fns = [], makers("box", "box", 4)
    parts = [VecCheckNan(Asynchronous(env_fns[:2], log, name), raise_exception=True) for name in ("first", "second")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(HalvesVecEnv(*parts), "VPG", Locals(log), 8)
    assert log[3] == "send first"


def test_images_that_sb3_transposes():
    def make():
        return RewardsAndLimits(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2))

    env, callback = halves([make] * 4), Locals([])
    model = VPG("CnnPolicy", env, n_steps=4, device="cpu")
    assert isinstance(model.env, VecTransposeImage)
    model.learn(16, callback)
    for step, following in zip(callback.steps[:3], callback.steps[1:], strict=False):
        assert_same(step["new_obs"], following["obs_tensor"])


def test_bad_numbers_of_the_half_that_is_ahead_are_named():
    class Spoilt(RewardsAndLimits):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation * np.nan if self.t == 3 else observation, *rest

    good = makers("box", "box", 4)
    env = halves([good[0], lambda: Spoilt(OBSERVATIONS["box"](), ACTIONS["box"]()), *good[2:]])
    with pytest.raises(ValueError, match="sub-environment 1 at vector step 3"):
        learn(env, "VPG", None)
    assert not env.stepping


def test_what_the_half_that_is_ahead_raises_gets_a_note():
    class Broken(RewardsAndLimits):
        def step(self, action):
            if self.t == 2:
                raise RuntimeError("broken")
            return super().step(action)

    env = halves([lambda: Broken(OBSERVATIONS["box"](), ACTIONS["box"]()), *makers("box", "box", 3)])
    with pytest.raises(RuntimeError, match="broken") as caught:
        learn(env, "VPG", None)
    if hasattr(caught.value, "__notes__"):
        assert "vector step 2" in caught.value.__notes__[0]
