"""
Claim: whatever is observed, done and computed with, each algorithm learns it, and predicts, as SB3's algorithms do.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from sb3_pgext import ISPG, NPG
from tests.algorithms.policies import SharedTrunk, moved_parameters
from tests.conformance.models import (
    FAMILY,
    HOSTS,
    UPDATE,
    collected,
    each_of_ours,
    error_of,
    every_algorithm,
    every_learner,
    in_turn,
    make_env,
    sampled,
    small,
    vector_of,
)
from tests.environments import ACTIONS, DICT, IMAGE, IMAGE_LAST, VECTOR, AnySpaces

POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE, "MultiInputPolicy": DICT}
OBSERVATIONS = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "multi_binary_2d": spaces.MultiBinary([2, 3]),
    "box_2d": spaces.Box(-1, 1, (2, 3), np.float32),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "image_channels_last": IMAGE_LAST,
    "dict_channels_last": spaces.Dict({"image": IMAGE_LAST, "vector": VECTOR}),
    "dict_float64": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.MultiDiscrete([2, 3])}),
}


def policy_for(space):
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def row_of(observations, i):
    return {key: part[i] for key, part in observations.items()} if isinstance(observations, dict) else observations[i]


def assert_learns_and_predicts(model):
    """All parameters move; predictions are actions, and those of one observation the same as those of several."""
    assert moved_parameters(model, lambda: model.learn(2 * UPDATE)) == {n for n, _ in model.policy.named_parameters()}
    assert vector_of(model).isfinite().all()
    space, observations = model.action_space, sampled(model.observation_space, 3)
    for deterministic in (True, False):
        actions, state = model.predict(observations, deterministic=deterministic)
        assert state is None
        assert actions.shape == (3, *space.shape)
        assert all(space.contains(action if space.shape else np.int64(action)) for action in actions)
    together, _ = model.predict(observations, deterministic=True)
    for i in range(3):
        alone, _ = model.predict(row_of(observations, i), deterministic=True)
        assert alone.shape == space.shape
        np.testing.assert_allclose(alone, together[i], rtol=1e-4, atol=1e-5)


# --- spaces ----------------------------------------------------------------------------------------------------------


PAIRS = [
    (algorithm, list(POLICIES)[(i + j) % 3], action)
    for i, algorithm in enumerate((*FAMILY, *HOSTS))
    for j, action in enumerate(ACTIONS)
]
"""Each algorithm with each action space and each policy, and each policy with each action space."""


@pytest.mark.parametrize(
    ("algorithm", "policy", "action"), PAIRS, ids=[f"{cls.__name__}-{policy}-{action}" for cls, policy, action in PAIRS]
)
def test_actions_and_policies(algorithm, policy, action, device):
    env = make_env(POLICIES[policy], ACTIONS[action])
    assert_learns_and_predicts(small(algorithm, env, policy, device=device))


@in_turn("kind", OBSERVATIONS)
def test_observations(algorithm, kind):
    space = OBSERVATIONS[kind]
    model = small(algorithm, make_env(space), policy_for(space))
    assert is_vecenv_wrapped(model.env, VecTransposeImage) == ("channels_last" in kind)
    assert_learns_and_predicts(model)


@in_turn("kind", ["float64", "image_channels_last", "dict_channels_last"])
def test_stacked_observations(algorithm, kind):
    space = OBSERVATIONS[kind]
    env = VecFrameStack(make_env(space), 3)
    model = small(algorithm, env, policy_for(space))
    stacked = model.observation_space["image"] if isinstance(space, spaces.Dict) else model.observation_space
    assert stacked.shape == ((9,) if kind == "float64" else (9, 36, 36))
    assert_learns_and_predicts(model)


@in_turn("kind", ["unbounded", "dict_float64"])
def test_normalized_observations(algorithm, kind):
    """The statistics are of what was observed, and the network gets what is within the clip."""
    env = VecNormalize(make_env(OBSERVATIONS[kind]), norm_obs_keys=["a"] if "dict" in kind else None, clip_obs=0.5)
    model = small(algorithm, env, policy_for(OBSERVATIONS[kind]))
    assert_learns_and_predicts(model)
    found, statistics = (x["a"] if "dict" in kind else x for x in (model._last_obs, env.obs_rms))
    assert np.abs(found).max() <= 0.5
    assert statistics.count == pytest.approx(2 * UPDATE + 2, abs=0.01), "each step and one reset"


@pytest.mark.parametrize("algorithm", [NPG, ISPG])
def test_images_that_are_normalized_already(algorithm):
    space = spaces.Box(0, 1, (3, 36, 36), np.float32)
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    model = small(algorithm, make_env(space), "CnnPolicy", policy_kwargs=kwargs)
    assert_learns_and_predicts(model)


class TakesDoubles(AnySpaces):
    """Notes what it is given."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-1, 1, (2,), np.float64))
        self.kinds = set()

    def step(self, action):
        self.kinds.add(action.dtype)
        return super().step(action)


@each_of_ours
def test_numbers_in_double_precision(algorithm):
    """The network computes in single precision; the environment gets what SB3 gives it, and so does the user."""

    def kinds(cls):
        model = small(cls, DummyVecEnv([TakesDoubles] * 2)).learn(UPDATE)
        observations = sampled(model.observation_space, 5)
        single, _ = model.predict(observations.astype(np.float32), deterministic=True)
        double, _ = model.predict(observations, deterministic=True)
        np.testing.assert_array_equal(single, double)
        return double.dtype, *(env.kinds for env in model.env.envs), next(model.policy.parameters()).dtype

    assert kinds(algorithm) == kinds(A2C)


class TextActions(AnySpaces):
    def __init__(self):
        super().__init__(VECTOR, spaces.Text(3))


UNSUITABLE = {
    "MlpPolicy for a dict": lambda cls: small(cls, make_env(DICT)),
    "CnnPolicy for a dict": lambda cls: small(cls, make_env(DICT), "CnnPolicy"),
    "CnnPolicy for a vector": lambda cls: small(cls, policy="CnnPolicy"),
    "MultiInputPolicy for a vector": lambda cls: small(cls, policy="MultiInputPolicy"),
    "nested dict": lambda cls: small(cls, make_env(spaces.Dict({"a": DICT})), "MultiInputPolicy"),
    "text actions": lambda cls: small(cls, DummyVecEnv([TextActions])),
    "actions without bounds": lambda cls: small(cls, make_env(action_space=spaces.Box(-np.inf, np.inf, (2,)))),
    "multi_binary_2d": lambda cls: small(cls, make_env(action_space=spaces.MultiBinary([2, 3]))),
    "multi_discrete_2d": lambda cls: small(cls, make_env(action_space=spaces.MultiDiscrete([[2, 3], [3, 2]]))),
    "gsde for choices": lambda cls: small(cls, use_sde=True),
    "unknown argument": lambda cls: small(cls, no_such_argument=1),
    "unknown argument of the policy": lambda cls: small(cls, policy_kwargs={"no_such_argument": 1}),
    "squashed without gsde": lambda cls: small(
        cls, make_env(action_space=ACTIONS["box"]), policy_kwargs={"squash_output": True}
    ),
}
"""What SB3, gymnasium and Python refuse of spaces, and arguments that nobody has."""

WRONG_ARGUMENTS = {
    "env='NoEnv-v0'": lambda cls: small(cls, "NoEnv-v0"),
    "policy='NoPolicy'": lambda cls: small(cls, policy="NoPolicy"),
    "device='no_such_device'": lambda cls: small(cls, device="no_such_device"),
}


@in_turn("case", UNSUITABLE)
def test_what_does_not_fit_raises_what_sb3_raises(algorithm, case):
    found, expected = (error_of(lambda cls=cls: UNSUITABLE[case](cls), cls.__name__) for cls in (algorithm, A2C))
    assert expected is not None
    assert found == expected


@each_of_ours
@pytest.mark.parametrize("named", WRONG_ARGUMENTS)
def test_what_sb3_refuses_in_words_of_its_own_is_named(algorithm, named):
    """Whatever SB3 or torch raises of it."""
    assert error_of(lambda: WRONG_ARGUMENTS[named](A2C), "") is not None
    with pytest.raises(ValueError, match=named):
        WRONG_ARGUMENTS[named](algorithm)


# --- networks --------------------------------------------------------------------------------------------------------


class Trunk(SharedTrunk):
    """With an argument of its own."""

    def __init__(self, observation_space, scale=1.0):
        super().__init__(observation_space)
        self.scale = scale

    def forward(self, observations):
        return self.scale * super().forward(observations)


@in_turn("policy, share", [(policy, share) for share in (True, False) for policy in POLICIES])
def test_features_extractors(algorithm, share, policy):
    """Of the user's own where there is nothing to learn otherwise. One trunk or two: all of it learns."""
    kwargs = {"share_features_extractor": share}
    if policy == "MlpPolicy":
        kwargs |= {"features_extractor_class": Trunk, "features_extractor_kwargs": {"scale": 2.0}}
    if policy == "CnnPolicy":
        kwargs |= {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 16}}
    model = small(algorithm, make_env(POLICIES[policy]), policy, policy_kwargs=kwargs)
    of_policy, of_critic = model.policy.pi_features_extractor, model.policy.vf_features_extractor
    assert (of_policy is of_critic) == share
    assert isinstance(of_policy, BaseFeaturesExtractor)
    assert policy != "MlpPolicy" or of_policy.scale == of_critic.scale == 2.0
    assert_learns_and_predicts(model)


@each_of_ours
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_sb3s(algorithm, policy):
    """The same class, filled with the same numbers by a seed."""
    ours, theirs = (small(cls, make_env(POLICIES[policy]), policy).policy for cls in (algorithm, A2C))
    assert type(ours) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert th.equal(ours.state_dict()[name], tensor), name


NET_ARCHS = [None, [], [8], [8, 4], {"pi": [8], "vf": []}, {"pi": [8, 8]}, {"vf": [4]}, [{"pi": [4], "vf": [8]}]]


@in_turn("net_arch", NET_ARCHS)
def test_net_arch(algorithm, net_arch):
    """The layers are SB3's, and a seed fills them with the same numbers."""
    kwargs = {"net_arch": net_arch, "activation_fn": th.nn.ReLU}

    def model_of(cls):
        if isinstance(net_arch, list) and net_arch and isinstance(net_arch[0], dict):
            with pytest.warns(UserWarning, match="shared layers in the mlp_extractor are removed"):
                return small(cls, policy_kwargs={**kwargs})
        return small(cls, policy_kwargs={**kwargs})

    ours, theirs = (model_of(cls) for cls in (algorithm, A2C))
    assert str(ours.policy.mlp_extractor) == str(theirs.policy.mlp_extractor)
    assert ours.policy.state_dict().keys() == theirs.policy.state_dict().keys()
    assert th.equal(vector_of(ours), vector_of(theirs))
    assert_learns_and_predicts(ours)


class TwoHeads(th.nn.Module):
    """A network as SB3's documentation builds it."""

    def __init__(self, n_features):
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = 6, 5
        self.pi, self.vf = th.nn.Linear(n_features, 6), th.nn.Linear(n_features, 5)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.pi(features).tanh()

    def forward_critic(self, features):
        return self.vf(features).tanh()


class TwoHeadedPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = TwoHeads(self.features_dim)


@every_algorithm
def test_a_policy_of_the_users_own(algorithm):
    model = small(algorithm, policy=TwoHeadedPolicy)
    assert isinstance(model.policy, TwoHeadedPolicy)
    assert_learns_and_predicts(model)


@every_algorithm
def test_an_optimizer_of_the_users_own(algorithm):
    kwargs = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1, "eps": 1e-4}}
    model = small(algorithm, policy_kwargs=kwargs, learning_rate=1e-2)
    assert_learns_and_predicts(model)
    (group,) = model.policy.optimizer.param_groups
    assert isinstance(model.policy.optimizer, th.optim.AdamW)
    assert (group["weight_decay"], group["eps"], group["lr"]) == (0.1, 1e-4, 1e-2)
    assert len(model.policy.optimizer.state) > 0, "it has taken steps"


@pytest.mark.parametrize("algorithm", [NPG, ISPG])
def test_a_policy_compiled_by_torch(algorithm, tmp_path):
    """It learns the same, and is saved by the names that it has uncompiled."""
    expected = vector_of(small(algorithm).learn(2 * UPDATE))
    model = small(algorithm)
    model.policy = th.compile(model.policy, backend="eager")
    model.learn(2 * UPDATE).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    th.testing.assert_close(vector_of(loaded), expected, rtol=1e-4, atol=1e-5)


# --- generalized state-dependent exploration -------------------------------------------------------------------------


GSDE = [
    {},
    {"squash_output": True},
    {"full_std": False},
    {"use_expln": True, "log_std_init": -1.0},
    {"net_arch": [], "features_extractor_class": SharedTrunk},
    {"squash_output": True, "full_std": False},
]


@in_turn("kwargs", GSDE)
def test_gsde(algorithm, kwargs):
    env = make_env(action_space=ACTIONS["box"])
    model = small(algorithm, env, use_sde=True, ent_coef=0.01, policy_kwargs=kwargs)
    assert model.policy.squash_output == kwargs.get("squash_output", False)
    assert_learns_and_predicts(model)
    observations = sampled(VECTOR, 4)
    model.policy.reset_noise()
    first, again = (model.predict(observations)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again, "noise is a function of the state")
    model.policy.reset_noise()
    assert not np.array_equal(model.predict(observations)[0], first)


@every_algorithm
@pytest.mark.parametrize(("sde_sample_freq", "expected"), [(-1, 1), (4, 1 + 3), (1, 1 + 10)])
def test_gsde_draws_noise_as_often_as_asked(algorithm, sde_sample_freq, expected):
    """At the start of the rollout, and every few of its 10 steps; one matrix for each sub-environment."""
    env = make_env(action_space=ACTIONS["box"])
    model = small(algorithm, env, use_sde=True, sde_sample_freq=sde_sample_freq)
    draw, drawn = model.policy.reset_noise, []
    model.policy.reset_noise = lambda n_envs=1: drawn.append(n_envs) or draw(n_envs)
    collected(model)
    assert drawn == [2] * expected


# --- prediction ------------------------------------------------------------------------------------------------------


@in_turn("action, deterministic", [(action, deterministic) for action in ACTIONS for deterministic in (True, False)])
def test_the_same_networks_predict_the_same_actions(algorithm, action, deterministic):
    """As A2C to the bit, drawn from the same random numbers."""
    actions, observations = [], sampled(VECTOR, 50)
    for cls in (algorithm, A2C):
        model = small(cls, make_env(action_space=ACTIONS[action]))
        th.manual_seed(0)
        actions.append([model.predict(observations, deterministic=deterministic)[0] for _ in range(2)])
    np.testing.assert_array_equal(*actions)
    assert np.array_equal(*actions[0]) == deterministic


@every_learner
def test_what_a_policy_without_memory_is_told_to_remember_is_handed_back(algorithm):
    model, memory = small(algorithm), (np.arange(3),)
    start = np.ones(2, dtype=bool)
    assert model.predict(sampled(VECTOR, 2), state=memory, episode_start=start)[1] is memory


UNPREDICTABLE = {
    "too short": (VECTOR, np.zeros(2, np.float32)),
    "batch of too short ones": (VECTOR, np.zeros((4, 2), np.float32)),
    "batch of batches": (VECTOR, np.zeros((1, 4, 3), np.float32)),
    "result of a reset": (VECTOR, (np.zeros(3, np.float32), {})),
    "dict for an array": (VECTOR, {"vector": np.zeros(3, np.float32)}),
    "array for a dict": (DICT, np.zeros(3, np.float32)),
    "unknown key": (DICT, {"no_such_key": np.zeros(3, np.float32)}),
    "image of another size": (IMAGE, np.zeros((3, 35, 36), np.uint8)),
    "two categories": (spaces.Discrete(4), np.zeros((2, 2), np.int64)),
}


@in_turn("case", UNPREDICTABLE)
def test_observations_of_another_shape_raise_what_sb3_raises(algorithm, case):
    space, observation = UNPREDICTABLE[case]
    found, expected = (
        error_of(lambda cls=cls: small(cls, make_env(space), policy_for(space)).predict(observation))
        for cls in (algorithm, A2C)
    )
    assert expected is not None
    assert found == expected


@every_algorithm
def test_images_are_predicted_with_their_channels_first_or_last(algorithm):
    model = small(algorithm, make_env(IMAGE_LAST), "CnnPolicy")
    last = sampled(IMAGE_LAST, 4)
    first = np.transpose(last, (0, 3, 1, 2))
    expected, _ = model.predict(first, deterministic=True)
    np.testing.assert_array_equal(model.predict(last, deterministic=True)[0], expected)
    assert model.predict(last[0], deterministic=True)[0] == expected[0]


@every_algorithm
def test_policies_are_evaluated(algorithm):
    """Two sub-environments, 3 episodes of 5 steps: the rewards are 1 … 5 and the sum of the actions."""
    env, seen = make_env(), []
    model = small(algorithm, env).learn(UPDATE)
    constant = th.nn.init.constant_
    constant(model.policy.action_net.weight, 0.0)
    constant(model.policy.action_net.bias, 0.0)
    model.policy.action_net.bias.data[2] = 9.0
    before = vector_of(model)
    returns, lengths = evaluate_policy(
        model, model.get_env(), 3, return_episode_rewards=True, callback=lambda local, _: seen.append(local["actions"])
    )
    assert returns == [25.0] * 3
    assert lengths == [5] * 3
    assert len(seen) > 0
    assert (np.array(seen) == 2).all()
    assert evaluate_policy(model, env, 4) == (25.0, 0.0)
    with pytest.raises(AssertionError, match="Mean reward below threshold"):
        evaluate_policy(model, env, 1, reward_threshold=26.0)
    assert th.equal(vector_of(model), before)


# --- training and evaluation mode ------------------------------------------------------------------------------------


class Noted(th.nn.Dropout):
    """Notes in which mode it is evaluated."""

    def __init__(self):
        super().__init__(0.5)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return super().forward(x)


class NoisyTrunk(SharedTrunk):
    """With batch norm and dropout."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm, self.dropout = th.nn.BatchNorm1d(8), Noted()

    def forward(self, observations):
        return self.dropout(self.norm(super().forward(observations)))


def noisy(algorithm, **arguments):
    kwargs = {"features_extractor_class": NoisyTrunk, "net_arch": [8]}
    return small(algorithm, policy_kwargs=kwargs, **arguments)


def statistics(model):
    norm = model.policy.features_extractor.norm
    return th.cat([norm.running_mean, norm.running_var, norm.num_batches_tracked[None].float()]).clone()


@every_algorithm
def test_batch_norm_takes_statistics_in_updates_only(algorithm):
    """Also where the update moves nothing."""
    model = noisy(algorithm, learning_rate=0.0)
    untouched = statistics(model)
    collected(model)
    model.predict(sampled(VECTOR, 5))
    model.policy.predict_values(th.zeros(5, 3))
    evaluate_policy(model, model.get_env(), 2)
    assert th.equal(statistics(model), untouched)
    model.train()
    assert not th.equal(statistics(model), untouched)
    after = statistics(model)
    model.predict(sampled(VECTOR, 5))
    assert th.equal(statistics(model), after)


@every_algorithm
def test_dropout_is_for_updates_only(algorithm):
    model = noisy(algorithm)
    modes = model.policy.features_extractor.dropout.modes
    collected(model)
    assert len(modes) >= 10
    assert not any(modes)
    modes.clear()
    model.train()
    assert any(modes)
    modes.clear()
    observations = sampled(VECTOR, 50)
    actions = [model.predict(observations, deterministic=True)[0] for _ in range(3)]
    assert modes == [False] * 3
    assert (actions[0] == actions[1]).all()
    assert (actions[0] == actions[2]).all()
    assert not model.policy.training


@every_learner
def test_an_environment_of_each_form(algorithm):
    """By its name, as it is, wrapped, and vectorised: the same spaces, and a Monitor around what had none."""
    for env in ("CartPole-v1", gym.make("CartPole-v1"), gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 7)):
        model = small(algorithm, env)
        assert isinstance(model.get_env(), DummyVecEnv)
        assert model.n_envs == 1
        assert model.get_env().env_is_wrapped(gym.wrappers.TimeLimit) == [True]
        assert model.observation_space.shape == (4,)
