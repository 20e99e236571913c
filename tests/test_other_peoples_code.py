"""
Claim: what users do to a model, and what their environments do, neither gives wrong numbers nor fails without a name,
and leaves nothing behind in the process.

What changes while ``compile=True`` is in ``engine/test_changes.py``; bad numbers are in ``test_bad_training.py``.
"""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.engine import graphs
from sb3_pgext.rollouts import episodes as episodes_module
from sb3_pgext.rollouts.acting import unvalidated_distributions
from sb3_pgext.rollouts.episodes import EpisodeSchedule
from tests.environments import AnySpaces
from tests.tracing import traced_only

SMALL = {
    REINFORCE: {"n_episodes": 4},
    VPG: {"n_steps": 16, "batch_size": 8},
    NPG: {"n_steps": 16, "batch_size": 8},
    ClippedCriticPPO: {"n_steps": 16, "batch_size": 8, "n_epochs": 2},
    ISPG: {"n_episodes": 4, "gradient_steps": 2},
}
family = pytest.mark.parametrize("algorithm", SMALL, ids=lambda algorithm: algorithm.__name__)
VECTOR = spaces.Box(-1, 1, (3,), np.float32)


def model_on(algorithm, env, policy="MlpPolicy", **options):
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "seed": 0, "device": "cpu"}
    return algorithm(policy, DummyVecEnv([env] * 2), **kwargs | SMALL.get(algorithm, {"n_steps": 16}) | options)


class NearHalf(AnySpaces):
    """Pays for actions near 0.5."""

    def __init__(self, action_space):
        super().__init__(spaces.Box(-1, 1, (1,)), action_space)

    def reset(self, **options):
        super().reset(**options)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        _, _, *rest = super().step(action)
        return np.zeros(1, np.float32), -float(np.sum((np.asarray(action) - 0.5) ** 2)), *rest


@family
def test_actions_of_no_dimension_are_those_of_one(algorithm):
    """Of ``Box(-1, 1, ())``: the same actions, log-probabilities and parameters as of ``Box(-1, 1, (1,))``."""
    found = []
    for shape in ((), (1,)):
        model = model_on(algorithm, lambda shape=shape: NearHalf(spaces.Box(-1, 1, shape))).learn(60)
        batch = model.rollout if hasattr(model, "rollout") else model.episodes
        log_prob = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
        found.append((batch.actions, log_prob, *model.policy.parameters()))
    for of_none, of_one in zip(*found, strict=True):
        assert th.equal(of_none, of_one)


class Shifted(AnySpaces):
    """A Discrete space that starts at 5, and numbers from 0, as SB3's networks take them."""

    def __init__(self):
        super().__init__(spaces.Discrete(4, start=5), spaces.Discrete(2))

    def reset(self, **options):
        super().reset(**options)
        return 0, {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.t % 4, *rest


@family
@pytest.mark.parametrize("compile", [False, True])
def test_a_discrete_space_that_starts_elsewhere(algorithm, compile, monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)
    model = model_on(algorithm, Shifted, compile=compile)
    start = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(60)
    assert any(not th.equal(p, q) for p, q in zip(model.policy.parameters(), start, strict=True))


def test_a_discrete_space_that_starts_elsewhere_trains_as_in_sb3():
    ours = model_on(ClippedCriticPPO, Shifted, gae_lambda=0.9).learn(96)
    theirs = model_on(PPO, Shifted, batch_size=8, n_epochs=2, gae_lambda=0.9).learn(96)
    assert all(th.equal(p, q) for p, q in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True))


class Misspelt(AnySpaces):
    """``vektor`` instead of ``vector``, from a step on."""

    def __init__(self, at):
        super().__init__(spaces.Dict(vector=VECTOR), spaces.Discrete(2))
        self.at, self.n = at, 0

    def _seen(self, observation):
        self.n += 1
        return {"vektor": observation["vector"]} if self.n > self.at else observation

    def reset(self, **options):
        observation, info = super().reset(**options)
        return self._seen(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self._seen(observation), *rest


@family
@pytest.mark.parametrize(("at", "when"), [(0, "in a reset"), (3, "at vector step 2 of this rollout")])
def test_a_misspelt_key_is_named(algorithm, at, when):
    model = model_on(algorithm, lambda: Misspelt(at), "MultiInputPolicy")
    with pytest.raises(ValueError, match=rf"keys of observation: 'vector' is missing {when}: allowed are \['vector'\]"):
        model.learn(60)


def test_an_episode_without_an_end_is_told_once(monkeypatch):
    monkeypatch.setattr(episodes_module, "WARN_AFTER", 50)
    never, at_limit = EpisodeSchedule(1, 2), EpisodeSchedule(1, 1, max_episode_steps=200)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(120):
            never.step(np.array([False, True]))
    (warning,) = caught
    assert "same episode for 50 steps" in str(warning.message)
    assert "set `max_episode_steps`" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(120):
            at_limit.step(np.array([False]))


class SteppedInNumbers(VecEnvWrapper):
    """Says 0 and 1 instead of False and True, as supersuit's environments do."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones.astype(np.uint8), infos


@family
def test_ends_of_episodes_that_are_numbers(algorithm):
    """They train as booleans do, and callbacks get booleans, as VecEnv promises."""
    found, kinds = [], set()

    def look(seen, _):
        kinds.add(seen["dones"].dtype.type)

    for wrapper in (SteppedInNumbers, lambda env: env):
        env = wrapper(DummyVecEnv([lambda: AnySpaces(VECTOR, spaces.Discrete(2))] * 2))
        options = {"policy_kwargs": {"net_arch": [4]}, "seed": 0, "device": "cpu"} | SMALL[algorithm]
        found.append(list(algorithm("MlpPolicy", env, **options).learn(60, look).policy.parameters()))
    assert kinds == {np.bool_}
    assert all(th.equal(p, q) for p, q in zip(*found, strict=True))


# --- Threads ---------------------------------------------------------------------------------------------------------


def in_threads(functions):
    """All of them at once; what they raise is raised."""
    errors, ready = [], threading.Barrier(len(functions))

    def run(function):
        ready.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_trainings_in_threads_leave_torchs_validation_as_it_was():
    before = th.distributions.Distribution._validate_args
    models = [model_on(algorithm, lambda: AnySpaces(VECTOR, spaces.Discrete(2))) for algorithm in (VPG, REINFORCE) * 3]
    in_threads([lambda model=model: model.learn(100) for model in models])
    assert th.distributions.Distribution._validate_args is before


@pytest.mark.parametrize("default", [True, False])
def test_the_last_thread_that_leaves_puts_back_what_the_first_one_found(default):
    of_torch = th.distributions.Distribution
    before = of_torch._validate_args
    of_torch.set_default_validate_args(default)
    try:
        first, second = unvalidated_distributions(), unvalidated_distributions()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert of_torch._validate_args is False
        second.__exit__(None, None, None)
        assert of_torch._validate_args is default
    finally:
        of_torch.set_default_validate_args(before)


def test_compiling_in_threads(monkeypatch):
    """Tracing replaces methods of all modules for a moment: each model is compiled, and the modules are as before."""
    monkeypatch.setattr(graphs, "_compile", traced_only)
    call, getattribute = th.nn.Module.__call__, th.nn.Module.__getattr__
    models = [model_on(ClippedCriticPPO, lambda: AnySpaces(VECTOR, spaces.Discrete(2)), compile=True) for _ in range(6)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_threads([lambda model=model: model.learn(64) for model in models])
    assert [str(w.message) for w in caught if "compile=True" in str(w.message)] == []
    assert all(len(graphs._graphs[model.policy]) == 2 for model in models)
    assert all(None not in graphs._graphs[model.policy].values() for model in models)
    assert (th.nn.Module.__call__, th.nn.Module.__getattr__) == (call, getattribute)


# --- Callbacks -------------------------------------------------------------------------------------------------------


class LearnsInside(BaseCallback):
    """Trains another model in the middle of a rollout."""

    def __init__(self, other):
        super().__init__()
        self.other, self.n = other, 0

    def _on_step(self):
        self.n += 1
        if self.n == 3:
            self.other.learn(40)
        return True


@pytest.mark.parametrize("algorithm", [REINFORCE, ClippedCriticPPO])
def test_learning_inside_a_callback(algorithm):
    def env():
        return AnySpaces(VECTOR, spaces.Discrete(2))

    before, other = th.distributions.Distribution._validate_args, model_on(VPG, env)
    model = model_on(algorithm, env).learn(60, LearnsInside(other))
    assert model._n_updates > 0
    assert other._n_updates > 0
    assert th.distributions.Distribution._validate_args is before


class LearnsAgain(BaseCallback):
    """Trains its own model in the middle of a rollout, or a copy of it."""

    def __init__(self, copied):
        super().__init__()
        self.copied, self.n = copied, 0

    def _on_step(self):
        self.n += 1
        if self.n == 3:
            model = self.model
            if self.copied:
                model = copy.deepcopy(model)
                model.set_env(DummyVecEnv([lambda: AnySpaces(VECTOR, spaces.Discrete(2))] * 2))
            model.learn(40)
        return True


@family
def test_learning_of_the_same_model_inside_a_callback(algorithm):
    model = model_on(algorithm, lambda: AnySpaces(VECTOR, spaces.Discrete(2)))
    start = [p.clone() for p in model.policy.parameters()]
    with pytest.raises(RuntimeError, match=r"learn\(\) in a callback of a rollout of the same model"):
        model.learn(60, LearnsAgain(copied=False))
    assert all(map(th.equal, start, model.policy.parameters()))
    model.learn(60, LearnsAgain(copied=True))
    assert model._n_updates > 0


class AddsNovelty(BaseCallback):
    """An intrinsic reward, computed as RLeXplore's RND and ICM do: from views of the buffer, which need its strides."""

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        novelty = th.as_tensor(buffer.observations).view(-1, *VECTOR.shape).abs().mean(1)
        novelty = novelty.view(buffer.buffer_size, buffer.n_envs).numpy()
        buffer.advantages += novelty
        buffer.returns += novelty

    def _on_step(self):
        return True


@pytest.mark.parametrize("algorithm", [PPO, VPG, NPG, ClippedCriticPPO])
def test_views_of_the_buffer(algorithm):
    def env():
        return AnySpaces(VECTOR, spaces.Discrete(2))

    of_ppo = {"batch_size": 8, "n_epochs": 2} if algorithm is PPO else {}
    plain, shaped = (model_on(algorithm, env, **of_ppo).learn(96, callback) for callback in (None, AddsNovelty()))
    parameters = list(shaped.policy.parameters())
    assert not all(th.equal(p, q) for p, q in zip(parameters, plain.policy.parameters(), strict=True))
    if algorithm is ClippedCriticPPO:
        theirs = model_on(PPO, env, batch_size=8, n_epochs=2).learn(96, AddsNovelty())
        assert all(th.equal(p, q) for p, q in zip(parameters, theirs.policy.parameters(), strict=True))


# --- Attributes, losses and buffers of a user's own -------------------------------------------------------------------


@family
@pytest.mark.parametrize("action_space", [spaces.Discrete(2), VECTOR])
def test_learning_within_autocast(algorithm, action_space):
    """It ends where the training in single precision does, up to what bfloat16 rounds."""
    found = []
    for precise in (True, False):
        model = model_on(algorithm, lambda: AnySpaces(VECTOR, action_space))
        start = th.nn.utils.parameters_to_vector(model.policy.parameters())
        with th.autocast("cpu", dtype=th.bfloat16, enabled=not precise):
            model.learn(1)
        found.append((th.nn.utils.parameters_to_vector(model.policy.parameters()) - start).detach())
    assert th.nn.functional.cosine_similarity(*found, dim=0) > 0.9


@pytest.mark.parametrize("algorithm", [VPG, REINFORCE, ISPG])
def test_a_gradient_of_nothing(algorithm, tmp_path):
    """Before the first rollout, and after a load, which brings none."""
    model = model_on(algorithm, lambda: AnySpaces(VECTOR, spaces.Discrete(2)))
    model.save(tmp_path / "model")
    for without in (model, algorithm.load(tmp_path / "model", device="cpu")):
        with pytest.raises(ValueError, match=r"(rollout_buffer|episodes|number of batches).*learn"):
            without.estimate_gradient()


@family
def test_a_wrong_value_set_later_is_named_when_learning_begins(algorithm):
    model = model_on(algorithm, lambda: AnySpaces(VECTOR, spaces.Discrete(2))).learn(1)
    model.learning_rate = "0.1"
    with pytest.raises(ValueError, match=r"learning_rate='0\.1'"):
        model.learn(1)


def test_fewer_replayed_batches_from_the_next_rollout_on():
    model = model_on(ISPG, lambda: AnySpaces(VECTOR, spaces.Discrete(2)), replay_batches=3, min_ess=0.0)
    model.learn(300)
    assert len(model.replay_buffer.batches) > 2
    model.replay_batches = 1
    model.learn(1, reset_num_timesteps=False)
    assert len(model.replay_buffer.batches) == 2, "the new one, and the one replayed"


def test_whole_numbers_that_are_normalized():
    """VecNormalize leaves the space as it is, and the policy acts on the normalised numbers, as in SB3."""
    space, acted_on = spaces.Box(-100, 100, (3,), np.int64), []

    class Seen(BaseCallback):
        def _on_step(self):
            acted_on.append(self.locals["obs_tensor"].clone())
            return True

    env = VecNormalize(DummyVecEnv([lambda: AnySpaces(space, spaces.Discrete(2))]), norm_reward=False)
    ClippedCriticPPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(8, Seen())
    assert any((observations % 1 != 0).any() for observations in acted_on)


def test_a_loss_of_a_users_own_moves_what_it_depends_on():
    class WithATerm(ClippedCriticPPO):
        def _loss(self, minibatch, coefficients):
            loss, logged = super()._loss(minibatch, coefficients)
            return loss + self.policy.auxiliary.square().sum(), logged

    model = model_on(WithATerm, lambda: AnySpaces(VECTOR, spaces.Discrete(2)))
    model.policy.auxiliary = th.nn.Parameter(th.ones(2))
    model.policy.optimizer.add_param_group({"params": [model.policy.auxiliary]})
    model.learn(1)
    assert (model.policy.auxiliary < 1).all()


def test_a_buffer_that_yields_other_samples_is_refused():
    class Own(RolloutBuffer):
        def get(self, batch_size=None):
            yield from ()

    with pytest.raises(ValueError, match=r"rollout_buffer_class=.*leaves get alone"):
        model_on(VPG, lambda: AnySpaces(VECTOR, spaces.Discrete(2)), rollout_buffer_class=Own)
