"""Claim: VPG's update is the one of its formula, and every option does something."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import VPG
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from sb3_pgext.engine import regression
from sb3_pgext.envs import chain
from sb3_pgext.rollouts import StepBuffer
from tests.algorithms.policies import SharedTrunk, moved_parameters
from tests.environments import ACTIONS, IMAGE, VECTOR, ActionIsReward, AnySpaces, Countdown, Scripted
from tests.rollouts.definitions import advantages_by_definition

ADVANTAGES = ["mc", "td", "n_step", "gae"]
SGD = {"optimizer_class": th.optim.SGD}


def model_on(env="CartPole-v1", policy="MlpPolicy", **parameters):
    return VPG(policy, env, **{"n_steps": 64, "batch_size": 32, "seed": 0, "device": "cpu", **parameters})


def collected(model):
    """The model with a rollout, as ``train`` finds it."""
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def parameters_after(steps=150, **parameters):
    """The parameters after a short training, as one vector."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), **parameters).learn(steps)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


# --- the update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_step_is_along_the_formula(advantage, normalize_advantage):
    """With plain gradient ascent the policy moves by η (1/M Σ ∇log π Ψ + c ∇ mean H), summed step by step."""
    options = {"n_step": {"lookahead": 3}, "gae": {"gae_lambda": 0.8}}.get(advantage, {})
    model = collected(
        model_on(
            make_vec_env("CartPole-v1", 2, seed=0),
            gamma=0.9,
            advantage=advantage,
            normalize_advantage=normalize_advantage,
            ent_coef=0.1,
            learning_rate=0.01,
            policy_kwargs=SGD,
            **options,
        )
    )
    rollout, parameters = model.rollout, list(policy_parameters(model.policy).values())
    assert model.rollout_buffer.episode_starts[1:].any(), "episodes have ended"
    assert not model._last_episode_starts.all(), "and the rollout has cut others"
    Psi = advantages_by_definition(model, advantage, lookahead=3)
    if normalize_advantage:
        Psi = (Psi - Psi.mean()) / (Psi.std() + 1e-8)

    before = th.nn.utils.parameters_to_vector(parameters).detach().clone()
    distribution = model.policy.get_distribution(rollout.observations).distribution
    log_prob = distribution.log_prob(rollout.actions)
    entropy = -(distribution.probs * distribution.logits).sum(1).mean()
    estimate = 0.1 * th.cat([g.flatten() for g in th.autograd.grad(entropy, parameters, retain_graph=True)])
    for step in range(128):
        score = th.cat([g.flatten() for g in th.autograd.grad(log_prob[step], parameters, retain_graph=True)])
        estimate += score * Psi[step] / 128

    th.testing.assert_close(model.estimate_gradient(), estimate, rtol=1e-3, atol=1e-5)
    model.train()
    moved = th.nn.utils.parameters_to_vector(parameters).detach() - before
    th.testing.assert_close(moved, 0.01 * estimate, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_policys_first_step_is_that_of_a2c(env):
    """SB3's A2C acts, estimates advantages and steps by code of its own."""
    options = {"n_steps": 210, "gamma": 0.95, "gae_lambda": 0.9, "ent_coef": 0.01, "learning_rate": 10.0, "seed": 0}
    options |= {"device": "cpu", "policy_kwargs": SGD}
    start = model_on(make_vec_env(env, 2, seed=0), **options).policy.state_dict()
    a2c = A2C("MlpPolicy", make_vec_env(env, 2, seed=0), max_grad_norm=1e9, **options).learn(420)
    vpg = model_on(make_vec_env(env, 2, seed=0), **options)
    vpg._fit_critic = lambda *_: None
    vpg.learn(420)
    for name in policy_parameters(vpg.policy):
        theirs, ours = (model.policy.state_dict()[name] - start[name] for model in (a2c, vpg))
        assert ours.abs().max() > 1e-4
        th.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_it_learns(advantage):
    """The action that is rewarded becomes likely, by every estimator."""
    model = model_on(
        DummyVecEnv([ActionIsReward] * 16), n_steps=16, advantage=advantage, learning_rate=0.03, gamma=1.0
    ).learn(3000)
    assert evaluate_policy(model, ActionIsReward(), 5)[0] == 5
    assert model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1] > 0.9


@pytest.mark.prove
@pytest.mark.parametrize("advantage", ["n_step", "gae"])
def test_it_learns_what_pays_later_only(advantage):
    """Right along the chain: from its left end that pays after four steps, and left pays a tenth of it at once."""
    env = DummyVecEnv([lambda: chain(4, slip=0.0, horizon=50)] * 16)
    env.seed(0)
    model = model_on(env, advantage=advantage, learning_rate=0.03, ent_coef=0.01, n_steps=16).learn(8000)
    assert (model.predict(np.arange(4), deterministic=True)[0] == 1).all()


def critic_target_of(target, **parameters):
    """The values y_t that V is fitted to, on segments (0, t), t = 0, 1, 2, and (1, t), t = 0, 1; rewards 100·i + t."""
    env = DummyVecEnv([lambda: Scripted((3, 9))])
    model = collected(model_on(env, n_steps=5, gamma=0.5, critic_target=target, **parameters))
    seen = {}
    model._fit_critic = lambda observations, targets, *_: seen.update(y=targets.tolist())
    model.train()
    assert model._last_obs.tolist() == [[1, 2]]
    return seen["y"], model.rollout.values.tolist(), model.policy.predict_values(th.tensor([[1.0, 2.0]])).item()


def test_critic_targets():
    y, _, final = critic_target_of("mc")
    assert final != 0
    assert y == pytest.approx([0 + 0.5 * 2, 1 + 0.5 * 2, 2, 100 + 0.5 * (101 + 0.5 * final), 101 + 0.5 * final])

    y, V, final = critic_target_of("td")
    assert y == pytest.approx([0.5 * V[1], 1 + 0.5 * V[2], 2, 100 + 0.5 * V[4], 101 + 0.5 * final])

    y, V, final = critic_target_of("lambda", gae_lambda=0.5)
    assert y[4] == pytest.approx(101 + 0.5 * final)
    assert y[3] == pytest.approx(100 + 0.5 * (0.5 * V[4] + 0.5 * y[4]))
    assert y[2] == pytest.approx(2)
    assert y[1] == pytest.approx(1 + 0.5 * (0.5 * V[2] + 0.5 * y[2]))


def columns_of_the_fit(model):
    return model.rollout.observations, model.rollout.returns, model.rollout.values


def test_the_critic_fits():
    """Repeated fits bring V near the return, here 5 - t, and the log says so."""
    model = model_on(DummyVecEnv([Countdown]), gamma=1.0, learning_rate=1e-2, n_critic_updates=20).learn(30 * 64)
    rollout = model.rollout
    th.testing.assert_close(rollout.values, 5.0 - rollout.observations.flatten(), rtol=0, atol=0.2)
    assert model.logger.name_to_value["train/explained_variance"] > 0.99
    assert model.logger.name_to_value["train/value_loss"] < 0.05


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_each_step_moves_its_own_parameters_only(share_features_extractor):
    model = collected(
        model_on(
            "Pendulum-v1",
            policy_kwargs={
                "features_extractor_class": SharedTrunk,
                "share_features_extractor": share_features_extractor,
                "optimizer_kwargs": {"weight_decay": 0.1},
            },
        )
    )
    fit, model._fit_critic = model._fit_critic, lambda *_: None
    of_policy = moved_parameters(model, model.train)
    of_critic = moved_parameters(model, lambda: fit(*columns_of_the_fit(model)))
    assert of_policy == set(policy_parameters(model.policy))
    assert of_critic == set(critic_parameters(model.policy))
    assert not of_policy & of_critic
    assert "log_std" in of_policy
    assert "value_net.weight" in of_critic


@pytest.mark.parametrize("space", ["vector", "image"])
@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_features_that_the_fit_leaves_as_they_are_are_computed_once(space, share_features_extractor, monkeypatch):
    """With the same parameters after it. A shared NatureCNN is the policy's, a flattened vector nobody's."""

    def fitted():
        kwargs = {"share_features_extractor": share_features_extractor}
        env = DummyVecEnv([lambda: AnySpaces(IMAGE if space == "image" else VECTOR, spaces.Discrete(3))])
        env.seed(0)
        policy = "CnnPolicy" if space == "image" else "MlpPolicy"
        model = collected(model_on(env, policy, policy_kwargs=kwargs, n_critic_updates=3))
        calls = []
        extractor = type(model.policy.vf_features_extractor)
        forward = extractor.forward
        with monkeypatch.context() as patch:
            patch.setattr(extractor, "forward", lambda self, x: calls.append(1) or forward(self, x))
            model._fit_critic(*columns_of_the_fit(model))
        return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), len(calls)

    parameters, n_calls = fitted()
    monkeypatch.setattr(regression, "has_sb3s", lambda *_: False)
    wanted, n_calls_without = fitted()
    assert n_calls_without - n_calls == (0 if (space, share_features_extractor) == ("image", False) else 5)
    assert th.allclose(parameters, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["dropout", "batch_norm", "hook", "forward", "predict_values"])
def test_features_that_a_user_has_changed_are_computed_in_each_step(change):
    env = DummyVecEnv([lambda: AnySpaces(IMAGE, spaces.Discrete(3))])
    model = collected(model_on(env, "CnnPolicy", n_steps=4, batch_size=2))
    policy, calls = model.policy, []
    extractor = policy.features_extractor
    if change == "dropout":
        extractor.linear.append(th.nn.Dropout())
    if change == "batch_norm":
        extractor.linear.append(th.nn.BatchNorm1d(512))
    if change == "hook":
        extractor.cnn.register_forward_hook(lambda *_: None)
    for module in (extractor, policy):
        if hasattr(module, change):
            original = getattr(module, change)
            setattr(module, change, lambda x, original=original: calls.append(1) or original(x))
    observations = model.rollout.observations
    inputs, _ = regression._inputs(policy, observations, list(critic_parameters(policy).values()))
    assert inputs is observations


@pytest.mark.parametrize("leave", [lambda policy: delattr(policy, "vf_features_extractor"),
                                   lambda policy: setattr(policy, "vf_features_extractor", None)])  # fmt: skip
def test_a_policy_with_values_of_its_own_needs_no_features_extractor_for_them(leave):
    class Own(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            distribution = self.get_distribution(obs)
            actions = distribution.get_actions(deterministic=deterministic)
            return actions, self.predict_values(obs), distribution.log_prob(actions)

        def get_distribution(self, obs):
            return super().get_distribution(obs)

        def evaluate_actions(self, obs, actions):
            distribution = self.get_distribution(obs)
            return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

        def predict_values(self, obs):
            features = self.extract_features(obs, self.features_extractor)
            return self.value_net(self.mlp_extractor.forward_critic(features))

    model = model_on(policy=Own)
    leave(model.policy)
    start = model.policy.value_net.weight.clone()
    model.learn(64)
    assert not th.equal(model.policy.value_net.weight, start)


@pytest.mark.parametrize("frozen", ["policy", "critic"])
def test_all_of_one_side_may_be_frozen(frozen):
    model = model_on()
    parameters = {"policy": policy_parameters, "critic": critic_parameters}[frozen](model.policy)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    moved = moved_parameters(model, lambda: model.learn(100))
    assert moved
    assert moved.isdisjoint(parameters)


def test_an_estimate_changes_nothing():
    model = collected(model_on())
    assert not moved_parameters(model, model.estimate_gradient)
    assert model._n_updates == 0


# --- logs ------------------------------------------------------------------------------------------------------------


def test_logged_keys():
    keys = set(model_on("Pendulum-v1").learn(200).logger.name_to_value)
    expected = "learning_rate n_updates entropy_loss policy_gradient_loss grad_norm value_loss explained_variance std"
    assert {f"train/{key}" for key in expected.split()} <= keys


# --- options ---------------------------------------------------------------------------------------------------------

BASES = {}
"""The parameters after a training with the options that stay as they are: each is compared with several changes."""


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"learning_rate": 2e-3}, {}),
        ({"n_steps": 65}, {}),
        ({"batch_size": 16}, {}),
        ({"gamma": 0.9}, {}),
        *(({"advantage": advantage}, {}) for advantage in ("mc", "td", "n_step")),
        ({"lookahead": 4}, {"advantage": "n_step"}),
        ({"gae_lambda": 0.5}, {"critic_target": "mc"}),
        ({"gae_lambda": 0.5}, {"advantage": "mc"}),
        ({"critic_target": "mc"}, {}),
        ({"critic_target": "td"}, {}),
        ({"n_critic_updates": 9}, {}),
        ({"normalize_advantage": True}, {"policy_kwargs": SGD}),
        ({"ent_coef": 0.1}, {}),
        ({"max_grad_norm": 0.05}, {"policy_kwargs": SGD}),
        ({"policy_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.ReLU}}, {}),
    ],
)
def test_every_option_changes_the_run(change, base):
    if repr(base) not in BASES:
        BASES[repr(base)] = parameters_after(**base)
    assert not th.equal(parameters_after(**{**base, **change}), BASES[repr(base)])


class ScaledRewards(StepBuffer):
    def __init__(self, *args, scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def add(self, obs, action, reward, episode_start, value, log_prob):
        super().add(obs, action, self.scale * reward, episode_start, value, log_prob)


def test_a_buffer_of_ones_own():
    own = {"rollout_buffer_class": ScaledRewards}
    assert th.equal(parameters_after(**own), parameters_after())
    assert not th.equal(parameters_after(**own, rollout_buffer_kwargs={"scale": 0.5}), parameters_after())


def test_gsde_options_change_the_run():
    def after(**parameters):
        env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])] * 2)
        env.seed(0)
        policy = model_on(env, n_steps=16, **parameters).learn(64).policy
        return policy.get_distribution(th.zeros(1, 3)).distribution.mean.detach()

    assert not th.equal(after(use_sde=True), after())
    assert not th.equal(after(use_sde=True, sde_sample_freq=1), after(use_sde=True))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"advantage": "lambda"}, "advantage='lambda'.*'mc', 'td', 'n_step', 'gae'"),
        ({"critic_target": "gae"}, "critic_target='gae'.*'mc', 'td', 'lambda'"),
        ({"advantage": "n_step", "lookahead": 0}, "lookahead=0.*>= 1"),
        ({"advantage": "n_step", "lookahead": 2.0}, "lookahead=2.0.*whole number"),
        ({"n_steps": 0}, "n_steps=0.*>= 1"),
        ({"n_steps": 1, "normalize_advantage": True}, "n_steps=1.*at least 2.*normalize_advantage"),
        ({"batch_size": 0}, "batch_size=0.*>= 1"),
        ({"n_critic_updates": 0}, "n_critic_updates=0.*>= 1"),
        ({"gamma": 1.01}, r"gamma=1.01.*\[0, 1\]"),
        ({"gae_lambda": -0.1}, r"gae_lambda=-0.1.*\[0, 1\]"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"ent_coef": float("inf")}, "ent_coef=inf"),
        ({"normalize_advantage": "False"}, "normalize_advantage='False'.*True or False"),
        ({"rollout_buffer_class": dict}, "rollout_buffer_class=.*subclass of RolloutBuffer"),
        ({"policy": th.nn.Linear}, "policy='Linear'.*ActorCriticPolicy"),
        # Without effect beside the others:
        ({"lookahead": 3}, "lookahead=3.*5.*advantage='gae'.*'n_step'"),
        ({"advantage": "mc", "lookahead": 3}, "lookahead=3.*advantage='mc'"),
        (
            {"advantage": "td", "critic_target": "td", "gae_lambda": 0.9},
            "gae_lambda=0.9.*advantage='td'.*critic_target",
        ),
        ({"sde_sample_freq": 4}, "sde_sample_freq=4.*use_sde"),
    ],
)
def test_bad_arguments(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


def test_one_step_of_each_of_two_sub_environments_can_be_normalized():
    model_on(make_vec_env("CartPole-v1", 2, seed=0), n_steps=1, normalize_advantage=True).learn(10)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = collected(model_on())
    model.rollout_buffer.advantages[3] = np.inf
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
    with pytest.raises(ValueError, match="policy gradient norm"):
        model.train()
    assert th.equal(th.nn.utils.parameters_to_vector(model.policy.parameters()), before)


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_hot_path_has_no_step_loop(advantage):
    """A guard against loops over steps: advantages and gradient of ten times the steps make few more calls of torch."""
    calls = []
    for n_steps in (32, 320):
        model = collected(model_on(n_steps=n_steps, advantage=advantage))
        with th.profiler.profile() as profile:
            model._compute_returns_and_advantage(model.rollout_buffer, th.zeros(1), np.zeros(1, bool))
            model.estimate_gradient()
        calls.append(sum(event.count for event in profile.key_averages()))
    assert calls[1] < 1.5 * calls[0]
