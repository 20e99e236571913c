"""Claim: ClippedCriticPPO is SB3's PPO to the bit where the options agree, and its own options do what they say."""

import functools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pgext import ClippedCriticPPO
from sb3_pgext.algorithms.distributions import distribution_parameters, kl_divergence
from tests.environments import ACTIONS, IMAGE, VECTOR, ActionIsReward, RewardsAndLimits, Scripted
from tests.rollouts.definitions import advantages_by_definition

DICT = spaces.Dict({"vector": VECTOR, "kind": spaces.Discrete(3)})


def vector_of(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def model_on(env=None, policy="MlpPolicy", cls=ClippedCriticPPO, **parameters):
    env = make_vec_env("CartPole-v1", 2, seed=0) if env is None else env
    defaults = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}
    return cls(policy, env, **{**defaults, **parameters})


def value_of(model, observations):
    """V of the current critic, ``(K,)``."""
    with th.no_grad():
        return model.policy.predict_values(th.as_tensor(observations)).flatten()


def parameters_after(steps=256, **parameters):
    """The parameters after a short training, as one vector."""
    return vector_of(model_on(**parameters).learn(steps))


class WithUnusedLayer(FlattenExtractor):
    """Nothing depends on it."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.unused = th.nn.Linear(3, 3)


# --- the drop-in -----------------------------------------------------------------------------------------------------


def any_spaces(observation_space, action_space):
    def build():
        env = DummyVecEnv([lambda: RewardsAndLimits(observation_space, action_space)] * 2)
        env.seed(0)
        env.action_space.seed(0)
        return env

    return build


def test_a_layer_without_a_gradient_does_not_decay():
    """AdamW would shrink it if its gradient were 0 instead of none."""
    kwargs = {"features_extractor_class": WithUnusedLayer, "optimizer_class": th.optim.AdamW}
    settings = {"policy_kwargs": kwargs | {"optimizer_kwargs": {"weight_decay": 0.5}}}
    assert th.equal(parameters_after(**settings), parameters_after(cls=PPO, **settings))


ENVIRONMENTS = {
    "CartPole-v1": lambda: make_vec_env("CartPole-v1", 2, seed=0),
    "Pendulum-v1": lambda: make_vec_env("Pendulum-v1", 2, seed=0),
    "MultiDiscrete": any_spaces(VECTOR, ACTIONS["multi_discrete"]),
    "MultiBinary": any_spaces(VECTOR, ACTIONS["multi_binary"]),
    "Dict": any_spaces(DICT, ACTIONS["box_2d"]),
    "VecNormalize": lambda: VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0)),
}


def trained(cls, env, options):
    """A model after 3 updates, and the random generators after them, from an environment of its own."""
    policy = "MultiInputPolicy" if env == "Dict" else "MlpPolicy"
    # The last minibatch of an epoch is smaller; Pendulum is truncated in the second rollout.
    model = model_on(ENVIRONMENTS[env](), policy, cls, n_steps=101, batch_size=32, **options).learn(3 * 2 * 101)
    return model, th.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(
    ("env", "options"),
    [
        *((env, {}) for env in ENVIRONMENTS),
        *((env, {"clip_range_vf": 0.3}) for env in ("CartPole-v1", "Dict")),
        ("CartPole-v1", {"target_kl": 1e-4, "learning_rate": 3e-3}),
        ("Pendulum-v1", {"target_kl": 1e-4, "learning_rate": 3e-3, "clip_range_vf": lambda p: 0.1 * p + 0.1}),
        ("Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4}),
        ("VecNormalize", {"use_sde": True, "target_kl": 0.01, "clip_range_vf": 0.3}),
        ("CartPole-v1", {"normalize_advantage": False, "ent_coef": 0.01, "clip_range": lambda p: 0.1 * p + 0.1}),
        ("CartPole-v1", {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}, "clip_range_vf": 0.3}),
    ],
)
def test_same_bits_as_sb3(env, options):
    """After 3 updates, parameters, optimizer, logs and random generators."""
    theirs, *their_generators = trained(PPO, env, options)
    ours, *our_generators = trained(
        ClippedCriticPPO, env, {**options, "value_clip": "clip"} if "clip_range_vf" in options else options
    )
    assert th.equal(vector_of(ours), vector_of(theirs))
    assert ours.policy.optimizer.state_dict()["state"].keys() == theirs.policy.optimizer.state_dict()["state"].keys()
    for p, q in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        for name, entry in theirs.policy.optimizer.state[q].items():
            assert th.equal(ours.policy.optimizer.state[p][name], entry)
    for ours_now, theirs_now in zip(our_generators, their_generators, strict=True):
        assert np.array_equal(ours_now, theirs_now)
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    for key in (k for k in expected if k.startswith(("train/", "rollout/"))):
        assert logged[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    if "target_kl" in options and env == "CartPole-v1":
        assert ours._n_updates < 9
    assert ours.num_timesteps == theirs.num_timesteps


@pytest.mark.parametrize("normalize_advantage", [True, "minibatch"])
def test_true_means_minibatch(normalize_advantage):
    assert th.equal(parameters_after(normalize_advantage=normalize_advantage), parameters_after())


def test_convolutions_too():
    """A shared features extractor with parameters."""
    results = []
    for cls in (PPO, ClippedCriticPPO):
        env = any_spaces(IMAGE, ACTIONS["discrete"])()
        model = model_on(env, "CnnPolicy", cls, n_steps=8, batch_size=8, n_epochs=1).learn(32)
        results.append(vector_of(model))
    assert th.equal(*results)


def test_a_cnn_for_what_is_no_image():
    """An AssertionError, as SB3's, not a ValueError."""
    for cls in (PPO, ClippedCriticPPO):
        with pytest.raises(AssertionError, match="You should use NatureCNN only with images"):
            model_on(policy="CnnPolicy", cls=cls)


# --- what is its own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize(
    ("action", "distribution"),
    [*((action, "plain") for action in ACTIONS), ("box", "gsde"), ("box_2d", "squashed_gsde")],
)
def test_closed_form_of_the_divergence(action, direction, distribution):
    """
    It is the mean of log p - log q over samples of p, of each state; within 5 standard errors, which are at most 7 % of
    the divergence: the smallest bias that is detected. The divergence the other way round is further away.
    """
    kwargs = {} if distribution == "plain" else {"use_sde": True}
    if distribution == "squashed_gsde":
        kwargs["policy_kwargs"] = {"squash_output": True, "log_std_init": -1.0}
    env = any_spaces(VECTOR, ACTIONS[action])()
    policies = [model_on(env, seed=seed, **kwargs).policy for seed in (0, 1)]
    for policy in policies:
        with th.no_grad():
            policy.action_net.bias += 1.5 * th.randn_like(policy.action_net.bias)
            if hasattr(policy, "log_std"):
                policy.log_std += 0.2 * th.randn_like(policy.log_std)
    n, observations = 40_000, th.tensor([[0.5, -0.5, 0.2], [0.0, 0.9, -0.9]])
    old, new = (policy.get_distribution(observations) for policy in policies)
    kl = kl_divergence(distribution_parameters(old), distribution_parameters(new), new, direction)
    reverse = {"old_new": "new_old", "new_old": "old_new"}[direction]
    other_way = kl_divergence(distribution_parameters(old), distribution_parameters(new), new, reverse)
    assert kl.shape == (2,)

    distances = []
    p, q = policies if direction == "old_new" else policies[::-1]
    for state in range(2):
        repeated = observations[state].expand(n, 3)
        with th.no_grad():
            of_p, of_q = p.get_distribution(repeated), q.get_distribution(repeated)
            if distribution == "plain":
                samples = of_p.sample()
                log_ratio = of_p.log_prob(samples) - of_q.log_prob(samples)
            else:  # gSDE's own sampling keeps one noise matrix; a bijection leaves the divergence as it is.
                samples = of_p.distribution.sample()
                log_ratio = (of_p.distribution.log_prob(samples) - of_q.distribution.log_prob(samples)).sum(1)
        standard_error = log_ratio.std() / n**0.5
        assert 5 * standard_error < 0.07 * kl[state]
        assert abs(log_ratio.mean() - kl[state]) < 5 * standard_error
        distances.append(abs(log_ratio.mean() - other_way[state]) / standard_error)
    assert max(distances) > 5


def kl_after_one_update(**parameters):
    model = model_on(**parameters).learn(64)
    return model.logger.name_to_value["train/kl"], model


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_larger_coefficient_makes_smaller_steps(env, direction):
    divergences = [
        kl_after_one_update(
            env=ENVIRONMENTS[env](), surrogate="kl", kl_coef=beta, kl_direction=direction, learning_rate=3e-3
        )[0]
        for beta in (1e-3, 1e3)
    ]
    assert 0 < divergences[1] < divergences[0]


@pytest.mark.parametrize(("desired_kl", "factor"), [(1e6, 0.5), (1e-12, 2.0)])
def test_the_coefficient_adapts(desired_kl, factor):
    model = model_on(surrogate="adaptive_kl", kl_coef=3.0, desired_kl=desired_kl).learn(3 * 128)
    assert model.kl_coef == 3.0 * factor**3
    assert model.logger.name_to_value["train/kl_coef"] == 3.0 * factor**2  # that of the last update


def test_the_coefficient_stays_where_the_divergence_is_as_wanted():
    kl, _ = kl_after_one_update(surrogate="kl")
    _, model = kl_after_one_update(surrogate="adaptive_kl", desired_kl=kl)
    assert model.kl_coef == 1.0


def test_the_update_descends_the_losses_of_the_formulas():
    """One epoch of one minibatch with plain gradient descent, differentiated from the definitions."""
    options = {"n_epochs": 1, "batch_size": 128, "ent_coef": 0.1, "max_grad_norm": None, "learning_rate": 0.1}
    model = model_on(
        **options,
        surrogate="kl",
        kl_coef=2.0,
        normalize_advantage="rollout",
        policy_kwargs={"optimizer_class": th.optim.SGD},
    )
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    rollout, policy = model.rollout, model.policy

    Psi = advantages_by_definition(model)
    y, Psi = Psi + rollout.values, (Psi - Psi.mean()) / (Psi.std() + 1e-8)

    V, log_prob, entropy = policy.evaluate_actions(rollout.observations, rollout.actions)
    probabilities = policy.get_distribution(rollout.observations).distribution.probs
    ratio = (log_prob - rollout.log_prob).exp()
    kl = (probabilities.detach() * (probabilities.detach().log() - probabilities.log())).sum(1)
    loss = -(ratio * Psi - 2.0 * kl).mean() - 0.1 * entropy.mean() + 0.5 * ((y - V.flatten()) ** 2).mean()
    parameters = list(policy.parameters())
    expected = [p.detach() - 0.1 * g for p, g in zip(parameters, th.autograd.grad(loss, parameters), strict=True)]
    model.train()
    for p, q in zip(parameters, expected, strict=True):
        th.testing.assert_close(p.detach(), q, rtol=1e-4, atol=1e-6)


def test_recomputed_advantages_are_those_of_the_current_critic():
    """Also of the state that follows the rollout, and of those in which a time limit has cut an episode."""
    model = model_on(ENVIRONMENTS["Pendulum-v1"](), n_steps=210, batch_size=30, recompute_advantage=True)
    rewards_of_the_environment = []
    model.learn(420, lambda local, _: rewards_of_the_environment.append(local["rewards"].copy()) or True)
    assert sorted(model.collector.final_observations) == [(199, 0), (199, 1)]
    steps = model._steps(model.rollout, ())
    recomputed = model._with_recomputed_advantages(steps)

    rewards = np.stack(rewards_of_the_environment)
    for (t, e), (observation, _) in model.collector.final_observations.items():
        rewards[t, e] += 0.99 * value_of(model, observation[None]).item()
    V = value_of(model, steps.observations)
    Psi = advantages_by_definition(model, values=V.view(2, 210).T, rewards=rewards)
    th.testing.assert_close(recomputed.returns, Psi + V, rtol=1e-4, atol=1e-3)
    th.testing.assert_close(recomputed.advantages, Psi, rtol=1e-4, atol=1e-3)
    assert not th.allclose(recomputed.advantages, steps.advantages, rtol=1e-2)
    assert th.equal(recomputed.old_values, steps.old_values)


CRITICS = {"unclipped": {}, "max": {"clip_range_vf": 0.2}, "clip": {"clip_range_vf": 0.2, "value_clip": "clip"}}


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize(
    ("surrogate", "critic"),
    [
        ("clip", "unclipped"),
        ("clip", "max"),
        ("kl", "max"),
        ("kl", "unclipped"),
        ("adaptive_kl", "clip"),
        ("none", "clip"),
    ],
)
def test_it_learns(surrogate, critic):
    """The action that is rewarded becomes likely, with each surrogate and each critic."""
    env = DummyVecEnv([ActionIsReward] * 16)
    model = model_on(env, n_steps=16, surrogate=surrogate, **CRITICS[critic], n_epochs=4, learning_rate=3e-3, gamma=0.5)
    model.learn(4 * 64 * 6)
    assert evaluate_policy(model, env, 5)[0] == 5


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"value_clip": "clip"}, {"clip_range_vf": 0.2}),
        ({"clip_range_vf": 0.2}, {}),
        ({"clip_range_vf": 0.2, "value_clip": "clip"}, {}),
        ({"clip_range_vf": 0.1}, {"clip_range_vf": 0.2}),
        ({"clip_range_vf": lambda progress: 0.2 * progress}, {"clip_range_vf": 0.2}),
        ({"surrogate": "kl"}, {}),
        ({"surrogate": "none"}, {}),
        ({"surrogate": "none"}, {"surrogate": "kl"}),
        ({"surrogate": "adaptive_kl"}, {"surrogate": "kl"}),
        ({"kl_coef": 5.0}, {"surrogate": "kl"}),
        ({"kl_coef": 5.0}, {"surrogate": "adaptive_kl"}),
        ({"desired_kl": 1.0}, {"surrogate": "adaptive_kl", "kl_coef": 1e-3}),
        ({"kl_direction": "new_old"}, {"surrogate": "kl"}),
        ({"normalize_advantage": False}, {}),
        ({"normalize_advantage": "rollout"}, {}),
        ({"normalize_advantage": "rollout"}, {"normalize_advantage": False}),
        ({"recompute_advantage": True}, {}),
        ({"max_grad_norm": None}, {}),
        ({"clip_range": 0.05}, {}),
        ({"ent_coef": 0.1}, {}),
    ],
)
def test_every_option_changes_the_run(change, base):
    assert not th.equal(after_two_updates(**{**base, **change}), of_base(tuple(base.items())))


def after_two_updates(**parameters):
    return parameters_after(**{"learning_rate": 3e-3, **parameters})


@functools.cache
def of_base(options):
    """The parameters with the options that are not changed, each of which is compared with several changes."""
    return after_two_updates(**dict(options))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"value_clip": "none"}, "value_clip='none'.*'max', 'clip'"),
        ({"surrogate": "trpo"}, "surrogate='trpo'.*'clip', 'kl', 'adaptive_kl', 'none'"),
        ({"kl_direction": "forward"}, "kl_direction='forward'.*'old_new', 'new_old'"),
        ({"normalize_advantage": "batch"}, "normalize_advantage='batch'.*'minibatch', True, 'rollout', False"),
        ({"clip_range": 0}, "clip_range=0.*> 0"),
        ({"surrogate": "kl", "kl_coef": 0.0}, "kl_coef=0.0.*> 0"),
        ({"surrogate": "adaptive_kl", "desired_kl": -1}, "desired_kl=-1.*> 0"),
        ({"target_kl": 0.0}, "target_kl=0.0.*> 0"),
        ({"n_epochs": 0}, "n_epochs=0.*>= 1"),
        ({"batch_size": 0}, "batch_size=0.*>= 1"),
        ({"n_steps": 64.0}, "n_steps=64.0.*whole number"),
        ({"gamma": 1.01}, r"gamma=1.01.*\[0, 1\]"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"vf_coef": float("nan")}, "vf_coef=nan"),
        ({"rollout_buffer_class": PPO}, "rollout_buffer_class=.*subclass of RolloutBuffer"),
        # Without effect beside the others:
        ({"value_clip": "clip"}, "value_clip='clip'.*clip_range_vf=None"),
        ({"surrogate": "kl", "clip_range": 0.1}, "clip_range=0.1.*surrogate='kl'"),
        ({"surrogate": "none", "clip_range": lambda p: 0.2}, "clip_range=.*surrogate='none'"),
        ({"kl_coef": 2.0}, "kl_coef=2.0.*surrogate='clip'"),
        ({"kl_direction": "new_old"}, "kl_direction='new_old'.*surrogate='clip'"),
        ({"surrogate": "kl", "desired_kl": 0.02}, "desired_kl=0.02.*'adaptive_kl'"),
        ({"n_epochs": 1, "recompute_advantage": True}, "recompute_advantage=True.*n_epochs=1"),
        ({"sde_sample_freq": 4}, "sde_sample_freq=4.*use_sde"),
    ],
)
def test_bad_arguments(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


@pytest.mark.parametrize(
    "parameters", [{"clip_range_vf": 0.0}, {"clip_range_vf": -0.1}, {"batch_size": 1}, {"n_steps": 1}]
)
def test_sb3s_errors_stay_sb3s(parameters):
    messages = []
    for cls in (PPO, ClippedCriticPPO):
        with pytest.raises(AssertionError) as caught:
            model_on(make_vec_env("CartPole-v1", 1), cls=cls, **parameters)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_sb3s_default_without_value_clipping():
    """It may be said, and is the default: to the bit SB3's PPO, see above."""
    assert model_on(clip_range_vf=None).clip_range_vf is model_on().clip_range_vf is None
    assert "train/clip_range_vf" not in model_on().learn(128).logger.name_to_value


# --- SB3's promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_action_spaces_with_a_divergence(action, device):
    model = model_on(any_spaces(DICT, ACTIONS[action])(), "MultiInputPolicy", surrogate="kl", device=device)
    actions, _ = model.learn(128).predict(model.env.reset())
    assert actions.shape == (2, *ACTIONS[action].shape)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"value_clip": "clip", "clip_range_vf": lambda progress: 0.1 + progress},
        {"surrogate": "adaptive_kl", "kl_coef": 3.0},
    ],
)
def test_save_load_continue(parameters, tmp_path):
    model = model_on(**parameters).learn(300)
    model.save(tmp_path / "model")
    loaded = ClippedCriticPPO.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), device="cpu")
    assert th.equal(vector_of(loaded), vector_of(model))
    assert loaded.kl_coef == model.kl_coef
    for p, q in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        for name, entry in model.policy.optimizer.state[q].items():
            assert th.equal(loaded.policy.optimizer.state[p][name], entry)
    loaded.learn(300, reset_num_timesteps=False)
    assert loaded.num_timesteps >= model.num_timesteps + 300


def test_a_model_of_sb3_goes_on_here(tmp_path):
    theirs = model_on(cls=PPO).learn(128)
    theirs.save(tmp_path / "model")
    ours = ClippedCriticPPO.load(
        tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), rollout_buffer_class=None
    )
    assert th.equal(vector_of(ours), vector_of(theirs))
    ours.learn(128, reset_num_timesteps=False)


def test_logged_keys():
    keys = set(model_on(surrogate="kl", clip_range_vf=0.2).learn(128).logger.name_to_value)
    expected = "learning_rate n_updates entropy_loss policy_gradient_loss value_loss approx_kl loss explained_variance"
    ours = "value_clip_fraction kl kl_coef grad_norm clip_range_vf"
    assert {f"train/{key}" for key in f"{expected} {ours}".split()} <= keys
    assert not {"train/clip_fraction", "train/clip_range"} & keys


def test_what_is_logged_of_a_step_does_not_keep_it():
    """With a large rollout the graphs of the losses were a quarter of all memory: a step leaves one vector."""
    model = model_on().learn(128)
    steps = model._steps(model.rollout, ())
    loss, terms = model._loss(steps, model._coefficients())
    assert loss.requires_grad
    assert not terms.requires_grad
    assert terms.untyped_storage().nbytes() == 4 * len(model._logged)


def test_a_loss_that_is_not_finite_is_named():
    model = model_on().learn(128)
    model.rollout_buffer.returns[3] = np.inf
    with pytest.raises(ValueError, match=r"loss=.*finite"):
        model.train()


@pytest.mark.parametrize("poison", ["observation", "reward"])
def test_nan_names_the_sub_environment_and_the_step(poison):
    env = DummyVecEnv([Scripted, lambda: Scripted((9,), poison)])
    with pytest.raises(ValueError, match=rf"{poison}=.*nan.* of sub-environment 1 at vector step 2 "):
        model_on(env).learn(10)
