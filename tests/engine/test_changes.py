"""
Claim: whatever changes between two updates, or inside a rollout, has with ``compile=True`` the effect that it has
without, at once; where no graph can see it, that runs uncompiled and a warning says so, once.

Graphs are traced here, not compiled: ``test_compiled.py`` compiles.
"""

import contextlib
import copy
import inspect
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.engine import graphs
from tests.environments import RewardsAndLimits
from tests.tracing import traced_only

OBSERVATION, BOX = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
SMALL = {
    REINFORCE: {"n_episodes": 4, "n_critic_updates": 1, "batch_size": 8, "learning_rate": 0.02},
    ISPG: {"n_episodes": 4, "n_critic_updates": 1, "batch_size": 8, "learning_rate": 0.02, "gradient_steps": 3},
    VPG: {"n_steps": 16, "n_critic_updates": 1, "batch_size": 8, "learning_rate": 0.02},
    NPG: {"n_steps": 16, "n_critic_updates": 1, "batch_size": 8, "learning_rate": 0.02},
    ClippedCriticPPO: {"n_steps": 16, "n_epochs": 2, "batch_size": 8, "learning_rate": 0.02},
}


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)


def model_of(algorithm, compile, policy_kwargs=None, vec_env=DummyVecEnv, observation=OBSERVATION, **options):
    env = vec_env([lambda: RewardsAndLimits(copy.deepcopy(observation), copy.deepcopy(BOX))] * 2)
    small = SMALL[next(c for c in algorithm.__mro__ if c in SMALL)]
    arguments = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [4], **(policy_kwargs or {})}}
    return algorithm("MlpPolicy", env, compile=compile, **arguments | small | options)


def vector_of(model):
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


class Trained:
    """A model after its first update, to which it is taken back before each of the second ones."""

    def __init__(self, algorithm, compile, **options):
        self.model = model = model_of(algorithm, compile, **options)
        with self.told():
            model.learn(1)
        self.state = copy.deepcopy(model.policy.state_dict())
        self.of_optimizer = copy.deepcopy(model.policy.optimizer.state_dict())
        self.batches = model.replay_buffer.batches if isinstance(model, ISPG) else []
        self.attributes = {name: getattr(model, name) for name in inspect.signature(type(model).__init__).parameters
                           if hasattr(model, name)}  # fmt: skip
        self.graphs = dict(graphs._graphs.get(model.policy, {}))

    @contextlib.contextmanager
    def told(self):
        """The warnings of compiling in ``messages``."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self.messages = [str(w.message) for w in caught if "compile=True" in str(w.message)]
        assert len(self.messages) == len(set(self.messages)), "each once"

    def after(self, change):
        """The parameters after a second update, before which something changes."""
        model = self.model
        model.policy.load_state_dict(self.state)
        model.policy.optimizer.load_state_dict(copy.deepcopy(self.of_optimizer))
        for name, value in self.attributes.items():
            setattr(model, name, value)
        if isinstance(model, ISPG):
            model.replay_buffer.keep(self.batches)
        if model.compile:
            graphs._graphs[model.policy] = dict(self.graphs)
        model._last_obs = None
        model.set_random_seed(1)
        model.env.envs[0].episodes = model.env.envs[1].episodes = 0
        change(model)
        with self.told():
            model.learn(1, reset_num_timesteps=False)
        return vector_of(model)


_pairs: dict = {}


def pair(algorithm, **options):
    """Uncompiled and compiled, shared by all tests that want the same."""
    key = algorithm, repr(sorted(options.items(), key=str))
    if key not in _pairs:
        eager, compiled = (Trained(algorithm, c, **options) for c in (False, True))
        unchanged = eager.after(lambda _: None)
        assert th.equal(eager.after(lambda _: None), unchanged), "taken back completely"
        _pairs[key] = eager, compiled, unchanged
    return _pairs[key]


def assert_same_effect(change, algorithm, has_effect=True, **options):
    """:return: what was told with ``compile=True``"""
    eager, compiled, unchanged = pair(algorithm, **options)
    wanted = eager.after(change)
    assert not has_effect or not th.allclose(wanted, unchanged, rtol=0, atol=1e-6), "it changes nothing uncompiled"
    found = compiled.after(change)
    th.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-5)
    return compiled.messages


# --- The constructor's numbers and choices ---------------------------------------------------------------------------

OF_ALL = {
    "learning_rate": (0.1, {}),
    "gamma": (0.5, {}),
    "ent_coef": (0.5, {}),
    "action_std": (0.3, {"action_std": 0.9}),
}
OF_CRITICS = {
    "batch_size": (4, {}),
    "n_critic_updates": (3, {}),
    "critic_target": ("td", {}),
    "gae_lambda": (0.1, {}),
    "normalize_advantage": (True, {}),
}
OF_GRADIENTS = {
    "max_grad_norm": (1e-3, {}),
    "learning_rate_kl_target": (1e-9, {}),
    "sde_sample_freq": (2, {"use_sde": True}),
}
_PARAMETERS = inspect.signature(REINFORCE.__init__).parameters
WITHOUT_CRITIC = {name: _PARAMETERS[name].default for name in ("n_critic_updates", "batch_size")}
"""The defaults, which have no effect then."""

OF_EPISODES = {
    **OF_ALL,
    **OF_CRITICS,
    **OF_GRADIENTS,
    "n_episodes": (6, {}),
    "gae_lambda": (0.1, {"critic_target": "lambda"}),
    "credit": ("trajectory", {}),
    "baseline": ("time", {}),
    "leave_one_out": (False, WITHOUT_CRITIC | {"baseline": "constant"}),
    "discount_weighting": (True, {}),
    "truncation": ("terminal", {}),
    "max_episode_steps": (3, {}),
}
CHANGES = {
    REINFORCE: OF_EPISODES,
    ISPG: {
        **OF_EPISODES,
        "sde_sample_freq": (2, {"use_sde": True}),
        "gradient_steps": (2, {}),
        "weights": ("trajectory", {}),
        "weight_clip": (1.0, {}),
        "self_normalize": (True, {}),
        "replay_batches": (1, {}),
        "mixture": ("own", {"replay_batches": 1, "min_ess": 0.0}),
        "min_ess": (1.0, {}),
    },
    VPG: {
        **OF_ALL,
        **OF_CRITICS,
        **OF_GRADIENTS,
        "gradient": ("all_action", {"critic": "q", "n_action_samples": 3}),
        "n_action_samples": (9, {"critic": "q", "n_action_samples": 3}),
        "advantage": ("mc", {}),
        "lookahead": (1, {"advantage": "n_step"}),
    },
    NPG: {
        **OF_ALL,
        **OF_CRITICS,
        "normalize_advantage": (False, {}),
        "sde_sample_freq": (2, {"use_sde": True}),
        "step_rule": ("fixed", {}),
        "target_kl": (0.1, {}),
        "step_size": (0.2, {"step_rule": "fixed"}),
        "fisher": ("empirical", {}),
        "cg_max_steps": (1, {}),
        "cg_damping": (1.0, {}),
        "cg_tolerance": (0.5, {}),
        "line_search": (True, {}),
        "line_search_shrinking_factor": (0.1, {"line_search": True}),
        "line_search_max_iter": (1, {"line_search": True}),
        "sub_sampling_factor": (3, {}),
    },
    ClippedCriticPPO: {
        **OF_ALL,
        **OF_GRADIENTS,
        "batch_size": (4, {}),
        "gae_lambda": (0.1, {}),
        "n_epochs": (3, {}),
        "clip_range": (lambda _: 0.01, {}),
        "clip_range_vf": (lambda _: 0.01, {}),
        "normalize_advantage": ("rollout", {}),
        "vf_coef": (0.1, {}),
        "target_kl": (1e-7, {}),
        "value_clip": ("clip", {"clip_range_vf": 0.05}),
        "surrogate": ("kl", {}),
        "kl_coef": (50.0, {"surrogate": "kl"}),
        "desired_kl": (1e-9, {"surrogate": "adaptive_kl"}),
        "kl_direction": ("new_old", {"surrogate": "kl", "kl_coef": 50.0}),
        "recompute_advantage": (True, {}),
    },
}
"""Algorithm → argument → its second value, and what else must be set for it to matter."""

ONLY_AT_THE_START = {"critic", "n_steps", "use_sde", "stats_window_size", "tensorboard_log", "verbose", "seed"}
ONLY_AT_THE_START |= {"device", "compile", "rollout_buffer_class", "rollout_buffer_kwargs", "policy_kwargs"}
ONLY_AT_THE_START |= {"_init_setup_model"}
"""Whose size of a buffer, network, noise or logger is made with the model."""

LATER = {"replay_batches", "desired_kl", "learning_rate_kl_target"}
"""What shows in a later update, or after a save and load."""


@pytest.mark.parametrize("algorithm", CHANGES, ids=lambda x: x.__name__)
def test_no_argument_is_forgotten(algorithm):
    scalar = (bool, int, float, str, type(None))
    parameters = inspect.signature(algorithm.__init__).parameters.items()
    names = {name for name, p in parameters if isinstance(p.default, scalar)}
    assert CHANGES[algorithm].keys() == names - ONLY_AT_THE_START


@pytest.mark.parametrize(
    ("algorithm", "argument"),
    [(algorithm, argument) for algorithm, changes in CHANGES.items() for argument in changes],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_argument_takes_effect(algorithm, argument):
    value, options = CHANGES[algorithm][argument]

    def change(model):
        setattr(model, argument, value)
        if argument == "learning_rate":
            model._setup_lr_schedule()

    told = assert_same_effect(change, algorithm, argument not in LATER, **options)
    assert told == [], "nothing of it runs uncompiled"


# --- The policy, its optimizer, and code of the user's own -----------------------------------------------------------


@pytest.mark.parametrize("algorithm", [VPG, ClippedCriticPPO])
@pytest.mark.parametrize(
    "options", [{"lr": 0.5}, {"betas": (0.1, 0.2)}, {"weight_decay": 0.5}, {"eps": 0.1}], ids=lambda x: next(iter(x))
)
def test_the_optimizers_groups(algorithm, options):
    def change(model):
        model.policy.optimizer.param_groups[0].update(options)

    has_effect = "lr" not in options  # which the schedule sets in each update
    assert assert_same_effect(change, algorithm, has_effect) == []


@pytest.mark.parametrize("algorithm", SMALL, ids=lambda x: x.__name__)
@pytest.mark.parametrize("layer", ["policy_net", "value_net"])
def test_frozen_layers(algorithm, layer):
    frozen = []

    def change(model):
        frozen[:] = getattr(model.policy.mlp_extractor, layer).parameters()
        for p in frozen:
            p.requires_grad_(False)

    try:
        assert assert_same_effect(change, algorithm) == []
    finally:
        for trained in pair(algorithm)[:2]:
            trained.model.policy.requires_grad_(True)


class OwnLoss(ClippedCriticPPO):
    scale = 1.0

    def _loss(self, minibatch, coefficients):
        loss, terms = super()._loss(minibatch, coefficients)
        return loss + self.scale * self.policy.log_std.sum(), terms


def set_scale(model):
    model.scale = -30.0


class Scaled(FlattenExtractor):
    scale = 1.0

    def forward(self, observations):
        return self.scale * super().forward(observations)


def set_scale_of_extractor(model):
    for extractor in (model.policy.features_extractor,):
        extractor.scale = 3.0


def test_an_attribute_that_an_own_loss_reads():
    try:
        assert_same_effect(set_scale, OwnLoss)
    finally:
        for trained in pair(OwnLoss)[:2]:
            del trained.model.scale
    fresh = Trained(OwnLoss, True)
    assert fresh.graphs.keys() == {key for key in fresh.graphs if key[0] == "acting"}, "acting alone is compiled"


def test_own_code_is_told_once():
    with pytest.warns(UserWarning, match="compile=True: an update runs uncompiled.*OwnLoss overrides _loss") as caught:
        model_of(OwnLoss, True).learn(64)
    assert len([w for w in caught if "compile=True" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="features_extractor is a Scaled, which") as caught:
        model_of(VPG, True, policy_kwargs={"features_extractor_class": Scaled}).learn(64)
    assert len([w for w in caught if "compile=True" in str(w.message)]) == 1


@pytest.mark.parametrize("algorithm", SMALL, ids=lambda x: x.__name__)
def test_an_attribute_that_an_own_features_extractor_reads(algorithm):
    options = {"policy_kwargs": {"features_extractor_class": Scaled}}
    try:
        assert_same_effect(set_scale_of_extractor, algorithm, **options)
    finally:
        for trained in pair(algorithm, **options)[:2]:
            del trained.model.policy.features_extractor.scale


class Constant:
    value = 0.0

    def __call__(self, episodes, returns):
        return th.full_like(returns, self.value)


@pytest.mark.parametrize("algorithm", [REINFORCE, ISPG])
def test_an_attribute_that_a_callable_baseline_reads(algorithm):
    baseline = Constant()

    def change(model):
        model.baseline.value = 5.0

    assert assert_same_effect(change, algorithm, baseline=baseline, **WITHOUT_CRITIC) == []


def hook(model):
    model.policy.mlp_extractor.value_net.register_forward_hook(lambda module, inputs, output: 2 * output)
    model.policy.mlp_extractor.policy_net.register_forward_hook(lambda module, inputs, output: 2 * output)


def own_evaluate_actions(model):
    evaluate = type(model.policy).evaluate_actions

    def doubled(obs, actions):
        values, log_prob, entropy = evaluate(model.policy, obs, actions)
        return 2 * values, log_prob, entropy

    model.policy.evaluate_actions = doubled


def own_forward(model):
    forward = type(model.policy).forward

    def shifted(obs, deterministic=False):
        actions, values, log_prob = forward(model.policy, obs, deterministic)
        return actions, values + 3.0, log_prob

    model.policy.forward = shifted


def own_value_net(model):
    net = model.policy.value_net
    net.forward = lambda x: 2 * type(net).forward(net, x)


def other_slope(model):
    for module in model.policy.modules():
        if isinstance(module, th.nn.LeakyReLU):
            module.negative_slope = 0.9


def slope_of_numpy(model):
    for module in model.policy.modules():
        if isinstance(module, th.nn.LeakyReLU):
            module.negative_slope = np.float32(0.9)


def replaced_distribution(model):
    model.policy.action_dist = SquashedDiagGaussianDistribution(2)


def dropout(model):
    for module in model.policy.modules():
        if isinstance(module, th.nn.Dropout):
            module.p = 0.5


BETWEEN = {
    "hook": (hook, {}, SMALL),
    "evaluate_actions": (own_evaluate_actions, {}, [ClippedCriticPPO]),
    "forward": (own_forward, {}, [VPG, NPG, ClippedCriticPPO]),
    "value_net.forward": (own_value_net, {}, SMALL),
    "slope": (other_slope, {"activation_fn": th.nn.LeakyReLU}, SMALL),
    "slope of numpy": (slope_of_numpy, {"activation_fn": th.nn.LeakyReLU}, SMALL),
    "action_dist": (replaced_distribution, {}, [VPG, REINFORCE, ClippedCriticPPO]),
    "dropout": (dropout, {"activation_fn": lambda: th.nn.Dropout(0.0)}, SMALL),
}


@pytest.mark.parametrize(
    ("what", "algorithm"),
    [(what, algorithm) for what, (_, _, algorithms) in BETWEEN.items() for algorithm in algorithms],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_what_is_changed_between_two_updates(what, algorithm):
    change, kwargs, _ = BETWEEN[what]
    found = []
    for compile in (False, True):
        trained = Trained(algorithm, compile, policy_kwargs=kwargs)
        unchanged = trained.after(lambda _: None)
        found.append(trained.after(change))
        assert not th.allclose(found[-1], unchanged, rtol=0, atol=1e-6)
    th.testing.assert_close(found[1], found[0], rtol=1e-3, atol=2e-5)
    if what not in ("slope", "slope of numpy", "action_dist", "dropout"):
        assert len(trained.messages) == 1, "the reason that all of it has"


def test_graphs_of_a_coefficient_that_changes_each_time_are_limited():
    _, compiled, _ = pair(ClippedCriticPPO)
    compiled.after(lambda _: None)
    for k in range(graphs.MAX_GRAPHS + 3):
        compiled.model.ent_coef = 0.001 * k
        with compiled.told():
            compiled.model.learn(1, reset_num_timesteps=False)
        assert len(graphs._graphs[compiled.model.policy]) <= 1 + graphs.MAX_GRAPHS, "acting, and so many updates"
        assert len(compiled.messages) == (k == graphs.MAX_GRAPHS), compiled.messages


# --- Inside a rollout ------------------------------------------------------------------------------------------------


class At(BaseCallback):
    """Change the policy after the third step of a rollout."""

    def __init__(self, change):
        super().__init__()
        self.change, self.n = change, 0

    def _on_step(self):
        self.n += 1
        if self.n == 3:
            self.change(self.model.policy)
        return True


def load_from_vector(policy):
    policy.load_from_vector(0.3 + policy.parameters_to_vector())


def set_data(policy):
    for p in policy.parameters():
        p.data = p.data + 0.3


def replace_module(policy):
    policy.value_net = th.nn.Sequential(policy.value_net, th.nn.Hardtanh())
    policy.action_net = th.nn.Sequential(policy.action_net, th.nn.Softplus())


def replace_activation(policy):
    policy.mlp_extractor.value_net[1] = th.nn.Softplus()
    policy.mlp_extractor.policy_net[1] = th.nn.Softplus()


def replace_parameter(policy):
    policy.value_net.bias = th.nn.Parameter(policy.value_net.bias.detach() + 2.0)
    policy.action_net.bias = th.nn.Parameter(policy.action_net.bias.detach() + 2.0)


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
@pytest.mark.parametrize(
    "change",
    [load_from_vector, set_data, replace_module, replace_activation, replace_parameter],
    ids=lambda f: f.__name__,
)
@pytest.mark.filterwarnings("error:compile=True")
def test_what_a_callback_changes_inside_a_rollout(algorithm, change):
    batches = []
    for made in (lambda _: None, change):
        for compile in (False, True):
            model = model_of(algorithm, compile)
            _, callback = model._setup_learn(1000, At(made))
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
            batches.append(model.rollout if hasattr(model, "rollout") else model.episodes)
    of_unchanged, _, eager, compiled = batches
    assert not th.allclose(eager.actions, of_unchanged.actions, atol=1e-3)
    th.testing.assert_close(compiled.actions, eager.actions, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(compiled.values, eager.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
@pytest.mark.parametrize(
    ("space", "first", "later"),
    [
        (spaces.Discrete(4), np.int64, np.int32),
        (spaces.Discrete(4), np.int32, np.int64),
        (OBSERVATION, np.float64, np.float32),
        (OBSERVATION, np.float32, np.float64),
    ],
)
def test_observations_whose_dtype_changes_after_the_reset(algorithm, space, first, later):
    class Careless(DummyVecEnv):
        def reset(self):
            return super().reset().astype(first)

        def step_wait(self):
            observations, *rest = super().step_wait()
            return observations.astype(later), *rest

    batches = []
    for compile in (False, True):
        model = model_of(algorithm, compile, vec_env=Careless, observation=space).learn(1)
        batches.append(model.rollout if hasattr(model, "rollout") else model.episodes)
    eager, compiled = batches
    assert th.equal(compiled.observations, eager.observations)
    th.testing.assert_close(compiled.actions, eager.actions, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(compiled.values, eager.values, rtol=1e-4, atol=1e-5)
