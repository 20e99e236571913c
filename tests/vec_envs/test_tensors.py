"""
Claim: a TensorVecEnv is an ordinary VecEnv for all of SB3, with DummyVecEnv's episodes; the environments in torch are
their gymnasium originals, step by step; TensorVecNormalize is VecNormalize; and what an environment returns is checked.
"""

import pickle
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from sb3_pgext import TensorVecEnv, TensorVecNormalize
from sb3_pgext.envs import TabularMDP, random_mdp
from sb3_pgext.vec_envs import TensorStep, TorchCartPole, TorchEnv, TorchMDP


class Counter(TorchEnv):
    """Counts its steps up to a number that is drawn, where it terminates; at the fourth step it is truncated."""

    def __init__(self, num_envs, dict_observations=False):
        box = spaces.Box(-9, 9, (2,), np.float32)
        self.is_dict = dict_observations
        space = spaces.Dict({"counted": box, "other": spaces.Discrete(3)}) if dict_observations else box
        super().__init__(num_envs, space, spaces.Box(-1, 1, (1,), np.float32), 1, max_episode_steps=4)

    def initial(self, uniform):
        return th.cat([th.zeros_like(uniform), 2 + (uniform * 4).floor()], 1)

    def transition(self, state, actions, uniform):
        state = state + th.tensor([1.0, 0.0])
        return state, 10 * state[:, 0] + actions[:, 0], state[:, 0] >= state[:, 1]

    def observe(self, state):
        return {"counted": state, "other": state[:, 0].long() % 3} if self.is_dict else state

    def double(self, number):
        return 2 * number


# --- the environments --------------------------------------------------------------------------------------------


def test_cart_pole_is_gymnasiums():
    env, original = TorchCartPole(64), gym.make("CartPole-v1").unwrapped
    state, generator = env.reset(seed=0), np.random.default_rng(0)
    n_ends = 0
    for _ in range(60):
        actions = th.from_numpy(generator.integers(0, 2, 64))
        step = env.step(actions)
        for e in range(64):
            original.reset()
            original.state = state[e].double().numpy()
            expected, reward, terminated, _, _ = original.step(int(actions[e]))
            np.testing.assert_allclose(step.final_observations[e], expected, rtol=1e-5, atol=1e-6)
            assert (step.rewards[e], bool(step.terminated[e])) == (reward, terminated)
            n_ends += terminated
        state = step.observations
    assert n_ends > 50
    assert (env.observation_space, env.action_space) == (original.observation_space, original.action_space)


def test_cart_pole_begins_and_is_cut_as_gymnasiums():
    env = TorchCartPole(1000, max_episode_steps=2)
    first = env.reset(seed=0)
    assert -0.05 <= first.min() < -0.0499
    assert 0.0499 < first.max() <= 0.05
    assert not env.step(th.ones(1000, dtype=th.long)).truncated.any()
    step = env.step(th.ones(1000, dtype=th.long))
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.observations.abs().max() <= 0.05 < step.final_observations.abs().max()
    assert gym.spec("CartPole-v1").max_episode_steps == TorchCartPole(1).max_episode_steps


@pytest.mark.parametrize(("horizon", "at_horizon"), [(None, "terminate"), (3, "terminate"), (3, "truncate")])
def test_finite_mdps_are_the_originals(horizon, at_horizon):
    """The original gets the random numbers that the copies draw."""
    mdp, n_envs, n_ends = random_mdp(1, horizon=horizon, at_horizon=at_horizon), 32, 0
    rewards = np.random.default_rng(0).normal(size=mdp.transitions.shape)  # depending on the next state
    mdp = TabularMDP(mdp.transitions, rewards, mdp.initial, horizon, at_horizon)
    env, drawn = TorchMDP(mdp, n_envs), []
    draw = env.uniform
    env.uniform = lambda: drawn.append(draw()) or drawn[-1]
    state, actions = env.reset(seed=0), np.random.default_rng(0)
    times = np.zeros(n_envs, int)

    def original(u):
        mdp._np_random = SimpleNamespace(random=lambda: float(u))
        return mdp

    for e in range(n_envs):
        assert original(drawn[-1][e, 1])._draw(mdp._cumulative_initial) == state[e]
    for _ in range(30):
        action = actions.integers(0, 3, n_envs)
        step = env.step(th.from_numpy(action))
        for e in range(n_envs):
            mdp._state, mdp._time = int(state[e]), int(times[e])
            expected = original(drawn[-1][e, 0]).step(action[e])
            found = (step.final_observations[e], step.rewards[e], step.terminated[e], step.truncated[e])
            assert [x.item() for x in found] == pytest.approx([float(x) for x in expected[:4]], rel=1e-6)
            ended = expected[2] or expected[3]
            n_ends += ended
            times[e] = 0 if ended else times[e] + 1
            if ended:
                assert original(drawn[-1][e, 1])._draw(mdp._cumulative_initial) == step.observations[e]
            else:
                assert step.observations[e] == step.final_observations[e]
        state = step.observations
    assert n_ends > 50


def test_a_seed_fixes_the_environment():
    def played(seed):
        env = TensorVecEnv(TorchMDP(random_mdp(0), 8))
        env.seed(seed)
        return [env.reset(), *(env.step(np.zeros(8, int))[0] for _ in range(10))]

    np.testing.assert_array_equal(played(3), played(3))
    assert not np.array_equal(played(3), played(4))


# --- as a VecEnv -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dict_observations", [False, True])
def test_episodes_end_as_in_dummy_vec_env(dict_observations):
    env = TensorVecEnv(Counter(5, dict_observations))
    env.seed(0)
    observations, n_cut, n_ended = env.reset(), 0, 0
    for t in range(30):
        actions = np.full((5, 1), 0.1 * (t % 3), np.float32)
        counted = (observations["counted"] if dict_observations else observations).copy()
        observations, rewards, dones, infos = env.step(actions)
        now = observations["counted"] if dict_observations else observations
        np.testing.assert_allclose(rewards, 10 * (counted[:, 0] + 1) + actions[:, 0], rtol=1e-6)
        for e, info in enumerate(infos):
            reached = counted[e, 0] + 1
            assert dones[e] == (reached >= min(counted[e, 1], 4))
            assert info["TimeLimit.truncated"] == (dones[e] and reached < counted[e, 1])
            assert ("terminal_observation" in info) == dones[e] == ("episode" in info)
            if dones[e]:
                final = info["terminal_observation"]
                final = final["counted"] if dict_observations else final
                np.testing.assert_array_equal(final, [reached, counted[e, 1]])
                assert info["episode"]["l"] == reached
                assert now[e, 0] == 0
                n_cut, n_ended = n_cut + info["TimeLimit.truncated"], n_ended + 1
            else:
                assert now[e, 0] == reached
    assert 0 < n_cut < n_ended


def test_returns_are_those_of_vec_monitor():
    env = VecMonitor(TensorVecEnv(Counter(5)))
    inner, n_ended = env.venv, 0
    env.seed(0)
    env.reset()
    for _ in range(20):
        inner.step_async(np.full((5, 1), 0.3, np.float32))
        returns, lengths = env.episode_returns.copy(), env.episode_lengths.copy()
        _, rewards, dones, infos = inner.step_wait()
        env.episode_returns, env.episode_lengths = (returns + rewards) * ~dones, (lengths + 1) * ~dones
        for e in np.flatnonzero(dones):
            assert infos[e]["episode"]["r"] == pytest.approx(returns[e] + rewards[e], rel=1e-6)
            assert infos[e]["episode"]["l"] == lengths[e] + 1
            n_ended += 1
    assert n_ended > 10


def test_the_methods_of_a_vec_env():
    env = TensorVecEnv(Counter(3))
    assert env.env_method("double", 4) == [8, 8, 8]
    assert env.env_method("double", 4, indices=[0, 2]) == [8, 8]
    assert env.get_attr("max_episode_steps", 1) == [4]
    env.set_attr("max_episode_steps", 7)
    assert env.env.max_episode_steps == 7
    with pytest.raises(ValueError, match=r"indices=0: allowed is None"):
        env.set_attr("max_episode_steps", 7, 0)
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert (env.render_mode, env.num_envs) == (None, 3)
    env.set_options({"a": 1})
    with pytest.raises(ValueError, match=r"options=\{'a': 1\}: allowed is none"):
        env.reset()
    env.close()


def test_what_is_returned_is_not_written_to_again():
    class InPlace(Counter):
        def step(self, actions):
            step = super().step(actions)
            for kept, new in zip(self.kept, step, strict=True):
                kept.copy_(new)
            return self.kept

    env = TensorVecEnv(InPlace(3))
    env.reset()
    env.env.kept = [x.clone() for x in Counter.step(env.env, th.zeros(3, 1))]
    first = env.step(np.zeros((3, 1), np.float32))[:3]
    copies = [x.copy() for x in first]
    env.step(np.ones((3, 1), np.float32))
    for x, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize(
    "wrap", [lambda e: e, VecMonitor, VecNormalize, TensorVecNormalize, lambda e: VecFrameStack(e, 2)]
)
def test_sb3_trains_and_evaluates(wrap):
    env = wrap(TensorVecEnv(TorchCartPole(8)))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=64, n_epochs=1, device="cpu", seed=0).learn(512)
    assert model.ep_info_buffer
    returns, lengths = evaluate_policy(model, env, 5, return_episode_rewards=True, warn=False)
    assert len(returns) == 5
    assert all(length > 5 for length in lengths)


def test_off_policy_algorithms_learn_with_vec_normalize():
    env = TensorVecNormalize(TensorVecEnv(TorchCartPole(4)))
    model = DQN("MlpPolicy", env, learning_starts=20, device="cpu", seed=0).learn(100)
    assert np.abs(model.replay_buffer.observations[:20]).max() < 4  # the original ones
    assert model.replay_buffer.rewards[:20].max() == 1


# --- TensorVecNormalize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_obs": False}, {"norm_reward": False}, {"training": False}, {"clip_obs": 0.5, "gamma": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("dict_observations", [False, True])
def test_it_is_vec_normalize(options, dict_observations):
    if dict_observations:
        options = options | ({} if options.get("norm_obs") is False else {"norm_obs_keys": ["counted"]})
    ours, theirs = (
        kind(TensorVecEnv(Counter(6, dict_observations)), **options) for kind in (TensorVecNormalize, VecNormalize)
    )
    for env in (ours, theirs):
        env.seed(1)
    assert_close(ours.reset(), theirs.reset())
    for t in range(25):
        actions = np.full((6, 1), np.cos(t), np.float32)
        found, expected = ours.step(actions), theirs.step(actions)
        for one, other in zip(found[:3], expected[:3], strict=True):
            assert_close(one, other)
        for one, other in zip(found[3], expected[3], strict=True):
            assert one.keys() == other.keys()
            assert_close(one.get("terminal_observation", 0), other.get("terminal_observation", 0))
        assert_close(ours.get_original_obs(), theirs.get_original_obs())
        assert_close(ours.get_original_reward(), theirs.get_original_reward())
    for name in ("obs_rms", "ret_rms"):
        if hasattr(theirs, name):
            one, other = getattr(ours, name), getattr(theirs, name)
            pairs = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else [(one, other)]
            for mine, sb3s in pairs:
                assert mine.count == pytest.approx(sb3s.count)
                assert_close(mine.mean, sb3s.mean)
                assert_close(mine.var, sb3s.var)


def assert_close(one, other):
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            assert_close(one[key], other[key])
    else:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def test_it_is_saved_and_loaded(tmp_path):
    env = TensorVecNormalize(TensorVecEnv(Counter(6)), clip_obs=3.0)
    env.reset()
    for _ in range(5):
        env.step(np.zeros((6, 1), np.float32))
    env.save(str(tmp_path / "vec_normalize.pkl"))
    loaded = TensorVecNormalize.load(str(tmp_path / "vec_normalize.pkl"), TensorVecEnv(Counter(2)))
    assert isinstance(loaded, TensorVecNormalize)
    assert (loaded.clip_obs, loaded.num_envs) == (3.0, 2)
    assert_close(loaded.obs_rms.mean, env.obs_rms.mean)
    before = loaded.obs_rms.count
    loaded.reset()
    loaded.step(np.zeros((2, 1), np.float32))
    assert loaded.obs_rms.count == before + 4


# --- bad input ---------------------------------------------------------------------------------------------------


def test_what_is_no_tensor_environment():
    for lacking, message in (
        ({"num_envs": 0}, r"env.num_envs=0: allowed is a whole number >= 1"),
        ({"observation_space": None}, r"env.observation_space=None: allowed is a gymnasium"),
        ({"action_space": 3}, r"env.action_space=3: allowed is a gymnasium"),
        ({"device": "cpu"}, r"env.device='cpu': allowed is a torch.device"),
    ):
        env = Counter(2)
        vars(env).update(lacking)
        with pytest.raises(ValueError, match=message):
            TensorVecEnv(env)
    with pytest.raises(ValueError, match=r"venv=.*: allowed is a TensorVecEnv; others have SB3's VecNormalize"):
        TensorVecNormalize(VecMonitor(TensorVecEnv(Counter(2))))
    with pytest.raises(ValueError, match=r"num_envs=0: allowed is a whole number >= 1"):
        TorchCartPole(0)
    with pytest.raises(ValueError, match=r"max_episode_steps=-1: allowed is a whole number >= 1"):
        TorchCartPole(2, max_episode_steps=-1)


WRONG = {
    "observations": (
        lambda s: {"observations": s.observations[:1]},
        r"shape of observations=\(1, 2\): allowed is \(3, 2\)",
    ),
    "dtype": (lambda s: {"observations": s.observations.double()}, r"dtype of observations=torch.float64: allowed is"),
    "array": (
        lambda s: {"observations": s.observations.numpy()},
        r"observations of .* is a ndarray: allowed is a torch",
    ),
    "final": (
        lambda s: {"final_observations": s.final_observations[:, :1]},
        r"shape of final_observations=\(3, 1\): allowed is \(3, 2\)",
    ),
    "rewards": (lambda s: {"rewards": s.rewards[:, None]}, r"shape of rewards=\(3, 1\): allowed is \(3,\)"),
    "whole rewards": (
        lambda s: {"rewards": s.rewards.long()},
        r"dtype of rewards=torch.int64: allowed is torch.float32",
    ),
    "terminated": (lambda s: {"terminated": s.rewards}, r"dtype of terminated=torch.float32: allowed is torch.bool"),
    "device": (lambda s: {"truncated": s.truncated.to("meta")}, r"device of truncated=meta: allowed is cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_step_returns_is_checked(case):
    change, message = WRONG[case]

    class Wrong(Counter):
        def step(self, actions):
            step = super().step(actions)
            return TensorStep(*step)._replace(**change(step))

    env = TensorVecEnv(Wrong(3))
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros((3, 1), np.float32))


def test_keys_and_first_observations_are_checked():
    class Wrong(Counter):
        def observe(self, state):
            return self.observed(state)

    env = TensorVecEnv(Wrong(3, dict_observations=True))
    for observed, message in (
        (lambda s: {"counted": s}, r"keys of observations=\['counted'\]: allowed is \['counted', 'other'\]"),
        (lambda s: s, r"keys of observations='Tensor': allowed is"),
        (
            lambda s: {"counted": s[:2], "other": s[:, 0].long()},
            r"shape of observations 'counted'=\(2, 2\): allowed is",
        ),
    ):
        env.env.observed = observed
        with pytest.raises(ValueError, match=message):
            env.reset()


def test_it_can_be_pickled_in_the_middle_of_an_episode():
    env = TensorVecEnv(TorchCartPole(4))
    env.seed(0)
    env.reset()
    env.step(np.ones(4, int))
    copy = pickle.loads(pickle.dumps(env))
    for _ in range(40):
        for one, other in zip(env.step(np.ones(4, int))[:3], copy.step(np.ones(4, int))[:3], strict=True):
            np.testing.assert_array_equal(one, other)
