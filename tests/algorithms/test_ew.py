"""Claim: ``ExponentialWeights`` is Hedge, EXP3 and exponential weights on finite MDPs, and an SB3 algorithm."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_pgext import REINFORCE, CheckpointCallback, ExponentialWeights, load, resume, save
from sb3_pgext.algorithms.ew import TabularPolicy
from sb3_pgext.checkpoints.files import found
from sb3_pgext.envs import Bandit, TabularMDP, chain, gridworld, random_mdp
from tests.checkpoints.models import assert_same
from tests.environments import ACTIONS, VECTOR, AnySpaces

THREE_ARMS = (0.2, 0.5, 0.9)


def bandit():
    return Bandit(THREE_ARMS)


def make(env=bandit, **arguments):
    """Of one environment, or of a function that makes one."""
    env = DummyVecEnv([env]) if callable(env) else env
    return ExponentialWeights("MlpPolicy", env, **{"seed": 0, "device": "cpu", **arguments})


def probabilities(model):
    return model.policy.logits.double().softmax(1).numpy()


class AfterEachRound(BaseCallback):
    """What a function makes of the model before each round's rollout."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def _on_rollout_start(self):
        self.seen.append(self.function(self.model))

    def _on_step(self):
        return True


# --- full information ------------------------------------------------------------------------------------------------


def slow_q(mdp, policy, gamma):
    """Q by iterating its equation."""
    q = np.zeros_like(policy)
    for _ in range(3000):
        q = mdp.expected_rewards + gamma * mdp.transitions @ (policy * q).sum(1)
    return q


@pytest.mark.parametrize(
    ("env", "gamma"),
    [
        (bandit, 0.99),
        (random_mdp, 0.9),
        (lambda: chain(5), 0.95),
        (lambda: chain(5, horizon=20), 0.95),
        (gridworld, 1.0),
    ],
)
def test_full_information_is_the_recursion_by_hand(env, gamma):
    eta, n_rounds = 0.3, 15
    policies = AfterEachRound(probabilities)
    model = make(env, feedback="full", gamma=gamma, learning_rate=eta, n_steps=4).learn(4 * n_rounds, policies)
    policies.seen.append(probabilities(model))
    mdp = env()
    policy = np.full_like(mdp.expected_rewards, 1 / mdp.action_space.n)
    for seen in policies.seen:
        np.testing.assert_allclose(seen, policy, atol=2e-6)
        policy = policy * np.exp(eta * slow_q(mdp, policy, gamma))
        policy /= policy.sum(1, keepdims=True)
    assert len(policies.seen) == n_rounds + 1


def test_full_information_on_other_vec_envs():
    vec_env = make_vec_env("sb3_pgext/Chain-v0", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    elsewhere = make(vec_env, feedback="full", n_steps=2).learn(20)
    with pytest.raises(ValueError, match="feedback='full': allowed is 'bandit'"):
        make(make_vec_env("Taxi-v4", 1, vec_env_cls=SubprocVecEnv), feedback="full")
    vec_env.close()
    here = make(make_vec_env("sb3_pgext/Chain-v0", 2), feedback="full", n_steps=2).learn(20)
    assert th.equal(elsewhere.policy.logits, here.policy.logits)


# --- bandit feedback -------------------------------------------------------------------------------------------------


class Learning(BaseCallback):
    """The steps of each rollout, as the environments gave them, one after the other."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_rollout_start(self):
        self.rollouts.append([])

    def _on_step(self):
        states = np.asarray(self.locals["obs_tensor"]).ravel()
        columns = states, self.locals["actions"], self.locals["rewards"].copy(), self.locals["dones"]
        self.rollouts[-1].append([np.ravel(column).tolist() for column in columns])
        return True


def slow_estimate(steps, policy, gamma, baseline, control):
    """Q̂ by going through the steps of each environment."""
    total, n_visits = np.zeros_like(policy), np.zeros(len(policy))
    for e in range(len(steps[0][0])):
        column = [tuple(part[e] for part in step) for step in steps]
        for t, (s, a, _, _) in enumerate(column):
            ends = [k for k in range(t, len(column)) if column[k][3]]
            if not ends:
                continue
            G = sum(gamma ** (k - t) * column[k][2] for k in range(t, ends[0] + 1))
            n_visits[s] += 1
            total[s] += control[s]
            total[s, a] += (G - baseline - control[s, a]) / policy[s, a]
    return np.where(n_visits[:, None] > 0, total / np.maximum(n_visits, 1)[:, None], 0.0)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("env", "n_steps"), [(bandit, 1), (bandit, 5), (random_mdp, 8), (lambda: chain(4, horizon=5), 12)]
)
@pytest.mark.parametrize(("baseline", "with_control"), [(0.0, False), (1.0, False), (0.3, True)])
def test_bandit_feedback_is_the_recursion_by_hand(env, n_steps, n_envs, baseline, with_control):
    """In several environments, with episodes that a rollout or a time limit cuts."""
    shape = env().expected_rewards.shape
    control = np.linspace(-1, 1, shape[1]) if with_control else np.zeros(shape[1])
    options = {"learning_rate": 0.2, "gamma": 0.9, "baseline": baseline}
    options |= {"control_variate": control.tolist()} if with_control else {}
    rollouts, policies = Learning(), AfterEachRound(probabilities)
    model = make(DummyVecEnv([env] * n_envs), n_steps=n_steps, **options)
    model.learn(10 * n_steps * n_envs, [rollouts, policies])
    policies.seen.append(probabilities(model))
    policy = np.full(shape, 1 / shape[1])
    for steps, seen in zip([*rollouts.rollouts, None], policies.seen, strict=True):
        np.testing.assert_allclose(seen, policy, atol=1e-5)
        if steps is not None:
            policy = seen * np.exp(0.2 * slow_estimate(steps, seen, 0.9, baseline, np.tile(control, (shape[0], 1))))
            policy /= policy.sum(1, keepdims=True)
    assert len(rollouts.rollouts) == 10


def test_steps_of_a_cut_episode_are_not_learnt_from():
    def three_steps():
        return TabularMDP(np.eye(4, k=1)[:3].repeat(2, 0).reshape(3, 2, 4)[..., :3], np.ones((3, 2)), [1.0, 0.0, 0.0])

    counts = AfterEachRound(lambda model: model.logger.name_to_value.get("train/steps_used"))
    make(three_steps, n_steps=4).learn(12, counts, log_interval=None)
    # 0 1 2|0, 1 2|0 1, 2|0 1 2
    assert counts.seen[1:] == [3, 2]
    model = make(three_steps, n_steps=2).learn(2)
    assert not model.policy.logits.any()


def test_the_estimate_has_q_as_its_mean():
    """Three states in episodes of one step; 12 means in 600 rollouts, at 1 % for all together."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 4))
    model = make(DummyVecEnv([lambda: TabularMDP(np.zeros((3, 4, 3)), rewards, [0.5, 0.3, 0.2])] * 20), baseline=0.4)
    model.policy.logits.copy_(th.as_tensor(rng.normal(size=(3, 4))))
    _, callback = model._setup_learn(10**9)
    estimates = []
    for _ in range(600):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)
        visited = np.isin(np.arange(3), model.rollout_buffer.observations)
        estimates.append(np.where(visited[:, None], model._estimated_q().numpy(), np.nan))
    estimates = np.stack(estimates)
    n, error = (~np.isnan(estimates)).sum(0), np.nanstd(estimates, axis=0, ddof=1)
    z = (np.nanmean(estimates, axis=0) - (rewards - 0.4)) / (error / np.sqrt(n))
    assert np.abs(z).max() < stats.norm.ppf(1 - 0.01 / (2 * z.size))


@pytest.mark.parametrize("feedback", ["full", "bandit"])
def test_the_best_arm_is_found(feedback):
    options = {"full": {}, "bandit": {"baseline": 1.0}}[feedback]
    model = make(feedback=feedback, learning_rate=0.1, **options).learn(600, log_interval=None)
    assert probabilities(model)[0].argmax() == 2
    assert probabilities(model)[0, 2] > 0.9


# --- the step size ---------------------------------------------------------------------------------------------------


def rate_of(model, total, **arguments):
    rates = AfterEachRound(lambda model: model.logger.name_to_value.get("train/learning_rate"))
    model.learn(total, rates, log_interval=None, **arguments)
    return rates.seen[1:]


def test_the_step_size_of_the_bound():
    """sqrt(8 ln A / K), sqrt(2 ln A / (K A)), and sqrt(ln A / K) / Q_max."""
    assert rate_of(make(feedback="full", n_steps=2), 80) == pytest.approx([math.sqrt(8 * math.log(3) / 40) / 0.9] * 39)
    assert rate_of(make(), 50) == pytest.approx([math.sqrt(2 * math.log(3) / 150)] * 49)
    model = make(lambda: chain(4, slip=0.0), feedback="full", gamma=0.9)
    assert rate_of(model, 30) == pytest.approx([math.sqrt(math.log(2) / 30) / 10] * 29)


def test_a_step_size_that_decreases():
    rates = rate_of(make(learning_rate=lambda progress: 0.1 + progress), 4)
    assert rates == pytest.approx([0.85, 0.6, 0.35])
    with pytest.raises(ValueError, match=r"learning_rate at progress 0=0\.0: allowed is a number > 0"):
        make(learning_rate=lambda progress: progress).learn(4)


def test_an_environment_without_rewards():
    assert rate_of(make(lambda: Bandit([0.0, 0.0]), feedback="full"), 2) == pytest.approx([math.sqrt(4 * math.log(2))])


# --- as an algorithm of SB3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", ["full", "bandit"])
def test_a_saved_model_is_the_same(feedback, tmp_path):
    options = {"feedback": feedback, "learning_rate": 0.3, "n_steps": 4}
    model = make(lambda: chain(4), **options).learn(40)
    model.save(tmp_path / "model.zip")
    save(model, tmp_path / "checkpoint")
    loaded = ExponentialWeights.load(tmp_path / "model.zip"), load(tmp_path / "checkpoint")  # without trust
    for other in loaded:
        assert isinstance(other.policy, TabularPolicy)
        assert th.equal(other.policy.logits, model.policy.logits)
        assert other.predict(np.arange(4), deterministic=True)[0].tolist() == probabilities(model).argmax(1).tolist()
    ends = [m.learn(20).policy.logits for m in (model, ExponentialWeights.load(tmp_path / "model.zip", model.env))]
    assert all(end.isfinite().all() for end in ends)


def test_a_saved_model_that_is_only_to_act(tmp_path):
    """As rl_zoo3 loads it."""
    make().learn(10).save(tmp_path / "model.zip")
    replaced = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = ExponentialWeights.load(tmp_path / "model.zip", DummyVecEnv([bandit]), custom_objects=replaced)
    assert model.predict(np.zeros(1, np.int64))[0].shape == (1,)
    with pytest.raises(ValueError, match=r"learning_rate at progress .*=0\.0"):
        model.learn(1)


@pytest.mark.parametrize(
    "options", [{"feedback": "full"}, {"control_variate": [0.1, 0.2], "baseline": 0.5}, {"learning_rate": 0.1}], ids=str
)
def test_it_resumes_to_the_bit(options, tmp_path):
    vec_env = make_vec_env("sb3_pgext/Chain-v0", 2, seed=3, env_kwargs={"n_states": 4})
    model = make(vec_env, n_steps=8, **options).learn(160, CheckpointCallback(1, tmp_path, keep=100))
    between = found(tmp_path)[1:-1]
    assert len(between) >= 3
    for checkpoint in between[:: len(between) // 3]:
        th.manual_seed(7)
        other = resume(checkpoint)
        assert_same(model, other.learn(160 - other.num_timesteps, reset_num_timesteps=False))


def test_predictions_and_evaluation():
    model = make(feedback="full", learning_rate=1.0).learn(50)
    drawn, _ = model.predict(np.zeros(5, np.int64))
    assert drawn.shape == (5,)
    mean, _ = evaluate_policy(model, DummyVecEnv([bandit]), n_eval_episodes=400)
    assert mean == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 400))
    assert model.policy.predict_values(th.zeros(2, 1)).tolist() == [[0.0], [0.0]]


def test_a_seed_fixes_the_run():
    logits = [make(seed=seed).learn(50).policy.logits for seed in (1, 1, 2)]
    assert th.equal(logits[0], logits[1])
    assert not th.equal(logits[0], logits[2])


@pytest.mark.parametrize("algorithm", [REINFORCE, ExponentialWeights])
def test_the_table_belongs_to_any_algorithm(algorithm):
    options = {"baseline": "none"} if algorithm is REINFORCE else {}
    model = algorithm(TabularPolicy, DummyVecEnv([random_mdp]), device="cpu", **options)
    assert sum(p.numel() for p in model.policy.parameters() if p.requires_grad) == 4 * 3
    np.testing.assert_allclose(probabilities(model), 1 / 3)
    model.policy.logits[2] = th.tensor([0.0, 1.0, 2.0])
    distribution = model.policy.get_distribution(th.tensor([2])).distribution
    th.testing.assert_close(distribution.probs[0], th.tensor([0.0, 1.0, 2.0]).softmax(0))


@pytest.mark.compiler
def test_compiled_acting_is_the_same():
    models = [make(lambda: chain(4), n_steps=8, learning_rate=0.1, compile=c).learn(80) for c in (False, True)]
    th.testing.assert_close(models[1].policy.logits, models[0].policy.logits)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0\.0: allowed is a finite number > 0, or a schedule"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": "much"}, "learning_rate='much': allowed is 'auto'"),
        ({"learning_rate": np.array([0.1, 0.2])}, "learning_rate="),
        ({"feedback": "half"}, "feedback='half': allowed is one of 'full', 'bandit'"),
        ({"baseline": math.inf}, "baseline=inf: allowed is a finite number"),
        ({"baseline": "time"}, "baseline='time'"),
        ({"control_variate": [0.1]}, r"control_variate=\[0\.1\]: allowed is None, or finite numbers of shape \(3,\)"),
        ({"control_variate": [0.1, 0.2, math.nan]}, "control_variate="),
        ({"control_variate": "none"}, "control_variate='none'"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"policy": "CnnPolicy"}, "policy='CnnPolicy': allowed is one of 'MlpPolicy'"),
        ({"policy_kwargs": {"net_arch": [4]}}, r"policy_kwargs: net_arch=\[4\]: allowed is none"),
        ({"feedback": "full", "baseline": 1.0}, r"baseline=1\.0: allowed is 0\.0 \(the default\) with feedback='full'"),
        ({"feedback": "full", "control_variate": [0, 0, 0]}, "control_variate=.*: allowed is None with feedback"),
        ({"compile": 1}, "compile=1"),
    ],
)
def test_wrong_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        ExponentialWeights(**{"policy": "MlpPolicy", "env": bandit(), "device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("env", "arguments", "error", "named"),
    [
        (lambda: AnySpaces(VECTOR, ACTIONS["discrete"]), {}, ValueError, "observation_space=Box.*Discrete"),
        (lambda: AnySpaces(spaces.Discrete(3), ACTIONS["box"]), {}, AssertionError, "Discrete"),
        (
            lambda: AnySpaces(spaces.Discrete(3), ACTIONS["discrete"]),
            {"feedback": "full"},
            ValueError,
            "feedback='full'",
        ),
        (lambda: chain(3, horizon=5, at_horizon="terminate"), {"feedback": "full"}, ValueError, "horizon"),
        (gridworld, {"feedback": "full", "gamma": 1.0}, ValueError, "learning_rate='auto'.*gamma=1"),
    ],
)
def test_wrong_environments(env, arguments, error, named):
    with pytest.raises(error, match=named):
        make(env, **arguments)


def test_a_policy_that_is_no_table():
    with pytest.raises(ValueError, match="policy='ActorCriticPolicy': allowed is 'MlpPolicy' or a subclass"):
        ExponentialWeights(REINFORCE.policy_aliases["MlpPolicy"], bandit())
    with pytest.raises(ValueError, match="observation_space=Box"):
        REINFORCE(TabularPolicy, gym.make("CartPole-v1"))


def test_an_estimate_that_is_not_finite_moves_nothing():
    model = make(learning_rate=0.1)
    model.learn(5)
    before = model.policy.logits.clone()

    def spoil(local, _):
        local["rewards"][:] = 3e38
        return True

    with pytest.raises(ValueError, match="estimate of Q"):
        model.learn(1, spoil)
    assert th.equal(model.policy.logits, before)
