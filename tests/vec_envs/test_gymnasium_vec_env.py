"""Claim: over any vector environment that resets in the same step, GymnasiumVecEnv does what DummyVecEnv does."""

import warnings
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics, TransformReward
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_pgext import REINFORCE, ClippedCriticPPO, GymnasiumVecEnv
from sb3_pgext.vec_envs.cart_pole import SameStepCartPole
from tests.environments import DICT, VECTOR, AnySpaces

SAME_STEP, NEXT_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


def sync(makers, **arguments):
    return SyncVectorEnv(makers, autoreset_mode=SAME_STEP, **arguments)


def async_(makers, **arguments):
    return AsyncVectorEnv(makers, autoreset_mode=SAME_STEP, **arguments)


VECTOR_ENVS = {
    "sync": sync,
    "sync, in place": lambda makers: sync(makers, copy=False),
    "async": async_,
    "async, in place": lambda makers: async_(makers, copy=False),
    "async, no shared memory": lambda makers: async_(makers, shared_memory=False),
}


class Talkative(gym.Env):
    """
    Random episodes of 1 to 6 steps, some terminated, some truncated, some both, with infos of every kind.

    :param space: of the observations
    """

    action_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 7}  # noqa: RUF012
    rendered = 0

    def __init__(self, space=VECTOR, render_mode=None):
        self.observation_space, self.render_mode = deepcopy(space), render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t, self.length, self.options = 0, int(self.np_random.integers(1, 7)), options
        return self.observation_space.sample(), {"length": self.length, "t": 0}

    def step(self, action):
        self.t += 1
        info = {"t": self.t, "vector": action * 2, "name": f"step {self.t}", "nested": {"x": float(action[0]), "n": 1}}
        if self.t % 2:
            info |= {"odd": [self.t], "TimeLimit.truncated": True}  # a lie, most of the time
        ends, cut = self.np_random.random(2) < 0.7
        at_end = self.t == self.length
        return self.observation_space.sample(), float(action[0]), at_end and ends, at_end and (cut or not ends), info

    def render(self):
        self.rendered += 1
        return np.full((2, 3, 3), self.t, np.uint8)

    def double(self, number, plus=0):
        return 2 * number + plus + self.t


def talkative(n, space=VECTOR, **parameters):
    return [lambda: Talkative(space, **parameters) for _ in range(n)]


def assert_same(one, other):
    """Equal in value, shape and type, whatever the nesting."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other, strict=isinstance(other, np.ndarray))


def assert_same_trajectories(one, other, n_steps, seed=3):
    """From the same seeds and actions: observations, rewards, ends, infos, and the infos of the resets."""
    for env in (one, other):
        env.seed(seed)
    assert_same(one.reset(), other.reset())
    one.action_space.seed(seed)
    n_ends = 0
    for _ in range(n_steps):
        actions = np.array([one.action_space.sample() for _ in range(one.num_envs)])
        (*outcome, infos), (*expected, expected_infos) = one.step(actions), other.step(actions)
        assert_same(outcome, expected)
        assert_same(infos, expected_infos)
        assert_same(one.reset_infos, other.reset_infos)
        n_ends += expected[2].sum()
    return n_ends


@pytest.mark.parametrize("vector_env", VECTOR_ENVS)
def test_the_trajectories_are_those_of_dummy_vec_env(vector_env):
    env, dummy = GymnasiumVecEnv(VECTOR_ENVS[vector_env](talkative(3))), DummyVecEnv(talkative(3))
    assert assert_same_trajectories(env, dummy, 40) > 20
    assert_same(env.reset(), dummy.reset())
    assert_same(env.reset_infos, dummy.reset_infos)
    env.close()


@pytest.mark.parametrize("vector_env", ["sync", "async"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        DICT,
    ],
    ids=lambda space: type(space).__name__,
)
def test_observations_of_every_kind(vector_env, space):
    env, dummy = GymnasiumVecEnv(VECTOR_ENVS[vector_env](talkative(2, space))), DummyVecEnv(talkative(2, space))
    assert assert_same_trajectories(env, dummy, 20) > 5
    env.close()


def cart_poles(n, limit=30):
    return [lambda: gym.make("CartPole-v1", max_episode_steps=limit) for _ in range(n)]


@pytest.mark.parametrize("normalised", [False, True])
def test_wrappers_of_sb3_see_no_difference(normalised):
    def wrapped(env):
        env = VecMonitor(env)
        return VecFrameStack(VecNormalize(env) if normalised else env, 2)

    env, dummy = wrapped(GymnasiumVecEnv(sync(cart_poles(3)))), wrapped(DummyVecEnv(cart_poles(3)))
    for each in (env, dummy):
        each.seed(0)
    assert_same(env.reset(), dummy.reset())
    episodes = 0
    for _ in range(80):
        actions = np.random.default_rng(episodes).integers(0, 2, 3)
        (*outcome, infos), (*expected, expected_infos) = env.step(actions), dummy.step(actions)
        assert_same(outcome, expected)
        for info, expected_info in zip(infos, expected_infos, strict=True):
            for timed in (info.get("episode", {}), expected_info.get("episode", {})):
                timed.pop("t", None)
        assert_same(infos, expected_infos)
        episodes += sum("episode" in info for info in infos)
    assert episodes > 6


LEARNERS = {
    "PPO": (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 2}),
    "A2C": (A2C, {}),
    "REINFORCE": (REINFORCE, {"n_episodes": 6}),
    "ClippedCriticPPO": (ClippedCriticPPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 2}),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_algorithm_learns_the_same(learner):
    algorithm, parameters = LEARNERS[learner]
    learnt = []
    for env in (GymnasiumVecEnv(sync(cart_poles(4))), DummyVecEnv(cart_poles(4))):
        model = algorithm("MlpPolicy", env, seed=1, device="cpu", **parameters).learn(300)
        learnt.append(model.policy.state_dict())
    for name, parameter in learnt[0].items():
        np.testing.assert_array_equal(parameter, learnt[1][name], err_msg=name)


# The vectorised CartPole, which has no sub-environments


def vectorised_cart_poles(n=3, **parameters):
    return gym.make_vec("CartPole-v1", n, vectorization_mode="vector_entry_point", **parameters)


def test_the_vectorised_cart_pole_against_single_ones_in_the_same_states():
    env = GymnasiumVecEnv(vectorised_cart_poles(5, max_episode_steps=25))
    dummy = DummyVecEnv(cart_poles(5, limit=25))
    state_of = env.env.unwrapped
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), state_of.state.T.astype(np.float32))
    dummy.reset()
    rng = np.random.default_rng(0)
    cut = ended = 0
    for each, single in enumerate(dummy.envs):
        single.unwrapped.state = state_of.state[:, each].copy()
    for _ in range(200):
        # Some fall soon, some are balanced until the limit.
        actions = np.where(np.arange(5) < 2, rng.integers(0, 2, 5), state_of.state[2] + state_of.state[3] > 0)
        observations, rewards, dones, infos = env.step(actions)
        expected, expected_rewards, expected_dones, expected_infos = dummy.step(actions)
        np.testing.assert_array_equal(dones, expected_dones)
        np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_allclose(observations[~dones], expected[~dones], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(observations, state_of.state.T.astype(np.float32))
        assert (abs(observations[dones]) <= 0.05).all()
        for e in np.flatnonzero(dones):
            terminal = [infos[e]["terminal_observation"], expected_infos[e]["terminal_observation"]]
            np.testing.assert_allclose(*terminal, rtol=1e-5, atol=1e-6)
            dummy.envs[e].unwrapped.state = state_of.state[:, e].copy()
        assert [i["TimeLimit.truncated"] for i in infos] == [i["TimeLimit.truncated"] for i in expected_infos]
        cut += sum(info["TimeLimit.truncated"] for info in infos)
        ended += dones.sum()
    assert 0 < cut < ended


def test_a_new_episode_of_the_vectorised_cart_pole_starts_where_it_starts_by_itself():
    """The same random numbers, one step earlier; and a step that only resets does not exist for the algorithm."""
    env, alone = GymnasiumVecEnv(vectorised_cart_poles()), vectorised_cart_poles()
    env.seed(5)
    alone.reset(seed=5)
    env.reset()
    push = np.ones(3, dtype=np.int64)
    done = np.zeros(3, dtype=bool)
    while not done.any():
        observations, rewards, done, _ = env.step(push)
        _, _, terminated, _, _ = alone.step(push)
    np.testing.assert_array_equal(done, terminated)
    after_its_own_reset = alone.step(push)[0]
    np.testing.assert_array_equal(observations[done], after_its_own_reset[done])
    lengths = []
    for _ in range(50):
        _, rewards, done, _ = env.step(push)
        lengths.append(done.sum())
        assert (rewards == 1).all()
    assert sum(lengths) >= 9


def test_options_of_the_cart_pole_count_once():
    env = GymnasiumVecEnv(vectorised_cart_poles())
    env.set_options({"low": 0.1, "high": 0.2})
    assert (env.reset() >= 0.1).all()
    done = np.zeros(3, dtype=bool)
    while not done.any():
        observations, _, done, _ = env.step(np.ones(3, dtype=np.int64))
    assert (abs(observations[done]) <= 0.05).all()


def test_wrappers_of_gymnasium_go_around_the_vectorised_cart_pole_in_the_same_step():
    env = GymnasiumVecEnv(TransformReward(SameStepCartPole(vectorised_cart_poles()), lambda r: 7 * r))
    env.reset()
    done = np.zeros(3, dtype=bool)
    while not done.any():
        observations, rewards, done, infos = env.step(np.ones(3, dtype=np.int64))
        assert (rewards == 7).all()
    assert (abs(observations[done]) <= 0.05).all()
    assert all(abs(infos[e]["terminal_observation"]).max() > 0.05 for e in np.flatnonzero(done))


# Refused


class Mine(VectorEnv):
    """Two sub-environments that count; each ends at 2. It returns the arrays that it goes on writing to."""

    num_envs = 2
    single_observation_space = spaces.Box(0, 9, (1,), np.float32)
    single_action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 9, (2, 1), np.float32)
    action_space = spaces.MultiDiscrete([2, 2])

    def __init__(self, mode):
        self.metadata = {"autoreset_mode": mode}

    def reset(self, *, seed=None, options=None):
        self.t = np.array([0.0, 1.0], np.float32)
        self.rewards = self.t.copy()
        return self.t[:, None], {"reset": np.arange(2)}

    def step(self, actions):
        self.t += 1
        self.rewards[:] = self.t
        infos = {"limit": 2, "t": self.t, "row": self.t[:, None]}
        ended = self.t == 2
        if ended.any():
            final = {"final_obs": self.t[:, None].copy(), "final_info": deepcopy(infos)}
            infos = deepcopy(infos) | final | {f"_{key}": ended for key in final}
        self.t[ended] = 0
        return self.t[:, None], self.rewards, ended, np.zeros(2, bool), infos


def test_a_vector_environment_of_ones_own():
    env = GymnasiumVecEnv(Mine(SAME_STEP))
    first = env.reset()
    observations, rewards, dones, infos = env.step(np.zeros(2))
    env.step(np.zeros(2))
    assert first.tolist() == [[0], [1]]
    assert observations.tolist() == [[1], [0]]
    assert rewards.tolist() == [1, 2]
    assert dones.tolist() == [False, True]
    common = {"TimeLimit.truncated": False, "limit": 2}
    assert infos[0] == common | {"t": 1, "row": np.array([1.0])}
    assert infos[1] == common | {"t": 2, "row": np.array([2.0]), "terminal_observation": np.array([2.0])}


@pytest.mark.parametrize(
    "env",
    [
        Mine(NEXT_STEP),
        Mine(None),
        SyncVectorEnv(talkative(2)),
        SyncVectorEnv(talkative(2), autoreset_mode=DISABLED),
        RecordEpisodeStatistics(vectorised_cart_poles()),
        NormalizeReward(vectorised_cart_poles()),
    ],
    ids=str,
)
def test_other_autoreset_modes_are_refused(env):
    with pytest.raises(ValueError, match=r"autoreset_mode of .*=.*: allowed is AutoresetMode.SAME_STEP, as with"):
        GymnasiumVecEnv(env)


def test_the_way_that_the_message_names():
    mode = {"autoreset_mode": SAME_STEP}
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=mode))
    env.reset()
    assert not env.step(np.zeros(2, dtype=np.int64))[2].any()


@pytest.mark.parametrize("env", [gym.make("CartPole-v1"), DummyVecEnv(talkative(1)), "CartPole-v1"], ids=type)
def test_what_is_no_vector_environment_is_refused(env):
    with pytest.raises(ValueError, match=r"env=.*: allowed is a gymnasium.vector.VectorEnv"):
        GymnasiumVecEnv(env)


# What is handed out belongs to the caller


@pytest.mark.parametrize("vector_env", ["sync", "sync, in place"])
def test_nothing_handed_out_is_written_to_later_or_shared(vector_env):
    """A copy of everything is compared with the original after further steps and after writing into the others."""
    env = GymnasiumVecEnv(VECTOR_ENVS[vector_env](talkative(3)))
    env.seed(0)
    handed_out = [env.reset()]
    for _ in range(10):
        handed_out.extend(env.step(np.ones((3, 2), np.float32)))
    copies = deepcopy(handed_out)
    env.step(np.zeros((3, 2), np.float32))
    assert_same(handed_out, copies)
    first, second = handed_out[4][:2]
    first["vector"][:] = 77
    first["nested"]["x"] = 77
    first["new"] = 77
    handed_out[1][:] = 77
    assert_same([second, handed_out[5:]], [copies[4][1], copies[5:]])


def test_a_terminal_observation_is_not_part_of_the_observations():
    env = GymnasiumVecEnv(Mine(SAME_STEP))
    env.reset()
    observations, _, _, infos = env.step(np.zeros(2))
    observations[:] = 77
    assert infos[1]["terminal_observation"].tolist() == [2]


# Seeds and options


@pytest.mark.parametrize("vector_env", ["sync", "async"])
def test_each_sub_environment_gets_its_own_seed_once(vector_env):
    env = GymnasiumVecEnv(VECTOR_ENVS[vector_env](talkative(3)))
    assert env.seed(8) == [8, 9, 10]
    first = env.reset()
    assert env.get_attr("np_random_seed") == [8, 9, 10]
    second = env.reset()
    assert (first != second).any()
    env.seed(8)
    assert_same(env.reset(), first)
    env.close()


def test_the_vectorised_cart_pole_takes_one_seed_once():
    env = GymnasiumVecEnv(vectorised_cart_poles())
    env.seed(8)
    first = env.reset()
    assert (env.reset() != first).any()
    env.seed(8)
    assert_same(env.reset(), first)
    assert_same(first, vectorised_cart_poles().reset(seed=8)[0])


def test_options_are_those_of_the_next_reset():
    env = GymnasiumVecEnv(sync(talkative(2)))
    env.set_options({"a": [1]})
    env.reset()
    assert env.get_attr("options") == [{"a": [1]}] * 2
    env.set_options([{"a": 2}, {"a": 2}])
    env.reset()
    assert env.get_attr("options") == [{"a": 2}] * 2
    env.reset()
    assert env.get_attr("options") == [None, None]
    env.set_options([{"a": 2}, {"a": 3}])
    with pytest.raises(ValueError, match=r"options=.*: allowed is the same for all"):
        env.reset()


# The sub-environments


def test_sub_environments_of_sync_vector_env():
    env = GymnasiumVecEnv(sync([lambda: Monitor(Talkative()), Talkative]))
    env.reset()
    assert [type(one) for one in env.envs] == [Monitor, Talkative]
    assert env.env_is_wrapped(Monitor) == [True, False]
    assert env.env_is_wrapped(Monitor, indices=1) == [False]
    assert env.env_method("double", 3, plus=1) == [7, 7]
    assert env.env_method("double", 3, indices=[1]) == [6]
    env.set_attr("t", 5, indices=1)
    assert env.get_attr("t") == [0, 5]
    assert env.get_attr("t", indices=[1]) == [5]
    assert env.has_attr("double")
    assert not env.has_attr("triple")
    with pytest.raises(AttributeError, match="triple"):
        env.env_method("triple")


def test_sub_environments_of_async_vector_env():
    """Which goes on working after having been asked for what does not exist."""
    env = GymnasiumVecEnv(async_(talkative(2)))
    env.reset()
    assert env.env_method("double", 3, plus=1) == [7, 7]
    env.set_attr("t", 5)
    assert env.get_attr("t") == [5, 5]
    assert env.get_attr("t", indices=1) == [5]
    assert callable(env.get_attr("double")[0])  # the method, not its result
    assert env.has_attr("double")
    assert not env.has_attr("triple")
    with pytest.raises(AttributeError, match="have no attribute 'triple'"):
        env.get_attr("triple")
    for of_some in (lambda: env.env_method("double", 3, indices=[0]), lambda: env.set_attr("t", 1, indices=0)):
        with pytest.raises(ValueError, match=r"indices=.*0.*: allowed is None, which is all sub-environments"):
            of_some()
    assert not hasattr(env, "envs")
    env.step(np.zeros((2, 2), np.float32))
    env.close()


def test_episodes_of_async_vector_env_are_evaluated_behind_a_monitor():
    env = GymnasiumVecEnv(async_(cart_poles(2)))
    model = PPO("MlpPolicy", env, device="cpu", seed=0)
    mean, _ = evaluate_policy(model, VecMonitor(env), 2)
    assert 5 < mean <= 30
    env.close()


def test_a_vector_environment_without_sub_environments_says_so():
    env = GymnasiumVecEnv(vectorised_cart_poles(render_mode="rgb_array"))
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("spec", indices=0)[0].id == "CartPole-v1"
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert env.get_attr("length") == [env.env.unwrapped.length] * 3, "that of all"
    assert not env.has_attr("triple")
    for asked in (
        lambda: env.set_attr("gravity", 1),
        lambda: env.env_method("step"),
        lambda: env.envs,
    ):
        with pytest.raises(AttributeError, match=r"CartPoleVectorEnv.*, has no sub-environments in this process"):
            asked()


# Rendering, closing, statistics


def test_images_are_those_of_the_sub_environments():
    env = GymnasiumVecEnv(sync(talkative(4, render_mode="rgb_array")))
    env.reset()
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 7
    env.set_attr("t", 9, indices=2)
    assert [image.max() for image in env.get_images()] == [0, 0, 9, 0]
    assert env.render().shape == (4, 6, 3)


def test_images_of_the_vectorised_cart_pole():
    pytest.importorskip("pygame")
    env = GymnasiumVecEnv(vectorised_cart_poles(render_mode="rgb_array"))
    env.reset()
    images = env.get_images()
    assert len(images) == 3
    assert images[0].shape == (400, 600, 3)
    env.close()


def test_a_window_is_drawn_by_the_environment():
    env = GymnasiumVecEnv(sync(talkative(2, render_mode="human")))
    env.reset()
    assert env.render() is None
    assert env.render("human") is None
    assert env.get_attr("rendered") == [2, 2]


def test_closing():
    env = GymnasiumVecEnv(async_(talkative(2)))
    processes = env.env.processes
    env.close()
    assert env.env.closed
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("vector_env", [lambda: sync(cart_poles(4)), lambda: vectorised_cart_poles(4)])
def test_sb3_logs_returns_and_lengths_of_episodes(vector_env):
    model = PPO("MlpPolicy", VecMonitor(GymnasiumVecEnv(vector_env())), n_steps=64, batch_size=64, device="cpu")
    model.learn(256)
    assert len(model.ep_info_buffer) > 4
    assert all(info["r"] == info["l"] for info in model.ep_info_buffer)


def test_gymnasiums_statistics_and_sb3s_monitor_inside_are_seen_too():
    statistics = RecordEpisodeStatistics(sync(cart_poles(4)))
    monitors = sync([lambda: Monitor(cart_poles(1)[0]())] * 4)
    for vector_env in (statistics, monitors):
        model = PPO("MlpPolicy", GymnasiumVecEnv(vector_env), n_steps=64, batch_size=64, device="cpu").learn(256)
        assert len(model.ep_info_buffer) > 4
        assert all(info["r"] == info["l"] > 0 for info in model.ep_info_buffer)


def test_sb3s_make_vec_env_takes_it_with_a_function_that_batches():
    env = make_vec_env(
        lambda: AnySpaces(VECTOR, spaces.Discrete(2)),
        2,
        seed=4,
        vec_env_cls=lambda makers: GymnasiumVecEnv(sync(makers)),
    )
    env.reset()
    assert env.get_attr("np_random_seed") == [4, 5]
    assert env.env_is_wrapped(Monitor) == [True, True]


def test_there_is_no_warning_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = GymnasiumVecEnv(vectorised_cart_poles())
        env.reset()
        env.step(np.zeros(3, dtype=np.int64))
        env.close()
