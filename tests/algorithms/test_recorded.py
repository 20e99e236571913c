"""Claim: gradients that are recorded are those of autograd to the bit, and what is a user's own is never recorded."""

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms import compiled as module
from sb3_pgext.algorithms import graphs
from tests.algorithms.policies import SharedTrunk
from tests.environments import IMAGE, AnySpaces


@pytest.fixture(autouse=True)
def _from_the_second_step_on(monkeypatch):
    monkeypatch.setattr(module, "WORTH_RECORDING", 1)


SETTINGS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
AS_PPO = {"value_clip": "none", "clip_range_vf": None}


def recordings(model):
    """Those that were made, and None for those that could not be."""
    return list(graphs._graphs.get(model.policy, {}).values())


def vector_of(model):
    state = model.policy.optimizer.state_dict()["state"].values()
    return th.cat([x.detach().flatten() for x in [*model.policy.parameters(), *(s["exp_avg_sq"] for s in state)]])


def trained(cls=ClippedCriticPPO, env="Pendulum-v1", change=None, **parameters):
    model = cls("MlpPolicy", env, **SETTINGS | parameters)
    if change is not None:
        change(model.policy)
    return model.learn(4 * 64)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_range": lambda p: 0.3 * p, "clip_range_vf": lambda p: 0.1 + p, "value_clip": "clip"},
        {"value_clip": "max", "clip_range_vf": 0.1, "normalize_advantage": "rollout", "ent_coef": 0.01},
        {"surrogate": "adaptive_kl", "kl_direction": "new_old", "recompute_advantage": True, "learning_rate": 1e-2},
        {"use_sde": True, "sde_sample_freq": 4},
        {"batch_size": 24, "target_kl": 1e-3, "learning_rate": 1e-2},
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "net_arch": []}},
        {"policy_kwargs": {"activation_fn": th.nn.ReLU, "share_features_extractor": False}},
    ],
)  # fmt: skip
def test_same_bits_as_autograd(options, monkeypatch):
    model = trained(**options)
    assert recordings(model)
    assert None not in recordings(model)
    monkeypatch.setattr(module, "WORTH_RECORDING", 10**9)
    eager = trained(**options)
    assert recordings(eager) == []
    assert th.equal(vector_of(model), vector_of(eager))


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_same_bits_as_sb3(action_space):
    models = []
    for cls, options in ((PPO, {}), (ClippedCriticPPO, AS_PPO)):
        env = DummyVecEnv([lambda: AnySpaces(spaces.Box(-1, 1, (3,)), action_space)])
        env.seed(1)
        models.append(trained(cls, env, **options))
    assert recordings(models[1])
    assert None not in recordings(models[1])
    assert th.equal(vector_of(models[0]), vector_of(models[1]))


def test_images():
    models = []
    for cls, options in ((PPO, {}), (ClippedCriticPPO, AS_PPO)):
        env = DummyVecEnv([lambda: AnySpaces(IMAGE, spaces.Discrete(2))])
        env.seed(1)
        kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
        model = cls("CnnPolicy", env, policy_kwargs=kwargs, **SETTINGS | options | {"n_steps": 32, "batch_size": 8})
        models.append(model.learn(64))
    assert recordings(models[1])
    assert None not in recordings(models[1])
    assert th.equal(vector_of(models[0]), vector_of(models[1]))


@pytest.mark.parametrize(
    ("cls", "sizes"),
    [
        (REINFORCE, {"n_episodes": 2, "critic_batch_size": 16}),
        (ISPG, {"n_episodes": 2, "critic_batch_size": 16}),
        (VPG, {"n_steps": 64, "batch_size": 16}),
        (NPG, {"n_steps": 64, "batch_size": 16}),
    ],
)
def test_the_critics_fit(cls, sizes, monkeypatch):
    found = []
    for worth in (1, 10**9):
        monkeypatch.setattr(module, "WORTH_RECORDING", worth)
        model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **sizes).learn(300)
        found.append(vector_of(model))
        assert bool(recordings(model)) == (worth == 1)
        assert None not in recordings(model)
    assert th.equal(*found)


def test_what_is_frozen_meanwhile_is_no_constant(monkeypatch):
    """Other values of what is not moved, and then another part that is moved."""

    def learnt():
        model = trained()
        model.policy.mlp_extractor.policy_net.requires_grad_(False)
        with th.no_grad():
            model.policy.mlp_extractor.policy_net[0].weight += 0.1
        model.learn(128, reset_num_timesteps=False)
        model.policy.mlp_extractor.policy_net.requires_grad_(True)
        return model.learn(128, reset_num_timesteps=False)

    model = learnt()
    assert len(recordings(model)) == 2
    monkeypatch.setattr(module, "WORTH_RECORDING", 10**9)
    assert th.equal(vector_of(model), vector_of(learnt()))


def hook_on_a_module(policy):
    policy.value_net.register_forward_hook(lambda module, inputs, output: 2 * output)


def hook_on_a_parameter(policy):
    policy.value_net.weight.register_hook(lambda gradient: 0 * gradient)


def hook_when_a_gradient_is_there(policy):
    policy.value_net.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", 0 * p.grad))


def method_of_its_own(policy):
    original = policy.evaluate_actions

    def evaluate_actions(observations, actions):
        values, log_prob, entropy = original(observations, actions)
        return 2 * values, log_prob, entropy

    policy.evaluate_actions = evaluate_actions


@pytest.mark.parametrize(
    "change", [hook_on_a_module, hook_on_a_parameter, hook_when_a_gradient_is_there, method_of_its_own]
)
def test_what_a_user_has_changed_is_not_recorded(change):
    """The gradient is the changed one, as SB3's: also of what is changed after it was recorded."""
    ours, theirs = trained(change=change, **AS_PPO), trained(PPO, change=change)
    assert recordings(ours) == []
    assert th.equal(vector_of(ours), vector_of(theirs))
    ours, theirs = (trained(cls, **options) for cls, options in ((ClippedCriticPPO, AS_PPO), (PPO, {})))
    for model in (ours, theirs):
        change(model.policy)
        set_random_seed(1)
        model.learn(128, reset_num_timesteps=False)
    assert th.equal(vector_of(ours), vector_of(theirs))


class OwnPolicy(ActorCriticPolicy):
    """Counts what it is asked, as no recording would."""

    n_evaluated = 0

    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)

    def get_distribution(self, obs):
        return super().get_distribution(obs)

    def evaluate_actions(self, obs, actions):
        self.n_evaluated += 1
        return super().evaluate_actions(obs, actions)


def test_what_a_user_has_written_is_not_recorded():
    model = ClippedCriticPPO(OwnPolicy, "Pendulum-v1", **SETTINGS).learn(4 * 64)
    assert model.policy.n_evaluated == 4 * 2 * 2
    trunk = trained(policy_kwargs={"features_extractor_class": SharedTrunk})
    assert recordings(trunk) == []


class OwnAlgorithm(ClippedCriticPPO):
    n_losses = 0

    def _loss(self, minibatch, coefficients):
        self.n_losses += 1
        return super()._loss(minibatch, coefficients)


def test_a_loss_that_a_user_has_written_is_not_recorded():
    model = trained(OwnAlgorithm)
    assert model.n_losses == 4 * 2 * 2
    assert recordings(model) == []


@pytest.mark.filterwarnings("error:compile=True")
def test_dropout_is_not_recorded():
    """Nor does anybody hear of it, who has not asked for a graph."""

    def with_dropout(policy):
        policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))

    ours, theirs = trained(change=with_dropout, **AS_PPO), trained(PPO, change=with_dropout)
    assert set(recordings(ours)) == {None}
    assert th.equal(vector_of(ours), vector_of(theirs))
