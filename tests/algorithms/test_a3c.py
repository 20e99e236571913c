"""
Claim: a worker of A3C computes what algorithm S3 says; all workers together are A2C, if they wait for each other; and
the main process counts, logs, calls back, saves and fails as that of SB3's algorithms does.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from copy import deepcopy
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_pgext import A3C, CheckpointCallback, resume
from sb3_pgext.algorithms.a3c import _Order
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import trainable_parameters
from sb3_pgext.parallel import workers
from tests.environments import ACTIONS, VECTOR, AnySpaces, RewardsAndLimits, Scripted


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch):
    """Forked workers do the same, and begin at once; what spawning needs is tested by a test of its own."""
    monkeypatch.setattr(workers, "START_METHOD", "fork")


def model_of(env="CartPole-v1", n_workers=1, **arguments):
    arguments = {"policy_kwargs": {"net_arch": [8]}, "seed": 3, "device": "cpu", **arguments}
    return A3C(arguments.pop("policy", "MlpPolicy"), env, n_workers=n_workers, **arguments)


def vector_of(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def seed_of(worker, seed=3):
    return int(np.random.SeedSequence(seed, spawn_key=(worker, 0)).generate_state(1)[0])


# --- algorithm S3 ----------------------------------------------------------------------------------------------------


def slow_loop(policy, env, seed, n_steps, total, gamma, ent_coef, vf_coef, eta, optimizer, eps=1e-5):
    """Algorithm S3 with one worker, step by step, with a loss for each; limits of time are no terminal states."""
    theta = list(policy.parameters())
    moments = [[th.ones_like(p)] if optimizer == "rmsprop" else [th.zeros_like(p), th.zeros_like(p)] for p in theta]
    th.manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    taken = updates = 0
    while taken < total:
        start, rewards, states, actions, done = taken, [], [], [], False
        while not done and taken - start < n_steps:
            with th.no_grad():
                action = policy(th.as_tensor(obs)[None])[0].item()
            states.append(obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            actions.append(action)
            done, taken = terminated or truncated, taken + 1
        with th.no_grad():
            ret = 0.0 if terminated else policy.predict_values(th.as_tensor(obs)[None]).item()
        d_theta = [th.zeros_like(p) for p in theta]
        for state, action, reward in reversed(list(zip(states, actions, rewards, strict=True))):
            ret = reward + gamma * ret
            logits = policy.get_distribution(th.as_tensor(state)[None]).distribution.logits[0]
            value = policy.predict_values(th.as_tensor(state)[None])[0, 0]
            entropy = -(logits.exp() * logits).sum()
            gain = logits[action] * (ret - value.item()) + ent_coef * entropy - vf_coef * (ret - value) ** 2
            for d, g in zip(d_theta, th.autograd.grad(gain, theta, allow_unused=True), strict=True):
                d += 0 if g is None else g
        updates += 1
        with th.no_grad():
            for p, d, kept in zip(theta, d_theta, moments, strict=True):
                if optimizer == "rmsprop":
                    kept[0] = 0.99 * kept[0] + 0.01 * d**2
                    p += eta * d / (kept[0] + eps).sqrt()
                else:
                    kept[0] = 0.9 * kept[0] + 0.1 * d
                    kept[1] = 0.999 * kept[1] + 0.001 * d**2
                    first, second = kept[0] / (1 - 0.9**updates), kept[1] / (1 - 0.999**updates)
                    p += eta * first / (second.sqrt() + eps)
        if done:
            obs, _ = env.reset()
    return updates


@pytest.mark.parametrize(("optimizer", "ent_coef", "vf_coef"), [("rmsprop", 0.01, 1.0), ("adam", 0.0, 0.5)])
def test_one_worker_is_the_slow_loop(optimizer, ent_coef, vf_coef):
    """Parameters after hundreds of steps, episodes that end and are cut among them, to 1e-6."""

    def env():
        return gym.make("CartPole-v1", max_episode_steps=17)

    options = {"n_steps": 5, "gamma": 0.9, "ent_coef": ent_coef, "vf_coef": vf_coef, "optimizer": optimizer}
    model = model_of(env(), learning_rate=1e-3, max_grad_norm=None, **options)
    twin = model_of(env(), **options).policy
    ended = []
    model.learn(400, lambda local, _: ended.append(local["infos"][0].get("TimeLimit.truncated")) or True)
    updates = slow_loop(twin, env(), seed_of(0), total=400, eta=1e-3, **options)
    assert model._n_updates == updates
    assert {True, False} <= set(ended)
    th.testing.assert_close(vector_of(model), th.nn.utils.parameters_to_vector(twin.parameters()), rtol=0, atol=1e-6)


class Greedy(ActorCriticPolicy):
    """Acts without a random number, which A2C's environments would draw in another order."""

    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic=True)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_synchronous_workers_are_a2c(n_workers):
    """
    SB3's A2C, in environments with the same seeds, up to rounding. Its gradient is the mean over 5 steps where ours is
    their sum: what is measured by the gradient is 5 times as much.
    """

    def make():
        return Monitor(RewardsAndLimits(deepcopy(VECTOR), ACTIONS["multi_discrete"]))

    options = {"n_steps": 5, "learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.9, "device": "cpu"}
    model = model_of(
        make(), n_workers, policy=Greedy, synchronous=True, max_grad_norm=2.5, rms_prop_eps=25e-5, **options
    )
    policy_kwargs = {"net_arch": [8], "optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    env = DummyVecEnv([make] * n_workers)
    a2c = A2C(Greedy, env, use_rms_prop=False, max_grad_norm=0.5, policy_kwargs=policy_kwargs, **options)
    a2c.policy.load_state_dict(model.policy.state_dict())
    env._seeds = [seed_of(number) for number in range(n_workers)]
    for p in model.policy.parameters():
        model.policy.optimizer.state[p] = {"step": 0, "square_avg": th.full_like(p, 25.0).detach()}

    before = vector_of(model)
    for one in (model, a2c):
        one.learn(20 * 5 * n_workers)
    assert model.num_timesteps == a2c.num_timesteps == 20 * 5 * n_workers
    assert model._n_updates == a2c._n_updates == 20
    th.testing.assert_close(vector_of(model), vector_of(a2c), rtol=0, atol=2e-6)
    assert (vector_of(model) - before).abs().max() > 1e-3


def test_staleness_is_the_number_of_others_updates():
    """Those between the copy of the parameters and the application of the gradient."""

    class OthersAreFast(AnySpaces):
        updates = None

        def step(self, action):
            self.updates[1] += 1
            return super().step(action)

    model = model_of(OthersAreFast(VECTOR, ACTIONS["discrete"]), n_steps=3)
    FixedLengthAlgorithm._setup_learn(model, 100)
    updates = th.zeros(2, dtype=th.int64)
    model.env.envs[0].unwrapped.updates = updates
    orders, reports = [_Order(0, 100, 3, [])] * 4, []
    link = SimpleNamespace(
        number=0,
        shared=(trainable_parameters(model.policy), model._share(model.policy.optimizer), updates),
        receive=lambda: orders.pop() if orders else None,
        send=reports.append,
    )
    model._work(link)
    assert [report.staleness for report in reports[1:]] == [3, 2, 3, 2]  # episodes of 5 steps, rollouts of 3
    assert updates.tolist() == [4, 10]


def test_workers_that_wait_are_never_stale():
    logs = logged(model_of(n_workers=2, synchronous=True), 100)
    assert [log["train/staleness"] for log in logs] == [0] * 10


# --- counting, seeds, logs -------------------------------------------------------------------------------------------


class Kept(KVWriter):
    """What was logged."""

    def __init__(self):
        self.dumped = []

    def write(self, key_values, key_excluded, step=0):
        self.dumped.append({**key_values, "step": step})

    def close(self):
        pass


def logged(model, total, **options):
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(total, log_interval=1, **options)
    return kept.dumped


@pytest.mark.parametrize(("total", "n_workers"), [(0, 2), (1, 3), (40, 1), (43, 2), (101, 3)])
def test_the_number_of_steps_is_a_lower_bound(total, n_workers):
    """It is exceeded by less than one rollout, and nobody takes a step that is not counted."""
    model, before, seen = model_of(n_workers=n_workers, n_steps=4), None, []
    before = vector_of(model)
    assert model.learn(total, lambda local, _: seen.append(model.num_timesteps) or True) is model
    assert total <= model.num_timesteps < total + 4
    assert seen == list(range(1, model.num_timesteps + 1))
    assert model._updates.sum() == model._n_updates
    assert th.equal(vector_of(model), before) == (total == 0)


def test_steps_are_counted_on_or_anew():
    model = model_of(n_workers=2)
    model.learn(40).learn(40, reset_num_timesteps=False)
    assert 80 <= model.num_timesteps < 90
    assert model.learn(20).num_timesteps < 25


@pytest.mark.parametrize("synchronous", [False, True])
def test_logs_of_all_workers(synchronous):
    n = 1 if not synchronous else 2
    env = make_vec_env(lambda: RewardsAndLimits(deepcopy(VECTOR), deepcopy(ACTIONS["box"])), 1)
    dumped = logged(model_of(env, n_workers=2, n_steps=5, synchronous=synchronous), 60)
    assert [log["time/total_timesteps"] for log in dumped] == [5 * n * (i + 1) for i in range(12 // n)]
    assert dumped[-1]["rollout/ep_len_mean"] == 5
    assert dumped[-1]["train/n_updates"] == 12 // n - 1
    named = {"entropy_loss", "grad_norm", "learning_rate", "n_updates", "policy_gradient_loss", "staleness", "std"}
    assert {key for key in dumped[-1] if key.startswith("train/")} == {
        f"train/{name}" for name in (*named, "value_loss")
    }


def test_the_learning_rate_follows_its_schedule():
    """That of all steps so far, in the worker that takes the step; the user's function need not be a module's."""
    model = model_of(
        learning_rate=lambda progress: 0.1 * progress, n_steps=5, env=AnySpaces(VECTOR, ACTIONS["discrete"])
    )
    rates = [log["train/learning_rate"] for log in logged(model, 20)]
    np.testing.assert_allclose(rates, [0.075, 0.05, 0.025, 0.0], atol=1e-12)


@pytest.mark.parametrize(("n_workers", "synchronous"), [(1, False), (3, True)])
def test_a_seed_fixes_the_run_to_the_bit(n_workers, synchronous):
    """Of one worker, or of workers that wait for each other."""

    def run(seed):
        return vector_of(model_of(n_workers=n_workers, synchronous=synchronous, seed=seed).learn(200))

    first, again, other = run(0), run(0), run(1)
    assert th.equal(first, again)
    assert not th.equal(first, other)


@pytest.mark.parametrize("seed", [0, None])
def test_each_worker_plays_episodes_of_its_own(seed):
    """Others than another worker's, and than those of the ``learn`` before."""
    model, played = model_of(n_workers=2, n_steps=8, synchronous=True, seed=seed), []

    def note(local, _):
        played.append((local["worker"], tuple(local["actions"].ravel()), local["infos"][0].get("episode", {}).get("l")))
        return True

    for i in range(2):
        model.learn(160, note, reset_num_timesteps=i == 0)
    runs = [[step[1:] for step in half if step[0] == w] for half in (played[:160], played[160:]) for w in (0, 1)]
    assert len({tuple(run) for run in runs}) == 4


# --- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("action_space", ACTIONS)
def test_spaces_of_every_kind(action_space, n_envs):
    space = spaces.Dict({"vector": VECTOR, "kind": spaces.Discrete(3)})

    def make():
        return RewardsAndLimits(deepcopy(space), deepcopy(ACTIONS[action_space]))

    model = model_of(make_vec_env(make, n_envs), policy="MultiInputPolicy", n_workers=2)
    before = vector_of(model)
    assert model.learn(40).num_timesteps == 40
    assert not th.equal(vector_of(model), before)


def test_gsde():
    model = model_of(AnySpaces(VECTOR, ACTIONS["box"]), use_sde=True, sde_sample_freq=2)
    before = model.policy.log_std.detach().clone()
    model.learn(40)
    assert not th.equal(model.policy.log_std, before)


def test_rollouts_end_with_episodes_unless_all_wait():
    for synchronous, lengths in ((False, [3, 2]), (True, [3, 3])):
        model, seen = model_of(AnySpaces(VECTOR, ACTIONS["discrete"]), n_steps=3, synchronous=synchronous), []

        class Lengths(BaseCallback):
            def _on_rollout_start(self, seen=seen):
                seen.append(0)

            def _on_step(self, seen=seen):
                seen[-1] += 1
                return True

        model.learn(20, Lengths())
        assert seen[:2] == lengths


@pytest.mark.parametrize("synchronous", [False, True])
def test_the_statistics_of_all_workers(synchronous):
    """Each observation that a worker has seen in its rollouts counts once; they are the main process's."""
    env = VecNormalize(DummyVecEnv([lambda: Scripted((4, 7))]), norm_reward=True)
    model = model_of(env, n_workers=2, synchronous=synchronous, n_steps=4)
    env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count = np.zeros(2), np.ones(2), 1e-4
    model.learn(200)
    assert env.obs_rms.count == pytest.approx(model.num_timesteps + 1 + 1e-4), "the reset of the model's own, and all"
    assert env.ret_rms.count == pytest.approx(model.num_timesteps + 1e-4)
    assert 1 < env.obs_rms.mean[1] < 4
    evaluated = VecNormalize(DummyVecEnv([lambda: Monitor(Scripted((4, 7)))]), training=False)
    model.learn(20, EvalCallback(evaluated, eval_freq=5, n_eval_episodes=1, verbose=0), reset_num_timesteps=False)
    assert evaluated.obs_rms.count > 200


def test_the_file_of_the_monitor(tmp_path):
    """All workers' episodes, in one file."""
    ended = []
    model = model_of(Monitor(gym.make("CartPole-v1"), str(tmp_path / "0")), n_workers=2)

    def note(local, _):
        ended.extend(info["episode"]["l"] for info in local["infos"] if "episode" in info)
        return True

    model.learn(300, note)
    assert sorted(load_results(str(tmp_path))["l"]) == sorted(ended)
    assert ended


# --- callbacks, files ------------------------------------------------------------------------------------------------


class FunctionCallback(BaseCallback):
    """Calls a function with the locals."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        self.function(self.locals)
        return True


def test_callbacks_evaluate_and_end_the_training(tmp_path):
    env = make_vec_env("CartPole-v1", 1)
    evaluation = EvalCallback(env, eval_freq=20, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    model, steps = model_of(n_workers=2), []
    ending = StopTrainingOnMaxEpisodes(5)
    model.learn(10**6, [evaluation, ending, FunctionCallback(lambda local: steps.append(local["dones"]))])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == list(range(20, ending.num_timesteps + 1, 20))
    assert np.sum(steps) == ending.n_episodes == 5
    assert ending.num_timesteps <= model.num_timesteps < ending.num_timesteps + 2 * 5
    assert model._updates.sum() == model._n_updates, "an update that was under way is not counted"
    assert model._workers is None
    model.learn(20)


def test_a_callback_sees_the_parameters_that_are_shared():
    """They move between two rollouts of one worker; and what a callback changes, the worker learns on with."""
    model, seen = model_of(AnySpaces(VECTOR, ACTIONS["discrete"]), n_steps=5), []

    def note(local, _):
        seen.append(vector_of(model))
        if len(seen) == 10:
            for p in model.policy.parameters():
                p.data.zero_()
        return True

    model.learn(20, note)
    assert th.equal(seen[0], seen[4])
    assert not th.equal(seen[4], seen[5])
    assert seen[10].abs().max() < 0.1 < seen[5].abs().max()


@pytest.mark.parametrize("optimizer", A3C.optimizers)
def test_saved_and_loaded_it_goes_on(tmp_path, optimizer):
    """With the parameters and the moments, which a worker goes on with."""
    model = model_of(optimizer=optimizer, n_workers=2).learn(100)
    model.save(tmp_path / "model")
    loaded = A3C.load(tmp_path / "model", env=gym.make("CartPole-v1"), device="cpu")
    assert type(loaded.policy.optimizer) is A3C.optimizers[optimizer]
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for one, other in zip(*(m.predict(observations, deterministic=True) for m in (model, loaded)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(evaluate_policy(loaded, make_vec_env("CartPole-v1", 1), 2)[0])

    def moments(of):
        states = of.policy.optimizer.state_dict()["state"].values()
        return th.cat([x.flatten() for state in states for x in state.values() if isinstance(x, th.Tensor)])

    before = moments(model).clone()
    assert th.equal(moments(loaded), before)
    loaded.n_steps = 1
    loaded.learn(1, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps + 1
    assert not th.equal(moments(loaded), before)
    th.testing.assert_close(moments(loaded), before, rtol=0.1, atol=1.1)


@pytest.mark.parametrize("optimizer", A3C.optimizers)
def test_a_training_is_resumed_with_new_episodes(tmp_path, optimizer):
    """From its parameters, moments, counters and statistics; rows of the Monitor's file stay."""
    env = Monitor(gym.make("CartPole-v1"), str(tmp_path / "0"))
    env = VecNormalize(DummyVecEnv([lambda: env]))
    model = model_of(env, optimizer=optimizer, n_workers=2)
    model.learn(200, CheckpointCallback(50, tmp_path / "checkpoints"))
    rows = load_results(str(tmp_path))
    resumed = resume(tmp_path / "checkpoints")
    assert th.equal(vector_of(resumed), vector_of(model))
    assert resumed.num_timesteps == model.num_timesteps
    assert resumed._n_updates == model._n_updates
    assert resumed.env.obs_rms.count == env.obs_rms.count
    states = [m.policy.optimizer.state_dict()["state"] for m in (resumed, model)]
    th.testing.assert_close(states[0], states[1], rtol=0, atol=0)

    resumed.learn(200, reset_num_timesteps=False)
    assert 400 <= resumed.num_timesteps < 420
    longer = load_results(str(tmp_path))
    assert len(longer) > len(rows) > 0
    assert {tuple(row) for row in rows[["r", "l"]].values} <= {tuple(row) for row in longer[["r", "l"]].values}


def test_frozen_parameters_stay():
    model = model_of(n_workers=2)
    frozen = next(model.policy.parameters()).requires_grad_(False)
    before = frozen.clone()
    model.learn(40)
    assert th.equal(frozen, before)


# --- errors ----------------------------------------------------------------------------------------------------------


class GoesWrong(AnySpaces):
    """In the third step of the second episode, or when a worker is told to go."""

    def __init__(self, how):
        super().__init__(VECTOR, ACTIONS["discrete"])
        self.how, self.episode = how, 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.episode += terminated
        if self.episode == 1 and self.t == 3:
            if self.how == "nan":
                reward = np.nan
            elif self.how == "error":
                raise OSError("the game is over")
            elif self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "unpicklable":
                info = {"lock": threading.Lock()}
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("nan", ValueError, r"worker \d: reward=nan of sub-environment 0 at vector step 2 of this rollout"),
        ("error", RuntimeError, r"worker \d: OSError: the game is over"),
        ("kill", RuntimeError, r"worker \d has ended with SIGKILL"),
        ("unpicklable", RuntimeError, r"worker \d: TypeError: cannot pickle '_thread.lock' object"),
    ],
)
def test_an_error_in_a_worker_ends_all(how, kind, message, synchronous):
    """It is named; the model is as good as before."""
    model = model_of(GoesWrong(how), n_workers=2, n_steps=5, synchronous=synchronous)
    of_others = set(multiprocessing.active_children())
    with pytest.raises(kind, match=message):
        model.learn(1000)
    assert model._workers is None
    assert set(multiprocessing.active_children()) <= of_others
    assert vector_of(model).isfinite().all()
    model.set_env(DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["discrete"])]))
    model.learn(20)


def test_a_gradient_that_is_not_finite_is_not_applied():
    model = model_of(vf_coef=1e38)
    before = vector_of(model)
    with pytest.raises(
        ValueError, match=r"worker 0: policy gradient norm=(inf|nan): allowed is a finite number \(update 1\)"
    ):
        model.learn(100)
    assert th.equal(vector_of(model), before)


def test_learning_within_learning_is_refused():
    model = model_of()
    with pytest.raises(RuntimeError, match=r"learn\(\) in a callback of the same model"):
        model.learn(20, lambda *_: model.learn(20))


LOCK = threading.Lock()


class Locked(AnySpaces):
    """Cannot be sent."""

    def __init__(self):
        super().__init__(VECTOR, ACTIONS["discrete"])
        self.lock = LOCK


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_workers": 0}, r"n_workers=0: allowed is a whole number >= 1"),
        ({"n_workers": True}, r"n_workers=True"),
        ({"optimizer": "sgd"}, r"optimizer='sgd': allowed is one of 'rmsprop', 'adam'"),
        ({"synchronous": 1}, r"synchronous=1: allowed is True or False"),
        ({"n_steps": 0}, r"n_steps=0"),
        ({"gamma": 2}, r"gamma=2"),
        ({"vf_coef": np.nan}, r"vf_coef=nan"),
        ({"rms_prop_eps": 0.0}, r"rms_prop_eps=0.0"),
        ({"rms_prop_eps": 0.1, "optimizer": "adam"}, r"rms_prop_eps=0.1: allowed is 1e-05 .* with optimizer='adam'"),
        ({"device": "meta"}, r"device=meta|device='meta'"),
        ({"policy_kwargs": {"optimizer_class": th.optim.SGD}}, r"policy_kwargs: optimizer_class=.*`optimizer` chooses"),
        (
            {"learning_rate": lambda p, lock=LOCK: p},
            r"learning_rate=.*allowed is what can be sent to another",
        ),
        ({"env": Locked()}, r"env=.*allowed is what can be sent to another process. TypeError: cannot pickle '_thread"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_environments_in_processes_of_their_own_cannot_be_sent():
    env = SubprocVecEnv([lambda: gym.make("CartPole-v1")], start_method="fork")
    with pytest.raises(ValueError, match=r"^env=<.*SubprocVecEnv.*allowed is what can be sent to another process"):
        model_of(env)
    env.close()


def test_policies_with_buffers_are_refused():
    class WithBatchNorm(ActorCriticPolicy):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.norm = th.nn.BatchNorm1d(3)

    with pytest.raises(
        ValueError, match=r"policy='WithBatchNorm with norm.running_mean.*allowed is one without buffers"
    ):
        model_of(policy=WithBatchNorm)


SCRIPT = """
import gymnasium as gym
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from sb3_pgext import A3C, CheckpointCallback, resume
from sb3_pgext.algorithms.a3c import _Order
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm

class Own(ActorCriticPolicy):
    pass

class Shaped(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

if __name__ == "__main__":
    env = Shaped(gym.make("CartPole-v1"))
    model = A3C(Own, env, n_workers=2, learning_rate=lambda progress: 1e-3 * progress, seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(100)
    moved = any(not th.equal(p, old) for p, old in zip(model.policy.parameters(), before))
    print(model.num_timesteps >= 100, moved, model._updates.min().item() > 0)
"""


def test_spawned_workers_know_the_classes_of_a_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.stdout.split() == ["True", "True", "True"], finished.stderr
