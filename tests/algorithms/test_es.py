"""
Claim: ``SearchGradient`` plays each member of a population with its own parameters, whatever the number of
sub-environments, takes the step of its definition, which is that of ARS where both agree, and leaves everything alone
when something goes wrong.
"""

import re
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS
from sb3_contrib.ars.policies import LinearPolicy, MlpPolicy
from sb3_contrib.common.vec_env import AsyncEval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pgext import SearchGradient
from sb3_pgext.engine.graphs import graph_of
from sb3_pgext.rollouts.population import act_together
from tests.environments import ACTIONS, DICT, IMAGE, VECTOR, AnySpaces, NeverEnding


class Balance(gym.Env):
    """Without chance, from always the same start: how long an episode is depends on the parameters."""

    observation_space = VECTOR
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.state = 0, np.array([0.5, -0.3, 0.2], np.float32)
        return self.state.copy(), {}

    def step(self, action):
        self.t += 1
        pushed = np.array([action[0], action[1], action[0] * action[1]], np.float32)
        self.state = np.clip(0.9 * self.state + 0.4 * pushed, -1, 1)
        ended = bool(np.abs(self.state).max() > 0.75) or self.t == 12
        return self.state.copy(), float(1 - (self.state**2).sum()), ended, False, {}


class Poisoned(Balance):
    """A NaN in the reward of step 3 of one of the environments."""

    def step(self, action):
        observation, reward, *outcome = super().step(action)
        return observation, np.nan if self.t == 3 else reward, *outcome


def model_on(make=Balance, n_envs=6, policy="LinearPolicy", normalize=False, **arguments):
    env = make_vec_env(make, n_envs, seed=0)
    env = VecNormalize(env, norm_reward=False) if normalize else env
    defaults = {"n_directions": 3, "sigma": 0.8, "zero_policy": False, "seed": 1, "device": "cpu"}
    return SearchGradient(policy, env, **{**defaults, **arguments})


def vector_of(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def played(model):
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback)
    return model.population


# --- members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LinearPolicy, MlpPolicy])
@pytest.mark.parametrize("actions", ["discrete", "box", "box_2d"])
@pytest.mark.parametrize("observations", [VECTOR, IMAGE, spaces.Discrete(5), spaces.MultiDiscrete([2, 3])], ids=str)
def test_members_act_as_by_themselves(policy, actions, observations):
    network = policy(observations, ACTIONS[actions])
    members = {name: th.randn(4, *p.shape) for name, p in network.named_parameters()}
    observations.seed(0)
    obs = np.stack([observations.sample() for _ in range(4)])
    together = act_together(network, th.as_tensor(obs), members)
    for k in range(4):
        network.load_state_dict({name: stacked[k] for name, stacked in members.items()})
        with th.no_grad():
            th.testing.assert_close(together[k], network(th.as_tensor(obs[k : k + 1]))[0])


@pytest.mark.parametrize("n_eval_episodes", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_members_get_what_they_earn(n_eval_episodes, normalize):
    """What ``evaluate_policy`` finds for each; with statistics that stay as they are where it normalises."""
    model = model_on(normalize=normalize, n_eval_episodes=n_eval_episodes, antithetic=False, alive_bonus_offset=-0.5)
    if normalize:
        model.env.training, model.env.obs_rms.var = False, np.full(3, 0.2)
    mean = vector_of(model)
    population = played(model)
    for noise, fitness in zip(population.noise, population.fitness, strict=True):
        th.nn.utils.vector_to_parameters(mean + 0.8 * noise, model.policy.parameters())
        of_episodes = evaluate_policy(model, model.env, 3, return_episode_rewards=True, warn=False)
        expected = np.mean(of_episodes[0]) - 0.5 * np.mean(of_episodes[1])
        assert fitness.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n_eval_episodes", [1, 3])
def test_nothing_depends_on_the_number_of_sub_environments(n_eval_episodes):
    """Nor on which episode ends first: their lengths differ."""
    found = []
    for n_envs in (1, 2, 4, 6, 11):
        model = model_on(n_envs=n_envs, n_eval_episodes=n_eval_episodes)
        found.append(played(model).fitness)
        lengths = [info["l"] for info in model.ep_info_buffer]
        assert len(lengths) == 6 * n_eval_episodes
        assert len(set(lengths)) > 2
        assert model.num_timesteps % n_envs == 0
        assert model.num_timesteps >= sum(lengths)
    for fitness in found[1:]:
        th.testing.assert_close(fitness, found[0])


@pytest.mark.compiler
def test_compiled_members_act_the_same():
    """By a graph that is looked up once for each population, not at each step."""
    eager, compiled = (model_on(policy="MlpPolicy", compile=compile) for compile in (False, True))
    with mock.patch("sb3_pgext.engine.compiled.graph_of", wraps=graph_of) as looked_up:
        for model in (eager, compiled):
            th.manual_seed(0)
            model.learn(200)
    assert looked_up.call_count == compiled._n_updates > 1
    th.testing.assert_close(vector_of(eager), vector_of(compiled))
    assert eager.num_timesteps == compiled.num_timesteps


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["LinearPolicy", "MlpPolicy"])
def test_standardized_antithetic_steps_are_those_of_ars(policy):
    """Of ARS with all directions (V1, V2), with the learning rate 2σ times as large."""
    sigma, rate = 0.8, 0.05
    arguments = {"n_directions": 3, "shaping": "standardized", "optimizer": "sgd", "zero_policy": True}
    ours = model_on(policy=policy, sigma=sigma, learning_rate=2 * sigma * rate, **arguments)
    theirs = ARS(policy, make_vec_env(Balance, 1), n_delta=3, delta_std=sigma, learning_rate=rate, seed=1)
    for _ in range(5):
        for model in (ours, theirs):
            th.manual_seed(model._n_updates)
            model.learn(1, reset_num_timesteps=False)
        th.testing.assert_close(vector_of(ours), theirs.weights, atol=1e-5, rtol=1e-5)
        ours.policy.load_from_vector(theirs.weights.numpy().copy())  # without the rounding so far
    assert ours._n_updates == theirs._n_updates == 5
    assert vector_of(ours).norm() > 0.01


@pytest.mark.parametrize(
    ("options", "shaped"),
    [
        ({"antithetic": False, "shaping": "none"}, lambda f: f),
        ({"antithetic": False, "shaping": "none", "baseline": "mean"}, lambda f: (f - f.mean()) * 3 / 2),
        ({"shaping": "none"}, lambda f: f),
        ({"shaping": "standardized"}, lambda f: (f - f.mean()) / f.std()),
        ({"shaping": "ranks"}, lambda f: f.argsort().argsort() / (len(f) - 1) - 0.5),
    ],
    ids=["none", "leave one out", "pairs", "standardized", "ranks"],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_of_each_kind(options, shaped, weight_decay):
    model = model_on(optimizer="sgd", learning_rate=0.1, weight_decay=weight_decay, **options)
    before = vector_of(model)
    noise, sigma, fitness = played(model)
    model.train()
    gradient = sum(u * e for u, e in zip(shaped(fitness), noise, strict=True)) / len(noise) / sigma
    th.testing.assert_close(vector_of(model), before + 0.1 * (gradient - weight_decay * before), atol=1e-5, rtol=1e-4)


def test_adam_is_torchs():
    model = model_on(optimizer="adam", learning_rate=0.1)
    copy = vector_of(model).requires_grad_()
    adam = th.optim.Adam([copy], lr=0.1)
    for _ in range(3):
        played(model)
        copy.grad = -model.estimate_gradient()
        model.train()
        adam.step()
    th.testing.assert_close(vector_of(model), copy.detach())


def test_sigma_follows_its_schedule():
    seen = []
    model = model_on(sigma=lambda progress: 0.1 + progress)

    class Note(BaseCallback):
        def _on_rollout_end(self):
            seen.append(self.model.population.sigma)

        def _on_step(self):
            return True

    model.learn(200, Note())
    assert seen[0] == 1.1
    assert len(seen) > 2
    assert sorted(set(seen), reverse=True) == seen


def test_frozen_parameters_stay():
    model = model_on(policy="MlpPolicy", policy_kwargs={"net_arch": [4]}, weight_decay=0.1)
    first = model.policy.action_net[0]
    first.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    model.learn(100)
    assert model.population.noise.shape[1] == vector_of(model).numel() - first.weight.numel()
    for name, p in model.policy.named_parameters():
        assert th.equal(p, before[name]) == (name == "action_net.0.weight")


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("normalize", [False, True])
def test_members_play_in_other_processes(normalize):
    """The same fitness where nothing is normalised; else all observations are counted once."""

    def make():
        env = DummyVecEnv([Balance])
        return VecNormalize(env, norm_reward=False) if normalize else env

    here, there = model_on(normalize=normalize), model_on(normalize=normalize)
    elsewhere = AsyncEval([make, make], there.policy, start_method="fork")
    for model, arguments in ((here, {}), (there, {"async_eval": elsewhere})):
        th.manual_seed(0)
        model.learn(1, **arguments)
    assert elsewhere.closed
    if not normalize:
        th.testing.assert_close(there.population.fitness, here.population.fitness)
        th.testing.assert_close(vector_of(there), vector_of(here))
    else:
        n_steps = sum(info["l"] for info in there.ep_info_buffer)
        n_first = 6 + 6  # of the model's environment, and of each member's
        assert there.num_timesteps == n_steps
        assert there.env.obs_rms.count == pytest.approx(n_steps + n_first, abs=1e-3)


def test_evaluations_elsewhere_that_do_not_fit():
    def made(make, n):
        return AsyncEval([make], model.policy, start_method="fork", n_eval_episodes=n)

    model = model_on()
    with pytest.raises(ValueError, match="n_eval_episodes of async_eval=2: allowed is 1, the model's"):
        model.learn(1, async_eval=made(lambda: DummyVecEnv([Balance]), 2))
    model = model_on(normalize=True)
    with pytest.raises(ValueError, match=r"async_eval=.*in a VecNormalize, as the model's"):
        model.learn(1, async_eval=made(lambda: DummyVecEnv([Balance]), 1))


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [2, 6])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_reward_that_is_nan_names_the_members(n_envs, normalize):
    model = model_on(Poisoned, n_envs, normalize=normalize)
    before = vector_of(model)
    playing = re.escape(str(list(range(n_envs))))
    with pytest.raises(
        ValueError, match=rf"reward=nan of sub-environment \d at vector step 2.* play members {playing}"
    ):
        model.learn(100)
    assert th.equal(vector_of(model), before)
    assert model._n_updates == 0
    assert not normalize or np.isfinite(model.env.obs_rms.mean).all()


def test_an_update_that_fails_changes_nothing():
    model = model_on(shaping="none")
    played(model)
    before = vector_of(model)
    model.population = model.population._replace(fitness=th.full((6,), 1e38))
    with pytest.raises(ValueError, match=r"policy gradient norm=.*update 1"):
        model.train()
    assert th.equal(vector_of(model), before)
    assert model._n_updates == 0


def test_a_callback_may_end_the_training_in_the_midst_of_a_population():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 3

    model = model_on()
    before = vector_of(model)
    model.learn(1000, Stop())
    assert model.num_timesteps == 3 * 6
    assert th.equal(vector_of(model), before)
    assert model.learn(30, reset_num_timesteps=False)._n_updates > 0


@pytest.mark.filterwarnings("ignore:A sub-environment has been")
def test_an_episode_without_end(monkeypatch):
    monkeypatch.setattr("sb3_pgext.rollouts.episodes.MAX_STEPS_WITHOUT_END", 50)
    with pytest.raises(RuntimeError, match="no end and no limit"):
        model_on(NeverEnding).learn(1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_directions": 0}, "n_directions=0: allowed is a whole number >= 1"),
        ({"n_directions": 1, "antithetic": False}, "n_directions=1: allowed is a whole number >= 2"),
        (
            {"n_directions": 1, "antithetic": False, "shaping": "none", "baseline": "mean"},
            "n_directions=1: allowed is a whole number >= 2",
        ),
        ({"sigma": 0.0}, "sigma=0.0: allowed is a finite number > 0"),
        ({"sigma": -1}, "sigma=-1"),
        ({"sigma": "auto"}, "sigma='auto'"),
        ({"sigma": lambda _: -0.1}, "sigma=<function"),
        ({"antithetic": 1}, "antithetic=1: allowed is True or False"),
        ({"shaping": "rank"}, "shaping='rank': allowed is one of 'none', 'standardized', 'ranks'"),
        ({"baseline": "state"}, "baseline='state': allowed is one of 'none', 'mean'"),
        ({"baseline": "mean", "shaping": "none"}, "baseline='mean': allowed is 'none' where it would only scale"),
        ({"baseline": "mean", "antithetic": False}, "baseline='mean': allowed is 'none' where it would only scale"),
        ({"optimizer": "rmsprop"}, "optimizer='rmsprop'"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"n_eval_episodes": 0}, "n_eval_episodes=0"),
        ({"alive_bonus_offset": np.nan}, "alive_bonus_offset=nan"),
        ({"zero_policy": 0}, "zero_policy=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"policy": "CnnPolicy"}, "policy='CnnPolicy': allowed is one of 'MlpPolicy', 'LinearPolicy'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(arguments, named):
    with pytest.raises(ValueError, match=named):
        model_on(**{"policy": "LinearPolicy", **arguments})


def test_a_sigma_that_reaches_0_is_named():
    with pytest.raises(ValueError, match=r"sigma at progress 0=0\.0: allowed is a finite number > 0"):
        model_on(sigma=lambda progress: progress).learn(1).learn(1, reset_num_timesteps=False)


def test_dict_observations_are_refused():
    env = DummyVecEnv([lambda: AnySpaces(DICT, ACTIONS["box"])])
    with pytest.raises(
        ValueError, match="policy='ARSLinearPolicy': allowed is with Dict observations an ARSPolicy class"
    ):
        SearchGradient("LinearPolicy", env)


# --- learning --------------------------------------------------------------------------------------------------------


def test_cartpole_is_learnt():
    env = make_vec_env("CartPole-v1", 16, seed=0)
    model = SearchGradient("LinearPolicy", env, learning_rate=0.1, sigma=0.1, seed=0, device="cpu").learn(30_000)
    assert evaluate_policy(model, env, 16)[0] > 450


def test_saving_and_loading(tmp_path):
    model = model_on(policy="MlpPolicy").learn(50)
    model.save(tmp_path / "model")
    loaded = SearchGradient.load(tmp_path / "model", env=model.env)
    assert th.equal(vector_of(loaded), vector_of(model))
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(observations)[0], model.predict(observations)[0])
    assert not hasattr(loaded, "population")
    found = [m.learn(50, reset_num_timesteps=False) for m in (loaded, model)]
    assert min(m._n_updates for m in found) > 2
