"""Claim: whole-episode collection is unbiased, loses and doubles nothing, and behaves to callbacks as SB3 does."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.rollouts import episodes as episodes_module
from tests.environments import AnySpaces, NeverEnding, OneOrFifty, Scripted


def model_on(env, **parameters):
    """A model that is set up to collect."""
    parameters = {"n_episodes": 4, "seed": 0, "device": "cpu", **parameters}
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = REINFORCE(policy, env, **parameters)
    _, model.callback = model._setup_learn(10**9)
    return model


def collect(model, callback=None):
    model.collect_rollouts(model.env, callback or model.callback, model.rollout_buffer, model.n_episodes)
    return model.episodes


def scripted(*lengths_of_each, **parameters):
    return DummyVecEnv([lambda n=lengths: Scripted(n, **parameters) for lengths in lengths_of_each])


@pytest.mark.parametrize("n_envs", [4, 7])
def test_the_mean_return_is_that_of_the_environment(n_envs):
    """
    Keeping the first N episodes to finish would favour those of one step: with 4 sub-environments the mean return
    then is about 8 instead of 5.5. 400 rollouts of 4 episodes, within 3 standard errors: a bias of 0.55 is found in 97
    of 100 tries.
    """
    model = model_on(make_vec_env(OneOrFifty, n_envs, seed=n_envs))
    model.policy.get_distribution = AlwaysTheFirstAction  # the environment ignores the action, so spare the network
    model.policy.predict_values = lambda obs: th.zeros(len(obs), 1)
    returns = []
    for _ in range(400):
        batch = collect(model)
        of_episodes = th.zeros(batch.n_episodes).index_add(0, batch.episode, batch.rewards)
        returns.append(of_episodes.mean().item())
        assert batch.n_episodes == 4
    standard_error = OneOrFifty.STD_RETURN / np.sqrt(400 * 4)
    assert abs(np.mean(returns) - OneOrFifty.MEAN_RETURN) < 3 * standard_error


class AlwaysTheFirstAction:
    def __init__(self, obs):
        self.n = len(obs)

    def get_actions(self):
        return th.zeros(self.n, dtype=th.int64)


def test_the_batch_is_what_was_played():
    """Numbered by sub-environment, then time; rewards, observations and indices belong together."""
    model = model_on(scripted((2, 3, 1), (4, 1)), n_episodes=3)
    batch = collect(model)
    assert batch.episode.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert batch.time.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert batch.lengths.tolist() == [2, 3, 4]
    assert batch.rewards.tolist() == [0, 1, 100, 101, 102, 0, 1, 2, 3]
    assert batch.observations.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [0, 0], [0, 1], [0, 2], [0, 3]]
    assert len(batch) == 9
    assert batch.n_episodes == 3
    assert not batch.truncated.any()
    values = model.policy.predict_values(batch.observations).flatten()
    th.testing.assert_close(batch.values, values)


def test_every_environment_step_counts_also_those_not_learnt_from():
    model = model_on(scripted((2,), (10,)), n_episodes=2)
    batch = collect(model)
    assert len(batch) == 12
    assert model.num_timesteps == 20
    assert model.logger.name_to_value["rollout/idle_fraction"] == pytest.approx(8 / 20)


def test_a_batch_starts_with_fresh_episodes():
    """What a sub-environment idled in is thrown away; without idling, nothing is reset twice."""
    model = model_on(scripted((2,), (3,)), n_episodes=2)
    for _ in range(3):
        batch = collect(model)
        assert batch.observations[batch.time == 0][:, 1].tolist() == [0, 0]
        assert batch.lengths.tolist() == [2, 3]
    single = model_on(scripted((2,)), n_episodes=2)
    assert collect(single).observations[:, 0].tolist() == [0, 0, 1, 1]
    assert collect(single).observations[:, 0].tolist() == [2, 2, 3, 3]


def test_statistics_leave_out_the_episodes_of_idling():
    """Of two sub-environments the first idles for 5 episodes while the second plays its long one."""
    env = DummyVecEnv([lambda n=n: gym.make("tests/Scripted-v0", lengths=n) for n in ((1,), (6,))])
    model = model_on(VecMonitor(env), n_episodes=2)
    collect(model)
    assert sorted(info["l"] for info in model.ep_info_buffer) == [1, 6]


@pytest.mark.parametrize("truncation", ["bootstrap", "terminal"])
def test_truncation(truncation):
    """The first episode ends, the second is cut by the environment at (1, 2)."""
    model = model_on(scripted((2, -2)), n_episodes=2, truncation=truncation)
    batch = collect(model)
    assert batch.truncated.tolist() == [False, True]
    value = model.policy.predict_values(th.tensor([[1.0, 2.0]])).item()
    assert batch.bootstrap_values.tolist() == [0.0, value if truncation == "bootstrap" else 0.0]


def test_max_episode_steps_cuts_as_a_truncation():
    """In an environment that never ends: each of the episodes is cut, also the second one of each sub-environment."""
    model = model_on(DummyVecEnv([NeverEnding] * 2), max_episode_steps=5)
    batch = collect(model)
    assert batch.lengths.tolist() == [5, 5, 5, 5]
    assert batch.truncated.all()
    value = model.policy.predict_values(th.zeros(1, 1)).item()
    assert batch.bootstrap_values.tolist() == pytest.approx([value] * 4)
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer] == [(5.0, 5)] * 4


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_final_values_belong_to_their_episodes(vec_env):
    """The second sub-environment truncates first; cut and truncated episodes side by side, also in subprocesses."""
    env = vec_env([lambda: Scripted((-9,)), lambda: Scripted((-2, -9))])
    model = model_on(env, n_episodes=3, max_episode_steps=5)
    batch = collect(model)
    assert batch.lengths.tolist() == [5, 5, 2]
    reached = th.stack([batch.observations[(batch.episode == i)][-1] + th.tensor([0.0, 1.0]) for i in range(3)])
    th.testing.assert_close(batch.bootstrap_values, model.policy.predict_values(reached).flatten())
    assert len(set(batch.bootstrap_values.tolist())) == 3
    env.close()


def test_what_is_cut_is_continued_by_the_value_of_the_observation_reached():
    model = model_on(scripted((9,)), n_episodes=2, max_episode_steps=2)
    batch = collect(model)
    reached = th.tensor([[0.0, 2.0], [1.0, 2.0]])
    th.testing.assert_close(batch.bootstrap_values, model.policy.predict_values(reached).flatten())
    assert batch.observations.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_cut_episode_in_original_units_under_vec_normalize():
    env = VecNormalize(DummyVecEnv([NeverEnding]), clip_reward=1e9)
    model = model_on(env, n_episodes=1, max_episode_steps=50)
    collect(model)
    assert model.ep_info_buffer[0]["r"] == 50
    assert model.episodes.rewards.sum() != pytest.approx(50, rel=0.1)


def test_an_environment_without_end_or_limit(monkeypatch):
    monkeypatch.setattr(episodes_module, "MAX_STEPS_WITHOUT_END", 100)
    with pytest.raises(RuntimeError, match=r"no end and no limit.*`max_episode_steps`"):
        collect(model_on(DummyVecEnv([NeverEnding])))


@pytest.mark.parametrize(("poison", "step"), [("observation", 2), ("reward", 2)])
def test_nan_names_the_sub_environment_and_the_step(poison, step):
    env = DummyVecEnv([Scripted, lambda: Scripted((9,), poison)])
    with pytest.raises(ValueError, match=rf"{poison}=.*nan.* of sub-environment 1 at vector step {step} "):
        collect(model_on(env))


@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(2), spaces.MultiBinary(2)])
def test_nan_parameters_are_named_before_they_act(action_space):
    model = model_on(DummyVecEnv([lambda: AnySpaces(spaces.Box(-1, 1, (2,)), action_space)]))
    with th.no_grad():
        model.policy.action_net.bias[0] = np.nan
    with pytest.raises(ValueError, match=r"parameter action_net\.bias"):
        collect(model)


def test_an_infinite_action():
    """Finite parameters, and yet an exponential of them that is not."""
    model = model_on(DummyVecEnv([lambda: AnySpaces(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)))]))
    with th.no_grad():
        model.policy.log_std[0] = 1000.0
    with pytest.raises(ValueError, match="action="):
        collect(model)


def test_nan_in_the_last_observation_of_a_truncated_episode():
    env = DummyVecEnv([lambda: Scripted((-2,), "observation")])
    with pytest.raises(ValueError, match=r"terminal observation=.* of sub-environment 0 at vector step 2"):
        collect(model_on(env))


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
@pytest.mark.parametrize("poison", ["reward", "observation"])
def test_a_nan_is_seen_before_the_callbacks(algorithm, poison):
    """Who saves on a step must not save what the NaN has spoilt."""
    seen = []
    model = algorithm("MlpPolicy", DummyVecEnv([lambda: Scripted((9,), poison)]), device="cpu")
    with pytest.raises(ValueError, match=f"{poison}=.* of sub-environment 0 at vector step 2"):
        model.learn(100, lambda local, _: seen.append([local["rewards"].item(), *local["new_obs"].flat]) or True)
    assert len(seen) == {"reward": 2, "observation": 1}[poison]
    assert np.isfinite(seen).all()


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
def test_a_nan_in_a_terminal_observation_names_its_sub_environment(algorithm):
    model = algorithm("MlpPolicy", DummyVecEnv([Scripted, lambda: Scripted((-2,), "observation")]), device="cpu")
    with pytest.raises(ValueError, match=r"terminal observation=.* of sub-environment 1 at vector step 2"):
        model.learn(100)


class Recorder(BaseCallback):
    """What SB3 tells its callbacks."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.calls = stop_after, []

    def _on_rollout_start(self):
        self.calls.append("start")

    def _on_step(self):
        self.calls.append("step")
        assert self.model.num_timesteps == self.num_timesteps
        return self.calls.count("step") != self.stop_after

    def _on_rollout_end(self):
        self.calls.append("end")


def test_a_callback_does_not_change_the_run():
    """It only makes values and log-probabilities known step by step."""
    batches = []
    for callback in (None, Recorder()):
        model = REINFORCE("MlpPolicy", scripted((3,), (5,)), n_episodes=2, seed=0, device="cpu").learn(30, callback)
        batches.append(model.episodes)
    assert th.equal(batches[0].actions, batches[1].actions)
    assert th.equal(batches[0].values, batches[1].values)


def test_values_of_a_shared_network_are_those_of_acting():
    """Where policy and critic share costly features they are computed once, with the actions: the same values."""
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    calls = []
    model = REINFORCE("CnnPolicy", DummyVecEnv([lambda: AnySpaces(image, spaces.Discrete(2))] * 2), n_episodes=2)
    model.policy.features_extractor.register_forward_hook(lambda *_: calls.append(1))
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 2)
    assert len(calls) == 5
    values = model.policy.predict_values(model.episodes.observations).flatten()
    th.testing.assert_close(model.episodes.values, values, rtol=1e-3, atol=1e-4)


def test_an_interrupted_rollout_is_not_continued():
    """After Ctrl-C in the first step, the next training starts with fresh episodes."""
    model = REINFORCE("MlpPolicy", scripted((5,)), n_episodes=1, device="cpu")

    def interrupt(local, _):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.learn(10, interrupt)
    model.learn(1, reset_num_timesteps=False)
    assert model.episodes.observations[:, 1].tolist() == [0, 1, 2, 3, 4]


def test_early_stop_and_continuation():
    """Stopped within an episode; what follows starts afresh, with whole episodes again."""
    model = REINFORCE("MlpPolicy", scripted((3,), (5,)), n_episodes=2, device="cpu")
    recorder = Recorder(stop_after=2)
    model.learn(100, recorder)
    assert recorder.calls == ["start", "step", "step"]
    assert model.num_timesteps == 4
    assert model._n_updates == 0
    model.learn(1, reset_num_timesteps=False)
    assert model.num_timesteps == 4 + 10
    assert model.episodes.time[0] == 0
    assert model.episodes.observations[0, 1] == 0
    assert model.episodes.lengths.tolist() == [3, 5]


def make_cartpole():
    return gym.make("CartPole-v1")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: DummyVecEnv([make_cartpole] * 3),
        lambda: VecNormalize(DummyVecEnv([make_cartpole] * 3)),
        lambda: VecFrameStack(DummyVecEnv([make_cartpole] * 3), 4),
        lambda: VecMonitor(DummyVecEnv([make_cartpole] * 3)),
    ],
    ids=["dummy", "normalize", "frame_stack", "monitor"],
)
def test_vec_envs(wrap):
    """What the policy computes from the stored observations is what was stored."""
    env = wrap()
    model = model_on(env, n_episodes=5)
    for _ in range(2):
        batch = collect(model)
        assert batch.n_episodes == 5
        assert batch.lengths.sum() == len(batch) == len(batch.rewards) == len(batch.observations)
        assert (batch.lengths == th.bincount(batch.episode)).all()
        th.testing.assert_close(batch.values, model.policy.predict_values(batch.observations).flatten())
        later = batch.time > 0
        assert (batch.observations[later] != batch.observations[later.roll(-1)]).any()
    env.close()


def test_stacked_frames_of_a_truncated_episode():
    """VecFrameStack and VecNormalize hand on the last observation of the episode, not the first of the next."""
    env = VecFrameStack(scripted((-3,)), 2)
    model = model_on(env, n_episodes=1)
    batch = collect(model)
    last = th.tensor([[0.0, 2.0, 0.0, 3.0]])
    th.testing.assert_close(batch.bootstrap_values, model.policy.predict_values(last).flatten())


def test_observations_are_copied():
    """A VecEnv may write each observation into the same array."""

    class SameArray(DummyVecEnv):
        def _obs_from_buf(self):
            return self.buf_obs[None]

    model = model_on(SameArray([lambda: Scripted((4,))]), n_episodes=1)
    assert collect(model).observations[:, 1].tolist() == [0, 1, 2, 3]


FLOAT64 = spaces.Box(-1, 1, (3,), np.float64)


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
def test_observations_keep_the_dtype_of_their_space(algorithm):
    """Whatever the environment makes of them: this one changes it between reset and step."""

    class Careless(DummyVecEnv):
        def step_wait(self):
            observations, *rest = super().step_wait()
            return {"float64": observations["float64"].astype(np.float32), "image": observations["image"] + 0.0}, *rest

    space = spaces.Dict({"float64": FLOAT64, "image": spaces.Box(0, 255, (4,), np.uint8)})
    env = Careless([lambda: AnySpaces(space, spaces.Discrete(2))])
    model = algorithm("MultiInputPolicy", env, n_steps=4) if algorithm is ClippedCriticPPO else model_on(env)
    model.learn(4)
    batch = model.rollout if algorithm is ClippedCriticPPO else model.episodes
    assert {key: x.dtype for key, x in batch.observations.items()} == {"float64": th.float64, "image": th.uint8}


class InDoublePrecision(ActorCriticPolicy):
    """Networks in double precision, which take the observations as they are."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.double()
        self.optimizer = th.optim.Adam(self.parameters(), 1e-3)

    def forward(self, obs, deterministic=False):
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs, actions):
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs):
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(obs))

    def predict_values(self, obs):
        return self.value_net(self.mlp_extractor.forward_critic(obs))


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG, NPG, ClippedCriticPPO, ISPG])
def test_a_policy_in_double_precision_learns_from_what_it_acted_on(algorithm):
    env = DummyVecEnv([lambda: TimeLimit(AnySpaces(FLOAT64, spaces.Discrete(2)), 3)])
    model = (
        algorithm(InDoublePrecision, env, n_steps=8, device="cpu")
        if algorithm in (VPG, NPG, ClippedCriticPPO)
        else (algorithm(InDoublePrecision, env, n_episodes=4, device="cpu"))
    )
    model.learn(30)
    if hasattr(model, "rollout"):
        assert model.rollout.observations.dtype == th.float64
        assert {obs.dtype for obs, _ in model.collector.final_observations.values()} == {np.dtype(np.float64)}
    else:
        assert model.episodes.observations.dtype == model.episodes.final_observations.dtype == th.float64
