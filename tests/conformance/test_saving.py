"""Claim: parameters, files and environments go in and out of each algorithm as they do of SB3's."""

import base64
import functools
import inspect
import io
import json
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize, VecTransposeImage

from tests.conformance.models import (
    UPDATE,
    collected,
    each_of_ours,
    error_of,
    every_algorithm,
    every_learner,
    every_player,
    in_turn,
    make_env,
    sampled,
    small,
    vector_of,
)
from tests.environments import ACTIONS, DICT, IMAGE_LAST, VECTOR, AnySpaces


def trained(algorithm, env=None, policy="MlpPolicy", **arguments):
    return small(algorithm, env, policy, **arguments).learn(2 * UPDATE)


@functools.cache
def trained_once(algorithm):
    """A trained model that nobody may train further."""
    return trained(algorithm)


def assert_same(model, other):
    """Parameters, optimizer, counters, constructor arguments and predictions, drawn ones too."""
    assert th.equal(vector_of(other), vector_of(model))
    ours, theirs = (m.policy.optimizer.state_dict() for m in (model, other))
    assert ours["param_groups"] == theirs["param_groups"]
    assert len(ours["state"]) == len(theirs["state"]) > 0
    for key, state in ours["state"].items():
        for name, value in state.items():
            assert th.equal(th.as_tensor(value), th.as_tensor(theirs["state"][key][name])), name
    assert (other.num_timesteps, other._n_updates) == (model.num_timesteps, model._n_updates)
    assert other._stats_window_size == model._stats_window_size
    for name in constructor_arguments(type(model)):
        assert constant(getattr(other, name)) == constant(getattr(model, name)), name
    predictions = []
    for m in (model, other):
        th.manual_seed(3)
        predictions.append([m.predict(sampled(m.observation_space, 9), deterministic=d)[0] for d in (True, False)])
    np.testing.assert_array_equal(*predictions)


def constructor_arguments(algorithm):
    """Those that the model keeps under their name."""
    parameters = inspect.signature(algorithm.__init__).parameters
    elsewhere = {"self", "policy", "env", "device", "stats_window_size", "_init_setup_model", "use_rms_prop"}
    elsewhere |= {"rms_prop_eps"}
    return [name for name in parameters if name not in elsewhere]


def constant(value):
    """Schedules are compared by their values; a number is a constant one."""
    schedule = callable(value) and not isinstance(value, type)
    return [value(1.0), value(0.5)] if schedule else [value, value]


# --- parameters ------------------------------------------------------------------------------------------------------


@each_of_ours
def test_parameters_have_the_names_of_sb3(algorithm):
    ours, theirs = (small(cls).get_parameters() for cls in (algorithm, A2C))
    assert ours.keys() == theirs.keys() == {"policy", "policy.optimizer"}
    assert ours["policy"].keys() == theirs["policy"].keys()


@every_algorithm
@pytest.mark.parametrize("where", ["memory", "file"])
def test_parameters_are_handed_to_another_model(algorithm, where, tmp_path):
    model, other = trained_once(algorithm), small(algorithm, seed=1)
    before = vector_of(other)
    parameters = {name: {**part} for name, part in model.get_parameters().items()}
    if where == "file":
        model.save(tmp_path / "model")
    assert not th.equal(before, vector_of(model))
    other.set_parameters(parameters if where == "memory" else str(tmp_path / "model"))
    assert th.equal(vector_of(other), vector_of(model))
    assert len(other.policy.optimizer.state) == len(model.policy.optimizer.state) > 0
    collected(other).train()
    assert not th.equal(vector_of(other), vector_of(model)), "it goes on learning"


WRONG_PARAMETERS = {
    "none": lambda p: {},
    "no optimizer": lambda p: {"policy": p["policy"]},
    "unknown object": lambda p: {**p, "no_such_object": {}},
    "layer missing": lambda p: {**p, "policy": {k: v for k, v in p["policy"].items() if k != "action_net.bias"}},
    "unknown layer": lambda p: {**p, "policy": {**p["policy"], "no_such_layer": th.zeros(1)}},
    "other shape": lambda p: {**p, "policy": {**p["policy"], "action_net.bias": th.zeros(7)}},
    "optimizer of another policy": lambda p: {**p, "policy.optimizer": {"param_groups": [], "state": {}}},
}


@in_turn("exact_match, case", [(exact_match, case) for case in WRONG_PARAMETERS for exact_match in (True, False)])
def test_parameters_that_do_not_match(algorithm, exact_match, case):
    """What raises with SB3 raises the same, and what it accepts without ``exact_match`` is accepted."""

    def outcome(cls):
        model = small(cls)
        parameters = WRONG_PARAMETERS[case](model.get_parameters())
        return error_of(lambda: model.set_parameters(parameters, exact_match=exact_match), "'policy', ", ", 'policy'")

    found, expected = outcome(algorithm), outcome(A2C)
    assert (expected is not None) == (exact_match or case in ("unknown object", "other shape")) or "optimizer" in case
    assert found == expected


@every_algorithm
def test_some_of_the_parameters_are_set(algorithm):
    model = small(algorithm)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.set_parameters({"policy": {"action_net.bias": th.arange(3.0)}}, exact_match=False)
    after = model.policy.state_dict()
    assert after.pop("action_net.bias").tolist() == [0, 1, 2]
    assert all(th.equal(tensor, before[name]) for name, tensor in after.items())


@every_algorithm
def test_a_policy_is_saved_by_itself(algorithm, tmp_path):
    model = trained_once(algorithm)
    model.policy.save(tmp_path / "policy")
    policy, observations = ActorCriticPolicy.load(tmp_path / "policy", device="cpu"), sampled(VECTOR, 50)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Path .*new' does not exist. Will create it")
@in_turn("where", ["name", "path", "with_ending", "new_folder", "open_file", "memory"])
def test_saved_and_loaded(algorithm, where, tmp_path):
    model, path = trained_once(algorithm), tmp_path / "model"
    if where in ("open_file", "memory"):
        with io.BytesIO() if where == "memory" else open(path, "w+b") as file:
            model.save(file)
            assert not file.closed
            file.seek(0)
            loaded = algorithm.load(file, env=make_env(), device="cpu")
            assert not file.closed
    else:
        given = {"name": str(path), "with_ending": f"{path}.zip", "new_folder": tmp_path / "new" / "model"}
        model.save(given.get(where, path))
        assert (tmp_path / ("new" if where == "new_folder" else "") / "model.zip").exists()
        loaded = algorithm.load(given.get(where, path), env=make_env(), device="cpu")
    assert type(loaded) is algorithm
    assert_same(model, loaded)
    before = vector_of(loaded)
    loaded.learn(UPDATE, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * UPDATE
    assert loaded._n_updates > model._n_updates
    assert not th.equal(vector_of(loaded), before)


@each_of_ours
def test_a_file_has_the_parts_of_sb3s(algorithm, tmp_path):
    parts = []
    for cls in (algorithm, A2C):
        trained_once(cls).save(tmp_path / cls.__name__)
        with zipfile.ZipFile(tmp_path / f"{cls.__name__}.zip") as file:
            parts.append(sorted(file.namelist()))
    assert parts[0] == parts[1]


@every_learner
def test_a_file_holds_nothing_of_the_last_rollout(algorithm):
    model, sizes = trained(algorithm), []
    for _ in range(2):
        file = io.BytesIO()
        model.save(file)
        sizes.append(len(file.getvalue()))
        for name in ("rollout", "episodes", "rollout_buffer", "replay_buffer"):
            vars(model).pop(name, None)
    assert sizes[1] == pytest.approx(sizes[0], abs=100)


@in_turn("policy", ["CnnPolicy", "MultiInputPolicy", "gSDE"])
def test_other_policies_are_saved(algorithm, policy, tmp_path):
    env = {
        "CnnPolicy": lambda: VecTransposeImage(make_env(IMAGE_LAST)),
        "MultiInputPolicy": lambda: make_env(DICT, ACTIONS["multi_discrete"]),
        "gSDE": lambda: make_env(action_space=ACTIONS["box"]),
    }[policy]
    arguments = {"use_sde": True} if policy == "gSDE" else {"policy": policy}
    model = trained(algorithm, env(), **arguments)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env(), device="cpu")
    for m in (model, loaded) if policy == "gSDE" else ():
        th.manual_seed(0)
        m.policy.reset_noise()
    assert_same(model, loaded)
    loaded.learn(UPDATE)


@every_learner
def test_a_file_without_an_environment(algorithm, tmp_path):
    """It predicts, and learns when it has got one."""
    model = trained_once(algorithm)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert loaded.get_env() is None
    assert_same(model, loaded)
    assert error_of(lambda: loaded.learn(1)) == error_of(lambda: A2C.load(a2c_file(tmp_path)).learn(1)) is not None
    loaded.set_env(make_env())
    assert loaded.learn(UPDATE).num_timesteps == UPDATE


def a2c_file(folder):
    small(A2C).save(folder / "a2c")
    return folder / "a2c"


@each_of_ours
def test_files_that_are_none(algorithm, tmp_path):
    (tmp_path / "text.zip").write_text("no model")
    for path in (tmp_path / "missing", tmp_path / "text.zip"):
        found, expected = (error_of(lambda cls=cls, path=path: cls.load(path)) for cls in (algorithm, A2C))
        assert found == expected
        assert expected is not None


@in_turn("device", ["auto", "cpu", th.device("cpu")])
def test_the_device_is_chosen_when_loading(algorithm, device, tmp_path):
    trained_once(algorithm).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_env(), device=device)
    expected = "cuda" if device == "auto" and th.cuda.is_available() else "cpu"
    assert loaded.device.type == loaded.policy.device.type == expected
    assert {p.device.type for p in loaded.policy.parameters()} == {expected}
    loaded.learn(UPDATE)


@every_learner
def test_from_device_to_device(algorithm, device, tmp_path):
    model = trained(algorithm, device=device)
    model.save(tmp_path / "model")
    assert model.device.type == device
    on_cpu = algorithm.load(tmp_path / "model", env=make_env(), device="cpu")
    assert th.equal(vector_of(on_cpu), vector_of(model))
    on_cpu.learn(UPDATE).save(tmp_path / "back")
    back = algorithm.load(tmp_path / "back", env=make_env(), device=device)
    assert back.policy.device.type == device
    assert th.equal(vector_of(back), vector_of(on_cpu))
    back.learn(UPDATE)


def with_unreadable(path, name):
    """The same file, in which one attribute is of a class that no longer exists."""
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part) for part in file.namelist()}
    data = json.loads(parts["data"])
    data[name] = {":type:": "gone", ":serialized:": base64.b64encode(b"cbuiltins\nno_such_class\n.").decode()}
    with zipfile.ZipFile(path, "w") as file:
        for part, content in {**parts, "data": json.dumps(data)}.items():
            file.writestr(part, content)


@every_learner
def test_custom_objects_take_the_place_of_what_was_saved(algorithm, tmp_path):
    """Which is not even read; what the file does not have is not added."""
    trained_once(algorithm).save(tmp_path / "model")
    with_unreadable(tmp_path / "model.zip", "learning_rate")
    with pytest.warns(UserWarning, match="Could not deserialize object learning_rate"):
        loaded = algorithm.load(tmp_path / "model")
    assert loaded.learning_rate == inspect.signature(algorithm.__init__).parameters["learning_rate"].default
    objects = {"learning_rate": 0.25, "no_such_attribute": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = algorithm.load(tmp_path / "model", env=make_env(), custom_objects=objects)
    assert not hasattr(loaded, "no_such_attribute")
    loaded.learn(UPDATE)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == loaded.learning_rate == 0.25


@every_algorithm
def test_what_is_excluded_and_included(algorithm, tmp_path):
    """By SB3's names: what is left out has its default, what is included is there after all."""
    model = trained(algorithm, verbose=0, gamma=0.5, ent_coef=0.25)
    model.save(tmp_path / "model", exclude=["gamma", "_vec_normalize_env"], include=["_custom_logger"])
    loaded = algorithm.load(tmp_path / "model")
    assert loaded.gamma == inspect.signature(algorithm.__init__).parameters["gamma"].default != 0.5
    assert loaded.ent_coef == 0.25
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        data = file.read("data").decode()
    assert '"gamma"' not in data
    assert '"_custom_logger"' in data
    assert '"ent_coef"' in data
    assert '"rollout_buffer"' not in data
    assert '"_logger"' not in data


@every_learner
def test_a_file_of_a_version_before_or_after(algorithm, tmp_path):
    """Arguments that were not there yet have their defaults; attributes that are no longer there do not hurt."""
    own = set(constructor_arguments(algorithm)) - set(constructor_arguments(A2C)) - {"n_episodes", "batch_size"}
    model = trained(algorithm)
    model.of_another_version = 1
    model.save(tmp_path / "model", exclude=own)
    loaded = algorithm.load(tmp_path / "model", env=make_env())
    parameters = inspect.signature(algorithm.__init__).parameters
    assert all(constant(getattr(loaded, name)) == constant(parameters[name].default) for name in own)
    assert loaded.of_another_version == 1
    assert th.equal(vector_of(loaded), vector_of(model))
    loaded.learn(UPDATE)


@every_learner
def test_arguments_are_changed_when_loading(algorithm, tmp_path):
    trained_once(algorithm).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_env(), gamma=0.5, learning_rate=0.125)
    assert loaded.gamma == 0.5
    loaded.learn(UPDATE)
    assert loaded.logger.name_to_value["train/learning_rate"] == 0.125


@each_of_ours
def test_other_networks_are_refused_when_loading(algorithm, tmp_path):
    kwargs = {"net_arch": [4]}
    for cls in (algorithm, A2C):
        small(cls, policy_kwargs={**kwargs}).save(tmp_path / cls.__name__)
    found, expected = (
        error_of(lambda cls=cls: cls.load(tmp_path / cls.__name__, policy_kwargs={"net_arch": [8]}))
        for cls in (algorithm, A2C)
    )
    assert found[0] is expected[0] is ValueError
    assert found[1].startswith("The specified policy kwargs do not equal the stored policy kwargs.")


# --- environments ----------------------------------------------------------------------------------------------------


@each_of_ours
@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_another_number_of_environments(algorithm, n_envs, tmp_path):
    """``load`` takes one, ``set_env`` does not."""
    model = trained_once(algorithm)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_env(n_envs=n_envs), device="cpu")
    assert loaded.n_envs == loaded.rollout_buffer.n_envs == n_envs
    loaded.learn(1)
    assert loaded.num_timesteps % n_envs == 0
    assert loaded._n_updates > model._n_updates
    found, expected = (
        error_of(lambda m=m: m.set_env(make_env(n_envs=n_envs)), type(m).__name__)
        for m in (small(algorithm), small(A2C))
    )
    assert found == expected
    assert (found is None) == (n_envs == 2)


@each_of_ours
@pytest.mark.parametrize("other", [(DICT, ACTIONS["discrete"]), (VECTOR, ACTIONS["box"])], ids=["observed", "done"])
def test_an_environment_of_other_spaces(algorithm, other, tmp_path):
    model = small(algorithm)
    model.save(tmp_path / "model")
    expected = error_of(lambda: small(A2C).set_env(make_env(*other)))
    assert expected[0] is ValueError
    assert error_of(lambda: model.set_env(make_env(*other))) == expected
    assert error_of(lambda: algorithm.load(tmp_path / "model", env=make_env(*other))) == expected


class CountsResets(AnySpaces):
    def __init__(self):
        super().__init__(VECTOR, ACTIONS["discrete"])
        self.n_resets = 0

    def reset(self, *, seed=None, options=None):
        self.n_resets += 1
        return super().reset(seed=seed, options=options)


@in_turn("how, force_reset", [("set_env", True), ("set_env", False), ("load", True), ("load", False)])
def test_the_environment_is_reset_before_training_where_that_is_asked_for(algorithm, how, force_reset, tmp_path):
    """Between two rollouts, which end with an episode."""
    env = DummyVecEnv([CountsResets])
    model = small(algorithm, env).learn(UPDATE)
    before = env.envs[0].n_resets
    if how == "set_env":
        model.set_env(env, force_reset=force_reset)
    else:
        model.save(tmp_path / "model")
        model = algorithm.load(tmp_path / "model", env=env, device="cpu", force_reset=force_reset)
    n_steps = model.num_timesteps
    model.learn(1, reset_num_timesteps=False)
    in_rollout = (model.num_timesteps - n_steps) // 5
    assert env.envs[0].n_resets == before + in_rollout + force_reset


@every_player
def test_training_goes_on_where_it_was(algorithm):
    """The environment is reset by ``reset_num_timesteps`` only."""
    env = DummyVecEnv([CountsResets])
    model = small(algorithm, env).learn(UPDATE)
    for reset_num_timesteps in (False, True):
        env.envs[0].n_resets = 0
        n_steps = 0 if reset_num_timesteps else model.num_timesteps
        model.learn(1, reset_num_timesteps=reset_num_timesteps)
        assert env.envs[0].n_resets == (model.num_timesteps - n_steps) // 5 + reset_num_timesteps


@every_player
def test_another_environment_is_learnt_from(algorithm):
    first, second = (DummyVecEnv([CountsResets] * 2) for _ in range(2))
    model = small(algorithm, first).learn(UPDATE)
    resets = [env.n_resets for env in first.envs]
    model.set_env(second)
    assert model.get_env() is second
    model.learn(UPDATE, reset_num_timesteps=False)
    assert [env.n_resets for env in first.envs] == resets
    assert all(env.n_resets > 1 for env in second.envs)


@every_learner
def test_normalization_is_that_of_the_present_environment(algorithm):
    """It stays with the environment, out of the model's file."""
    env = VecNormalize(make_env())
    model = trained(algorithm, env)
    assert model.get_vec_normalize_env() is env
    file = io.BytesIO()
    model.save(file)
    other = VecNormalize(make_env())
    assert algorithm.load(file, env=other, device="cpu").get_vec_normalize_env() is other
    model.set_env(make_env())
    assert model.get_vec_normalize_env() is None
    model.learn(UPDATE)


@every_learner
def test_wrappers_are_there_once(algorithm):
    """A single environment gets a Monitor unless it has one; a VecEnv is taken as it is."""
    alone = small(algorithm, AnySpaces(VECTOR, ACTIONS["discrete"])).get_env()
    assert alone.env_is_wrapped(Monitor) == [True]
    assert alone.env_is_wrapped(gym.wrappers.TimeLimit) == [False]
    monitored = Monitor(AnySpaces(VECTOR, ACTIONS["discrete"]))
    assert small(algorithm, monitored).get_env().envs[0] is monitored
    bare = DummyVecEnv([CountsResets] * 2)
    assert small(algorithm, bare).get_env() is bare
    assert bare.env_is_wrapped(Monitor) == [False, False]


@every_learner
def test_episodes_are_counted_once(algorithm):
    """Of sub-environments with a Monitor, or of a VecMonitor around them: two of 5 steps each."""
    for env in (make_env(), VecMonitor(DummyVecEnv([CountsResets] * 2))):
        model = small(algorithm, env).learn(UPDATE)
        assert [info["l"] for info in model.ep_info_buffer] == [5] * 4
    assert small(algorithm, DummyVecEnv([CountsResets] * 2)).learn(UPDATE).ep_info_buffer.maxlen == 100
