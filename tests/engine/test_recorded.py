"""Claim: gradients that are recorded are those of autograd to the bit, and what is a user's own is never recorded."""

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.engine import graphs
from sb3_pgext.engine import recorded as module
from tests.algorithms.policies import SharedTrunk
from tests.environments import IMAGE, AnySpaces


@pytest.fixture(autouse=True)
def _from_the_second_update_on(monkeypatch):
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
        model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **sizes).learn(500)
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
        model.learn(192, reset_num_timesteps=False)
        model.policy.mlp_extractor.policy_net.requires_grad_(True)
        return model.learn(192, reset_num_timesteps=False)

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


def module_that_is_used_twice(policy):
    policy.mlp_extractor.policy_net.append(policy.mlp_extractor.policy_net[1])


def attribute_of_a_module(policy):
    policy.mlp_extractor.value_net[1].negative_slope = 0.5


def own_module_under_a_class_of_torchs(policy):
    class Own(th.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    policy.mlp_extractor.policy_net.append(th.nn.utils.parametrizations.weight_norm(Own(64, 64)))
    policy.optimizer.add_param_group({"params": list(policy.mlp_extractor.policy_net[-1].parameters())})


def module_that_changes_its_input(policy):
    policy.mlp_extractor.policy_net.insert(0, th.nn.ELU(inplace=True))


def another_distribution(policy):
    policy.action_dist = SquashedDiagGaussianDistribution(1)


CHANGES = [
    hook_on_a_module,
    hook_on_a_parameter,
    hook_when_a_gradient_is_there,
    method_of_its_own,
    module_that_is_used_twice,
    attribute_of_a_module,
    own_module_under_a_class_of_torchs,
    another_distribution,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_user_has_changed_counts(change, when):
    """The gradient is the changed one, as SB3's: also of what is changed after it was recorded."""
    models = []
    for cls, options in ((ClippedCriticPPO, AS_PPO), (PPO, {})):
        kwargs = {"activation_fn": th.nn.LeakyReLU if change is attribute_of_a_module else th.nn.Tanh}
        model = cls("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs, **SETTINGS | options)
        if when == "after":
            model.learn(4 * 64)
        change(model.policy)
        set_random_seed(1)
        models.append(model.learn(4 * 64, reset_num_timesteps=False))
    ours, theirs = models
    assert all(map(th.equal, ours.policy.parameters(), theirs.policy.parameters()))
    if when == "before" and "hook" in change.__name__:
        assert recordings(ours) == []


def test_a_module_that_changes_its_input_does_so_once(monkeypatch):
    found = []
    for worth in (1, 10**9):
        monkeypatch.setattr(module, "WORTH_RECORDING", worth)
        found.append(trained(change=module_that_changes_its_input))
    assert len(recordings(found[0])) == 1
    assert None not in recordings(found[0])
    assert th.equal(*map(vector_of, found))


def test_patched_functions_count(monkeypatch):
    """Of the classes and of the estimators, after they have been recorded."""
    ours, theirs = trained(**AS_PPO), trained(PPO)
    assert None not in recordings(ours)
    original = ActorCriticPolicy.evaluate_actions

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = original(self, obs, actions)
        return 2 * values, log_prob, entropy

    monkeypatch.setattr(ActorCriticPolicy, "evaluate_actions", evaluate_actions)
    for model in (ours, theirs):
        set_random_seed(1)
        model.learn(4 * 64, reset_num_timesteps=False)
    assert None not in recordings(ours), "recorded anew"
    assert th.equal(vector_of(ours), vector_of(theirs))


def test_a_loss_that_is_another_each_time_is_given_up(monkeypatch):
    """After three recordings that turned out to be wrong."""
    n_traced = []
    original = graphs._graph
    monkeypatch.setattr(graphs, "_graph", lambda *arguments: n_traced.append(1) or original(*arguments))
    model = ClippedCriticPPO(
        "MlpPolicy", "Pendulum-v1", policy_kwargs={"activation_fn": th.nn.LeakyReLU}, **SETTINGS | AS_PPO
    )
    for n in range(8):
        model.policy.mlp_extractor.value_net[1].negative_slope = 0.1 * n
        model.learn(64, reset_num_timesteps=False)
    assert len(n_traced) == module.MOST_MISMATCHES
    assert recordings(model) == []


def test_an_annealed_coefficient_is_not_recorded():
    """Each would be a graph that nobody asks for again."""
    model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    for n in range(2 * module.MOST_KEYS):
        model.ent_coef = 0.001 * (n + 1)
        model.learn(64, reset_num_timesteps=False)
    assert recordings(model) == []
    assert len(module._histories[model.policy]) == module.MOST_KEYS


def test_what_depends_on_what_is_found_out_anew():
    """A hook cuts the policy off for one update; afterwards it learns again."""
    for cls, sizes in ((VPG, {}), (NPG, {}), (REINFORCE, {"n_episodes": 2}), (ClippedCriticPPO, {"batch_size": 32})):
        sizes = sizes if "n_episodes" in sizes else {"n_steps": 64} | sizes
        model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **sizes).learn(64)
        net = model.policy.mlp_extractor.policy_net
        hook = net.register_forward_hook(lambda module, inputs, output: output.detach())
        model.learn(64, reset_num_timesteps=False)
        hook.remove()
        before = net[0].weight.detach().clone()
        model.learn(128, reset_num_timesteps=False)
        assert not th.equal(before, net[0].weight), cls.__name__


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


def test_ctrl_c_while_it_is_recorded(monkeypatch):
    original, n_calls = graphs._graph, []

    def interrupted(*arguments):
        n_calls.append(1)
        if len(n_calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(graphs, "_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained()
    model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    n_calls.clear()
    with pytest.raises(KeyboardInterrupt):
        model.learn(256)
    model.learn(256)
    assert None not in recordings(model)
    assert len(recordings(model)) == 1


def test_anomaly_detection_asks_autograd():
    with th.autograd.set_detect_anomaly(True):
        assert recordings(trained()) == []


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
    model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    model._loss = model._loss
    assert recordings(model.learn(4 * 64)) == []


@pytest.mark.filterwarnings("error:compile=True")
def test_dropout_is_not_recorded():
    """Nor does anybody hear of it, who has not asked for a graph."""

    def with_dropout(policy):
        policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))

    ours, theirs = trained(change=with_dropout, **AS_PPO), trained(PPO, change=with_dropout)
    assert set(recordings(ours)) == {None}
    assert th.equal(vector_of(ours), vector_of(theirs))
