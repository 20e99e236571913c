"""Claim: VPG with a critic of Q learns what its options say, on every space, and its V is the policy's mean of Q."""

import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import VPG, load, save
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from sb3_pgext.algorithms.policies import QCriticCnnPolicy, QCriticMultiInputPolicy, QCriticPolicy
from sb3_pgext.diagnostics import set_options
from sb3_pgext.engine import graphs, regression
from tests.algorithms.policies import moved_parameters
from tests.environments import ACTIONS, DICT, IMAGE, VECTOR, ActionIsReward, AnySpaces, Scripted
from tests.tracing import traced_only

MANY = {"many_choices": spaces.MultiDiscrete([20, 30]), "many_bits": spaces.MultiBinary(9)}
DRAWN = {name: {"n_action_samples": 3} for name in ("box", "box_2d", *MANY)}
"""The spaces whose actions are not enumerated."""
SPACES = {**ACTIONS, **MANY}
SGD = {"optimizer_class": th.optim.SGD}


def model_on(env="CartPole-v1", policy="MlpPolicy", **parameters):
    defaults = {"critic": "q", "n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    return VPG(policy, env, **{**defaults, **parameters})


def env_of(action="discrete", observation=VECTOR, n_envs=2):
    env = DummyVecEnv([lambda: AnySpaces(observation, SPACES[action])] * n_envs)
    env.seed(0)
    return env


def collected(model):
    """The model with a rollout, as ``train`` finds it."""
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


# --- the policy ------------------------------------------------------------------------------------------------------


def every_action(space):
    """The joint actions in the order of an odometer."""
    sizes = [2] * space.n if isinstance(space, spaces.MultiBinary) else space.nvec
    return th.as_tensor(np.array(list(np.ndindex(*sizes)))).float()


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary"])
def test_v_is_the_mean_of_q_over_all_actions(action):
    model = collected(model_on(env_of(action)))
    policy, obs = model.policy, model.rollout.observations[:4]
    actions = th.arange(3) if action == "discrete" else every_action(SPACES[action])
    Q, V = policy.q_values(obs), policy.predict_values(obs)
    assert Q.shape == (4, len(actions))
    assert V.shape == (4, 1)
    expected = th.zeros(4)
    for number, a in enumerate(actions):
        same = a.expand(4, *a.shape)
        th.testing.assert_close(policy.q_values(obs, same), Q[:, number])
        expected += policy.get_distribution(obs).log_prob(same).exp() * Q[:, number]
    th.testing.assert_close(V.flatten(), expected)
    values, log_prob, _ = policy.evaluate_actions(obs, model.rollout.actions[:4])
    th.testing.assert_close(values, V)
    th.testing.assert_close(log_prob, policy.get_distribution(obs).log_prob(model.rollout.actions[:4]))
    th.testing.assert_close(policy(obs)[1], V)


@pytest.mark.parametrize("action", DRAWN)
def test_v_is_the_mean_of_q_over_draws(action):
    """Whose mean is that of many more, to four standard errors; Q takes features and action together."""
    model = collected(model_on(env_of(action), n_steps=2, n_action_samples=2000))
    policy, obs = model.policy, model.rollout.observations[:1]
    assert policy.n_action_samples == 2000
    V = policy.predict_values(obs).item()
    many = obs.expand(20_000, 3)
    draws = policy.get_distribution(many).sample()
    Q = policy.q_values(many, draws)
    assert abs(V - Q.mean().item()) < 4.5 * Q.std().item() / 2000**0.5
    one, other = draws[:2]
    assert not th.equal(one, other)
    assert policy.q_values(obs, one[None]) != policy.q_values(obs, other[None])


def test_the_draws_of_gsde_are_independent():
    """It acts with one noise matrix for all steps: the draws behind V have the same distribution, but are their own."""
    model = collected(model_on(env_of("box"), n_action_samples=64, use_sde=True))
    policy, obs = model.policy, model.rollout.observations[:1]
    taken = policy.get_distribution(obs).sample()
    assert th.equal(policy.get_distribution(obs).sample(), taken)
    first, second = (policy.predict_values(obs).item() for _ in range(2))
    assert first != second
    assert first != policy.q_values(obs, taken).item()
    squashed = model_on(env_of("box"), n_action_samples=4, use_sde=True, policy_kwargs={"squash_output": True})
    squashed.learn(64)


POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE, "MultiInputPolicy": DICT}


@pytest.mark.parametrize("gradient", ["sampled", "all_action"])
@pytest.mark.parametrize(
    ("policy", "action"),
    [
        *(("MlpPolicy", action) for action in SPACES),
        ("CnnPolicy", "discrete"),
        ("CnnPolicy", "box"),
        ("MultiInputPolicy", "multi_discrete"),
        ("MultiInputPolicy", "many_bits"),
    ],
)
def test_every_space_is_learnt(policy, action, gradient, tmp_path):
    """All parameters move, on one and several sub-environments; what is saved, in either way, predicts the same."""
    for n_envs in (1, 2):
        options = {**DRAWN.get(action, {}), "gradient": gradient, "n_steps": 8, "batch_size": 8}
        model = model_on(env_of(action, POLICIES[policy], n_envs), policy, **options)
        moved = moved_parameters(model, lambda model=model: model.learn(32))
        assert moved == {name for name, _ in model.policy.named_parameters()}
    observations = model.env.reset()
    expected = model.predict(observations, deterministic=True)[0]
    model.save(tmp_path / "model")
    save(model, tmp_path / "checkpoint")
    for loaded in (VPG.load(tmp_path / "model", device="cpu"), load(tmp_path / "checkpoint", device="cpu")):
        assert type(loaded.policy) is type(model.policy)
        assert (loaded.critic, loaded.gradient) == ("q", gradient)
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)
        obs = loaded.policy.obs_to_tensor(observations)[0]
        actions = None if action not in DRAWN else loaded.policy.get_distribution(obs).mode()
        th.testing.assert_close(loaded.policy.q_values(obs, actions), model.policy.q_values(obs, actions))
        loaded.set_env(model.env)
        loaded.learn(16)


def test_the_policies_by_name_and_class():
    assert type(model_on().policy) is QCriticPolicy
    assert type(model_on(policy=ActorCriticPolicy).policy) is QCriticPolicy
    assert type(model_on(env_of(observation=IMAGE), "CnnPolicy").policy) is QCriticCnnPolicy
    assert type(model_on(env_of(observation=DICT), "MultiInputPolicy").policy) is QCriticMultiInputPolicy
    assert type(model_on(policy=QCriticPolicy, critic="v").policy) is ActorCriticPolicy

    class Own(QCriticPolicy):
        def q_values(self, obs, actions=None):
            return super().q_values(obs, actions)

    assert type(model_on(policy=Own).learn(32).policy) is Own


@pytest.mark.parametrize("net_arch", [None, [], [8], {"pi": [8], "vf": []}, {"pi": [8], "vf": [4, 4]}])
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_net_arch(net_arch, action):
    model = model_on(env_of(action), policy_kwargs={"net_arch": net_arch}, **DRAWN.get(action, {}))
    model.learn(64)
    hidden = [64, 64] if net_arch is None else net_arch["vf"] if isinstance(net_arch, dict) else net_arch
    sizes = [3 + 2 * (action == "box"), *hidden, 1 if action == "box" else 3]
    weights = [p for name, p in critic_parameters(model.policy).items() if name.endswith("weight")]
    assert [tuple(w.shape) for w in weights] == [(after, before) for before, after in itertools.pairwise(sizes)]


# --- the update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["discrete", "multi_discrete"])
def test_the_step_over_all_actions_is_along_the_formula(action):
    """1/M Σ_t Σ_a ∇π(a|s_t) Q(s_t, a) + c ∇ mean H, with the Q that acted, one state and action at a time."""
    options = {"gradient": "all_action", "ent_coef": 0.1, "learning_rate": 0.01, "policy_kwargs": SGD}
    model = collected(model_on(env_of(action), n_steps=4, **options))
    policy, rollout = model.policy, model.rollout
    parameters = list(policy_parameters(policy).values())
    before = th.nn.utils.parameters_to_vector(parameters).detach().clone()
    actions = th.arange(3) if action == "discrete" else every_action(SPACES[action])
    surrogate = 0.0
    for step in range(8):
        obs = rollout.observations[step : step + 1]
        for a in actions:
            probability = policy.get_distribution(obs).log_prob(a[None]).exp()
            surrogate = surrogate + probability * policy.q_values(obs, a[None]).detach() / 8
        surrogate = surrogate + 0.1 * policy.get_distribution(obs).entropy() / 8
    expected = th.cat([g.flatten() for g in th.autograd.grad(surrogate.sum(), parameters)])
    th.testing.assert_close(model.estimate_gradient(), expected, rtol=1e-3, atol=1e-6)
    model.train()
    moved = th.nn.utils.parameters_to_vector(parameters).detach() - before
    th.testing.assert_close(moved, 0.01 * expected, rtol=1e-2, atol=1e-6)


def test_targets_and_advantages():
    """On the steps (0, t), t = 0, 1, 2, and (1, t), t = 0, 1, rewards 100·i + t, cut by the rollout."""

    def of(**options):
        env = DummyVecEnv([lambda: Scripted((3, 9))])
        model = collected(model_on(env, n_steps=5, gamma=0.5, batch_size=5, **options))
        policy, rollout = model.policy, model.rollout
        Q = policy.q_values(rollout.observations, rollout.actions).tolist()
        V = policy.predict_values(rollout.observations).flatten().tolist()
        return rollout, Q, V, policy.predict_values(th.tensor([[1.0, 2.0]])).item()

    rollout, Q, V, end = of(critic_target="sarsa", advantage="td")
    y = [0.5 * Q[1], 1 + 0.5 * Q[2], 2, 100 + 0.5 * Q[4], 101 + 0.5 * end]
    assert rollout.returns.tolist() == pytest.approx(y)
    assert rollout.advantages.tolist() == pytest.approx([a - b for a, b in zip(y, V, strict=True)])

    rollout, Q, V, end = of(critic_target="expected_sarsa", advantage="q")
    assert rollout.returns.tolist() == pytest.approx([0.5 * V[1], 1 + 0.5 * V[2], 2, 100 + 0.5 * V[4], 101 + 0.5 * end])
    assert rollout.advantages.tolist() == pytest.approx([a - b for a, b in zip(Q, V, strict=True)], abs=1e-6)

    rollout, Q, V, end = of(critic_target="n_step", advantage="n_step", lookahead=2)
    y = [0.5 * 1 + 0.25 * Q[2], 1 + 0.5 * 2, 2, 100 + 0.5 * (101 + 0.5 * end), 101 + 0.5 * end]
    assert rollout.returns.tolist() == pytest.approx(y)
    assert rollout.advantages.tolist() == pytest.approx([a - b for a, b in zip(y, V, strict=True)])


def test_a_truncated_episode_is_continued_by_v():
    """Of its final observation, (0, 3), and not by the Q of the next episode's first action."""
    env = DummyVecEnv([lambda: Scripted((-3, 9))])
    model = collected(model_on(env, n_steps=5, gamma=0.5, batch_size=5, critic_target="sarsa", advantage="td"))
    policy, rollout = model.policy, model.rollout
    final = policy.predict_values(th.tensor([[0.0, 3.0]])).item()
    assert rollout.returns[2].item() == pytest.approx(2 + 0.5 * final)
    V = policy.predict_values(rollout.observations[2:3]).item()
    assert rollout.advantages[2].item() == pytest.approx(2 + 0.5 * final - V)


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({"advantage": "q"}, "expected_sarsa"),
        ({"advantage": "td"}, "lambda"),
        ({"advantage": "n_step"}, "n_step"),
        ({"gradient": "all_action"}, "mc"),
        ({"gradient": "all_action"}, "sarsa"),
    ],
)
def test_it_learns(options, target):
    """The action that is rewarded becomes likely."""
    options = {**options, "critic_target": target, "n_steps": 16, "learning_rate": 0.03, "gamma": 1.0}
    model = model_on(DummyVecEnv([ActionIsReward] * 16), **options, n_critic_updates=5).learn(5000)
    assert evaluate_policy(model, ActionIsReward(), 5)[0] == 5
    assert model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1] > 0.9


def test_the_critic_fits_and_only_its_own_parameters():
    model = collected(model_on("Pendulum-v1", n_action_samples=2, policy_kwargs={"share_features_extractor": False}))
    rollout = model.rollout
    of_critic = moved_parameters(
        model, lambda: model._fit_critic(rollout.observations, rollout.returns, rollout.values, rollout.actions)
    )
    assert of_critic == set(critic_parameters(model.policy))
    assert of_critic.isdisjoint(policy_parameters(model.policy))


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_features_that_the_fit_leaves_as_they_are_are_computed_once(action, share_features_extractor, monkeypatch):
    """With the same parameters after it."""

    def fitted():
        kwargs = {"share_features_extractor": share_features_extractor}
        options = {"n_steps": 8, "batch_size": 8, **DRAWN.get(action, {})}
        model = model_on(env_of(action, IMAGE), "CnnPolicy", policy_kwargs=kwargs, **options)
        rollout, calls = collected(model).rollout, []
        extractor = type(model.policy.vf_features_extractor)
        forward = extractor.forward
        with monkeypatch.context() as patch:
            patch.setattr(extractor, "forward", lambda self, x: calls.append(1) or forward(self, x))
            model._fit_critic(rollout.observations, rollout.returns, rollout.values, rollout.actions)
        return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), len(calls)

    parameters, n_calls = fitted()
    monkeypatch.setattr(regression, "foreign_part", lambda *_: "someone's")
    wanted, n_calls_without = fitted()
    assert n_calls_without - n_calls == (3 if share_features_extractor else 0)
    assert th.allclose(parameters, wanted, rtol=0, atol=1e-5)


# --- options ---------------------------------------------------------------------------------------------------------


def parameters_after(**parameters):
    model = model_on(env_of("box" if "n_action_samples" in parameters else "discrete"), **parameters).learn(130)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


@pytest.mark.parametrize(
    ("change", "base"),
    [
        *(({"advantage": advantage}, {}) for advantage in ("mc", "td", "n_step", "q")),
        *(({"critic_target": target}, {}) for target in ("mc", "sarsa", "expected_sarsa", "n_step")),
        ({"lookahead": 2}, {"critic_target": "n_step"}),
        ({"lookahead": 2}, {"critic_target": "n_step", "gradient": "all_action"}),
        ({"gradient": "all_action"}, {}),
        ({"gae_lambda": 0.5}, {"gradient": "all_action"}),
        ({"ent_coef": 0.1}, {"gradient": "all_action"}),
        ({"n_action_samples": 4}, {"n_action_samples": 3}),
        ({"n_action_samples": 4}, {"n_action_samples": 3, "gradient": "all_action"}),
    ],
)
def test_every_option_changes_the_run(change, base):
    assert not th.equal(parameters_after(**{**base, **change}), parameters_after(**base))


class Writes(BaseCallback):
    """Writes zeros into a column of the rollout's buffer."""

    def __init__(self, column):
        super().__init__()
        self.column = column

    def _on_rollout_end(self):
        getattr(self.model.rollout_buffer, self.column)[:] = 0.0

    def _on_step(self):
        return True


@pytest.mark.parametrize("options", [{"gradient": "all_action"}, {"advantage": "q"}, {"advantage": "td"}])
def test_what_a_callback_writes_is_learnt_from(options):
    """Advantages by the gradient of the action taken alone; returns by the critic; rewards by what depends on them."""

    def trained(callback=None):
        model = model_on(env_of(), critic_target="sarsa", policy_kwargs=SGD, **options).learn(64, callback)
        return model.policy, dict(model.policy.named_parameters())

    policy, untouched = trained()
    changed = {}
    for column in ("advantages", "returns", "rewards"):
        differs = {name for name, p in trained(Writes(column))[1].items() if not th.equal(p, untouched[name])}
        sides = policy_parameters(policy), critic_parameters(policy)
        changed[column] = tuple(not differs.isdisjoint(of_side) for of_side in sides)
    of_policy = options != {"gradient": "all_action"}
    assert changed["advantages"] == (of_policy, False)
    assert changed["returns"] == (False, True)
    assert changed["rewards"] == (options == {"advantage": "td"}, True)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"critic": "p"}, "critic='p'.*'v', 'q'"),
        ({"critic": np.array(["q"])}, "critic=array"),
        ({"gradient": "expected"}, "gradient='expected'.*'sampled', 'all_action'"),
        ({"critic": "v", "gradient": "all_action"}, "critic='v': allowed is 'q' with gradient='all_action'"),
        ({"critic": "v", "advantage": "q"}, "advantage='q': allowed is one of 'mc', 'td', 'n_step', 'gae'$"),
        ({"critic": "v", "critic_target": "sarsa"}, "critic_target='sarsa': allowed is one of 'mc', 'td', 'lambda'"),
        ({"critic_target": "td"}, "critic_target='td': allowed is one of 'mc', 'lambda', 'sarsa', 'expected_sarsa'"),
        ({"gradient": "all_action", "advantage": "q"}, "advantage='q': allowed is 'gae'.*no advantages"),
        ({"gradient": "all_action", "normalize_advantage": True}, "normalize_advantage=True: allowed is False"),
        ({"gradient": "all_action", "lookahead": 3}, "lookahead=3.*gradient='all_action'"),
        ({"gradient": "all_action", "critic_target": "mc", "gae_lambda": 0.9}, "gae_lambda=0.9.*all_action"),
        ({"critic_target": "sarsa", "lookahead": 3}, "lookahead=3.*critic_target='sarsa'"),
        ({"n_action_samples": 4}, "n_action_samples=4: allowed is None with critic='q', as all actions"),
        ({"critic": "v", "n_action_samples": 4}, "n_action_samples=4: allowed is None with critic='v'"),
        ({"env": "Pendulum-v1"}, "n_action_samples=None: allowed is a whole number >= 2"),
        ({"env": "Pendulum-v1", "n_action_samples": 1}, "n_action_samples=1: allowed is a whole number >= 2"),
        ({"env": "Pendulum-v1", "n_action_samples": 2.5}, "n_action_samples=2.5"),
        ({"env": "Pendulum-v1", "gradient": "all_action"}, "n_action_samples=None"),
        ({"policy": type("Own", (ActorCriticPolicy,), {})}, "policy='Own': allowed is a QCriticPolicy class"),
        ({"policy": type("Own", (QCriticPolicy,), {}), "critic": "v"}, "policy='Own': allowed is no QCriticPolicy"),
    ],
)
def test_bad_arguments(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


@pytest.mark.parametrize("action", MANY)
@pytest.mark.parametrize("gradient", ["sampled", "all_action"])
def test_more_joint_actions_than_are_enumerated(action, gradient):
    with pytest.raises(ValueError, match="n_action_samples=None: allowed is a whole number >= 2"):
        model_on(env_of(action), gradient=gradient)


def test_set_options_gives_another_critic_to_the_same_policy():
    model = collected(model_on(env_of(), critic="v", advantage="n_step", lookahead=3))
    before = {name: p.detach().clone() for name, p in policy_parameters(model.policy).items()}
    assert set_options(model, gradient="all_action") == {"critic": "q", "advantage": "gae", "lookahead": 5}
    assert type(model.policy) is QCriticPolicy
    assert all(th.equal(p, before[name]) for name, p in policy_parameters(model.policy).items())
    collected(model).estimate_gradient()
    set_options(model, gradient="sampled", critic="v")
    assert type(model.policy) is ActorCriticPolicy
    assert all(th.equal(p, before[name]) for name, p in policy_parameters(model.policy).items())


def test_draws_for_the_parameters_leave_the_generator_alone():
    """Which parameters V depends on is found out by evaluating it."""
    model = model_on(env_of("box"), n_action_samples=3)
    state = th.get_rng_state()
    critic_parameters(model.policy)
    assert th.equal(th.get_rng_state(), state)


COMPILED = list(itertools.product(("discrete", "box", "many_choices"), ("sampled", "all_action")))


@pytest.mark.parametrize(("action", "gradient"), COMPILED)
def test_traced(action, gradient, recwarn, monkeypatch):
    """As compiled, but for the compiler."""
    monkeypatch.setattr(graphs, "_compile", traced_only)
    assert_same_if_compiled(action, gradient, recwarn)


@pytest.mark.compiler
@pytest.mark.parametrize(("action", "gradient"), [COMPILED[1], COMPILED[2]])
def test_compiled(action, gradient, recwarn):
    assert_same_if_compiled(action, gradient, recwarn)


def assert_same_if_compiled(action, gradient, recwarn):
    """Acting, Q and the fit: the same parameters up to rounding, the draws included, and nothing runs uncompiled."""
    parameters = []
    for compiled in (False, True):
        options = {**DRAWN.get(action, {}), "gradient": gradient, "critic_target": "sarsa"}
        model = model_on(env_of(action), compile=compiled, **options).learn(200)
        parameters.append(th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    th.testing.assert_close(parameters[1], parameters[0], rtol=1e-3, atol=1e-4)
    assert not [w for w in recwarn if "uncompiled" in str(w.message)]


@pytest.mark.parametrize(("made", "later"), [("v", "q"), ("q", "v")])
def test_a_critic_that_the_policy_does_not_have(made, later):
    model = VPG("MlpPolicy", "CartPole-v1", n_steps=8, critic=made, device="cpu")
    model.critic = later
    with pytest.raises(ValueError, match=f"critic='{later}': allowed is '{made}', as the policy was made"):
        model.learn(8)
