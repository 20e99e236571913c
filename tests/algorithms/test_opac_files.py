"""Claim: OffPolicyActorCritic and DiscreteSAC are saved, loaded, copied and evaluated as SB3's SAC and DQN are."""

import io
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext import DiscreteSAC, OffPolicyActorCritic
from tests.algorithms.off_policy import assert_equal, numbers_of, on_actions, vector_of
from tests.conformance.models import error_of, sampled
from tests.environments import ACTIONS, DICT, IMAGE, IMAGE_LAST, VECTOR

MODELS = {
    "box": ("box", {}),
    "box, fixed, several steps": ("box", {"ent_coef": 0.3, "n_steps": 3}),
    "box, target entropy, two": ("box", {"target_entropy": -1.0, "n_envs": 2}),
    "box, gSDE": ("box", {"use_sde": True, "sde_sample_freq": 4}),
    "box, sampled": ("box", {"gradient": "sampled", "n_action_samples": 2}),
    "discrete": ("discrete", {"ent_coef": "auto_0.1"}),
    "discrete, sampled, several steps": ("discrete", {"gradient": "sampled", "n_steps": 3, "weight_clip": 2.0}),
    "multi_binary, sacd": ("multi_binary", {"algorithm": DiscreteSAC, "target_entropy": 1.0}),
    "multi_discrete, dict": ("multi_discrete", {"observation": DICT, "policy": "MultiInputPolicy"}),
    "discrete, image": ("discrete", {"observation": IMAGE, "policy": "CnnPolicy", "algorithm": DiscreteSAC}),
}
each_model = pytest.mark.parametrize("case", MODELS)


def made(case, **options):
    action, arguments = MODELS[case]
    of_images = {"buffer_size": 60, "batch_size": 4, "train_freq": 10} if "image" in case or "dict" in case else {}
    return on_actions(action, **{**deepcopy(arguments), **of_images, **options})


def predictions(model):
    observations = sampled(model.observation_space, 9)
    found = []
    for deterministic in (True, False):
        th.manual_seed(3)
        if model.use_sde:
            model.actor.reset_noise()
        found.append(model.predict(observations, deterministic=deterministic)[0])
    return found


@each_model
def test_saved_and_loaded(case, tmp_path):
    """Without the replay, which has a file of its own, as with SB3's; and it learns on as it would have."""
    model = made(case).learn(30)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = type(model).load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_equal(predictions(loaded), predictions(model))
    for name in ("ent_coef", "target_entropy", "gradient", "n_steps", "train_freq", "target_update_interval"):
        assert getattr(loaded, name) == getattr(model, name), name
    for m in (model, loaded):
        m.set_env(made(case).env)
        m.set_random_seed(5)
        if m.use_sde:
            m.actor.reset_noise()
        m.learn(20, reset_num_timesteps=False)
    assert_equal(model, loaded)
    if hasattr(model.replay_buffer, "log_probs"):
        np.testing.assert_array_equal(model.replay_buffer.log_probs, loaded.replay_buffer.log_probs)


@pytest.mark.parametrize("case", ["box", "discrete"])
def test_a_file_without_an_environment(case, tmp_path):
    model = made(case).learn(30)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    np.testing.assert_equal(predictions(loaded), predictions(model))
    on_actions("box", algorithm=SAC).save(tmp_path / "sac")
    assert error_of(lambda: loaded.learn(1)) == error_of(lambda: SAC.load(tmp_path / "sac").learn(1)) is not None
    loaded.set_env(made(case).env)
    assert loaded.learn(30)._n_updates > model._n_updates


@pytest.mark.parametrize("n_envs", [1, 3])
def test_another_number_of_environments(n_envs, tmp_path):
    made("discrete").learn(30).save(tmp_path / "model")
    loaded = OffPolicyActorCritic.load(tmp_path / "model", env=on_actions("discrete", n_envs).env)
    loaded.learn(30)
    assert loaded.n_envs == loaded.replay_buffer.n_envs == n_envs
    if n_envs == 3:
        with pytest.raises(AssertionError, match="number of environments"):
            loaded.set_env(on_actions("discrete", 1).env)


def test_arguments_are_changed_when_loading(tmp_path):
    made("box").learn(25).save(tmp_path / "model")
    loaded = OffPolicyActorCritic.load(tmp_path / "model", env=made("box").env, gamma=0.5, learning_rate=0.125, tau=1.0)
    loaded.learn(25)
    assert (loaded.gamma, loaded.tau) == (0.5, 1.0)
    assert loaded.logger.name_to_value["train/learning_rate"] == 0.125
    with pytest.raises(ValueError, match="gradient='all'"):
        OffPolicyActorCritic.load(tmp_path / "model", gradient="all")


@pytest.mark.parametrize("case", ["box", "discrete, sampled, several steps", "multi_discrete, dict", "discrete, image"])
def test_policies_by_themselves(case, tmp_path):
    """Saved and loaded, pickled, copied."""
    model = made(case).learn(25)
    model.policy.save(tmp_path / "policy")
    copies = [
        type(model.policy).load(tmp_path / "policy"),
        deepcopy(model.policy),
        pickle.loads(pickle.dumps(model.policy)),
    ]
    observations = sampled(model.observation_space, 9)
    expected, _ = model.predict(observations, deterministic=True)
    for policy in copies:
        assert isinstance(policy, BasePolicy)
        np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)
        assert {n: p.shape for n, p in policy.named_parameters()} == {
            n: p.shape for n, p in model.policy.named_parameters()
        }


@pytest.mark.parametrize("case", ["box", "discrete"])
def test_models_are_copied(case):
    """``deepcopy``, for a population: both learn on by themselves."""
    model = made(case).learn(25)
    other = deepcopy(model)
    assert_equal(model, other)
    assert other.actor is other.policy.actor
    assert other.critic_target is other.policy.critic_target
    before = vector_of(model)
    other.learn(10, reset_num_timesteps=False)
    assert th.equal(vector_of(model), before)
    assert not th.equal(vector_of(other), before)


@pytest.mark.parametrize("case", ["box", "box, fixed, several steps", "discrete"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_parameters_are_handed_to_another_model(case, where):
    model, other = made(case).learn(30), made(case, seed=1)
    if where == "memory":
        parameters = deepcopy(model.get_parameters())
    else:
        parameters = io.BytesIO()
        model.save(parameters)
        parameters.seek(0)
    other.set_parameters(parameters)
    assert th.equal(vector_of(other), vector_of(model))
    ours, theirs = numbers_of(model), numbers_of(other)
    assert all(th.equal(ours[name], theirs[name]) for name in ours if name != "alpha"), "the optimizers' too"
    other.learn(25)


def test_names_of_parameters_are_sacs():
    ours, theirs = (on_actions("box", algorithm=algorithm) for algorithm in (OffPolicyActorCritic, SAC))
    assert ours.get_parameters().keys() == theirs.get_parameters().keys()
    assert ours.policy.state_dict().keys() == theirs.policy.state_dict().keys()
    ours.set_parameters(theirs.get_parameters())
    assert th.equal(vector_of(ours), vector_of(theirs))
    fixed = [on_actions("box", algorithm=algorithm, ent_coef=0.1) for algorithm in (OffPolicyActorCritic, SAC)]
    assert fixed[0].get_parameters().keys() == fixed[1].get_parameters().keys()


@pytest.mark.parametrize("case", MODELS)
def test_predictions(case):
    """Actions of the space, of one observation as of several; deterministic ones repeat."""
    model = made(case)
    space, observations = model.action_space, sampled(model.observation_space, 5)
    for deterministic in (True, False):
        actions, state = model.predict(observations, deterministic=deterministic)
        assert state is None
        assert actions.shape == (5, *space.shape)
        assert all(space.contains(np.int64(a) if space.shape == () else a.astype(space.dtype)) for a in actions)
    first, again = (model.predict(observations, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    one = {key: x[0] for key, x in observations.items()} if isinstance(observations, dict) else observations[0]
    alone, _ = model.predict(one, deterministic=True)
    np.testing.assert_allclose(alone, first[0], rtol=1e-4, atol=1e-5)
    assert not model.policy.training


@pytest.mark.parametrize("case", ["box", "discrete", "multi_binary, sacd"])
def test_policies_are_evaluated(case):
    model = made(case).learn(25)
    before = vector_of(model)
    returns, lengths = evaluate_policy(model, model.get_env(), 3, return_episode_rewards=True)
    assert lengths == [5] * 3
    assert np.isfinite(returns).all()
    assert th.equal(vector_of(model), before)


def test_images_with_their_channels_last(tmp_path):
    arguments = {"policy": "CnnPolicy", "buffer_size": 60, "batch_size": 4, "train_freq": 10}
    model = on_actions("discrete", observation=IMAGE_LAST, **arguments).learn(30)
    last = sampled(IMAGE_LAST, 4)
    first = np.transpose(last, (0, 3, 1, 2))
    expected, _ = model.predict(first, deterministic=True)
    np.testing.assert_array_equal(model.predict(last, deterministic=True)[0], expected)
    model.save(tmp_path / "model")
    loaded = OffPolicyActorCritic.load(tmp_path / "model", env=model.env)
    np.testing.assert_array_equal(loaded.predict(last, deterministic=True)[0], expected)
    loaded.learn(30)


def test_statistics_of_vec_normalize_stay_with_the_environment(tmp_path):
    model = on_actions("box", 2)
    env = VecNormalize(model.env)
    model = OffPolicyActorCritic("MlpPolicy", env, learning_starts=10, batch_size=8, buffer_size=100).learn(30)
    samples = model.replay_buffer.sample(20)
    np.testing.assert_array_less(np.abs(samples.observations), 1.0001)  # as the environment gave them
    model.save(tmp_path / "model")
    other = VecNormalize(on_actions("box", 2).env)
    loaded = OffPolicyActorCritic.load(tmp_path / "model", env=other)
    assert loaded.get_vec_normalize_env() is other
    loaded.learn(30)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4), VECTOR], ids=str
)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_observations_of_each_kind(space, action):
    model = on_actions(
        action, 2, observation=space, gradient="sampled", **({"n_action_samples": 2} if action == "box" else {})
    )
    assert model.learn(40)._n_updates > 0


def test_a_space_that_starts_elsewhere():
    """The numbers are from 0, as SB3's algorithms have them."""
    model = on_actions(ACTIONS["discrete"], 2, algorithm=DiscreteSAC).learn(30)
    assert set(np.unique(model.replay_buffer.actions)) <= {0, 1, 2}
