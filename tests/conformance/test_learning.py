"""Claim: ``learn`` counts, logs, seeds and calls back as that of SB3's algorithms does."""

from typing import ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_pgext import REINFORCE, VPG
from sb3_pgext.algorithms.episodic import EpisodicAlgorithm
from tests.conformance.models import (
    UPDATE,
    each_of_ours,
    every_algorithm,
    every_learner,
    every_player,
    in_turn,
    make_env,
    sampled,
    small,
    vector_of,
)
from tests.environments import ACTIONS, VECTOR, AnySpaces

SMALL_DICT = spaces.Dict({"vector": VECTOR, "kind": spaces.Discrete(3)})

# --- counting --------------------------------------------------------------------------------------------------------


@every_learner
@pytest.mark.parametrize(("total", "expected"), [(0, 0), (1, 1), (UPDATE, 1), (UPDATE + 1, 2)])
def test_the_number_of_steps_is_a_lower_bound(algorithm, total, expected):
    model = small(algorithm)
    before = vector_of(model)
    assert model.learn(total) is model
    assert model.num_timesteps == expected * UPDATE
    assert th.equal(vector_of(model), before) == (expected == 0)


@every_learner
@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_steps_are_counted_on_or_anew(algorithm, reset_num_timesteps):
    """With them the statistics of episodes, and the schedule of the learning rate."""
    seen = []
    model = small(algorithm, learning_rate=lambda progress: seen.append(progress) or 1e-3 * progress)
    assert model.learn(2 * UPDATE).num_timesteps == 2 * UPDATE

    class ForgetTheChecks(BaseCallback):
        def _on_training_start(self):
            seen.clear()

        def _on_step(self):
            return True

    model.learn(2 * UPDATE, ForgetTheChecks(), reset_num_timesteps=reset_num_timesteps)
    rounds = 1 if reset_num_timesteps else 2
    assert model.num_timesteps == rounds * 2 * UPDATE
    assert len(model.ep_info_buffer) == rounds * 2 * UPDATE // 5
    assert model._total_timesteps == rounds * 2 * UPDATE
    assert list(dict.fromkeys(seen)) == ([0.5, 0.0] if reset_num_timesteps else [0.25, 0.0])


@every_learner
def test_the_learning_rate_follows_its_schedule(algorithm):
    seen, rate = [], {}
    model = small(algorithm, learning_rate=lambda progress: seen.append(progress) or 0.1 * progress)

    def note(local, _):
        rate[model.num_timesteps] = model.policy.optimizer.param_groups[0]["lr"]
        return True

    model.learn(4 * UPDATE, note)
    assert list(dict.fromkeys(seen)) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rate[UPDATE] == pytest.approx(0.1)
    assert rate[2 * UPDATE] == pytest.approx(0.075)
    assert rate[4 * UPDATE] == pytest.approx(0.025)


# --- seeds -----------------------------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize(("actions", "how"), [("discrete", "set_random_seed"), ("box", "seed")])
def test_a_seed_fixes_the_run_to_the_bit(algorithm, actions, how):
    """Given at construction or, to a model of the same numbers, afterwards; another seed is another run."""

    def run(seed):
        model = small(algorithm, make_env(action_space=ACTIONS[actions]), seed=seed if how == "seed" else 0)
        if how == "set_random_seed":
            np.random.rand()  # noqa: NPY002
            th.rand(3)
            model.set_random_seed(seed)
        model.learn(2 * UPDATE)
        drawn = model.predict(sampled(VECTOR, 30))[0]
        return vector_of(model), drawn, model.action_space.sample(), model._last_obs

    first, again, other = run(3), run(3), run(4)
    for ours, same, different in zip(first, again, other, strict=True):
        assert np.array_equal(ours, same)
        assert not np.array_equal(ours, different) or np.ndim(ours) == 0


@each_of_ours
def test_a_seed_starts_the_episodes_of_sb3(algorithm):
    """The same networks act in the same episodes: observations, actions and rewards of the first rollout are A2C's."""

    def played(cls):
        steps = []

        def note(local, _):
            steps.append([np.copy(local[name]).ravel() for name in ("actions", "new_obs", "rewards", "dones")])
            return len(steps) < 10

        small(cls, make_env(action_space=ACTIONS["box"]), seed=7).learn(UPDATE, note)
        return np.array([np.concatenate(step) for step in steps])

    np.testing.assert_array_equal(played(algorithm), played(A2C))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("algorithm", [VPG, REINFORCE])
def test_sub_environments_in_other_processes(algorithm):
    """The run is the same to the bit, with either collector."""
    here = make_env(SMALL_DICT, ACTIONS["box"])
    there = make_env(SMALL_DICT, ACTIONS["box"], vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    assert there.env_is_wrapped(Monitor) == [True, True]
    found, expected = (vector_of(small(algorithm, env, "MultiInputPolicy").learn(2 * UPDATE)) for env in (there, here))
    there.close()
    assert th.equal(found, expected)


# --- logs ------------------------------------------------------------------------------------------------------------


class Kept(KVWriter):
    """What was logged."""

    def __init__(self):
        self.dumped = []

    def write(self, key_values, key_excluded, step=0):
        self.dumped.append({**key_values, "step": step})

    def close(self):
        pass


def logged(model, total, log_interval=1):
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(total, log_interval=log_interval)
    return kept.dumped


@in_turn("log_interval, steps", [(1, [1, 2, 3]), (2, [2]), (4, []), (None, [])])
def test_logs_at_intervals(algorithm, log_interval, steps):
    dumped = logged(small(algorithm), 3 * UPDATE, log_interval=log_interval)
    assert [log["step"] for log in dumped] == [UPDATE * step for step in steps]
    assert [log["time/iterations"] for log in dumped] == steps
    assert [log["time/total_timesteps"] for log in dumped] == [UPDATE * step for step in steps]


@each_of_ours
def test_logs_have_the_keys_of_sb3(algorithm):
    """All that A2C logs of time, episodes and environments; of training what is the same everywhere."""
    env = make_env(action_space=ACTIONS["box"])
    ours, theirs = (set(logged(small(cls, env), 3 * UPDATE)[-1]) for cls in (algorithm, A2C))
    names_of_its_own = {"train/policy_loss"}  # VPG, NPG and PPO have policy_gradient_loss
    assert theirs - names_of_its_own <= ours
    assert "train/value_loss" in theirs
    assert {key.partition("/")[0] for key in ours} == {"time", "rollout", "train", "step"}


class Succeeds(AnySpaces):
    """Every second time."""

    def __init__(self):
        super().__init__(VECTOR, ACTIONS["discrete"])
        self.episode = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.episode += terminated
        return observation, reward, terminated, truncated, {**info, "is_success": self.episode % 2 == 1}


@every_learner
def test_episodes_are_logged(algorithm):
    """Their mean return and length as the Monitor counts them, and how many have succeeded when they ended."""
    model = small(algorithm, make_vec_env(Succeeds, 2))
    for log in logged(model, 3 * UPDATE):
        assert log["rollout/ep_rew_mean"] == log["rollout/ep_len_mean"] == 5
        assert log["rollout/success_rate"] == 0.5
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer) == 3 * UPDATE // 5


@every_learner
def test_the_window_of_the_statistics(algorithm):
    model = small(algorithm, stats_window_size=3)
    dumped = logged(model, 2 * UPDATE)
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == 3
    assert len(model.ep_info_buffer) == 3
    assert dumped[-1]["rollout/ep_rew_mean"] == pytest.approx(np.mean([info["r"] for info in model.ep_info_buffer]))


@every_learner
def test_a_logger_of_the_users_own(algorithm, tmp_path):
    """It takes the place of TensorBoard's, in every training."""
    model = small(algorithm, tensorboard_log=str(tmp_path))
    kept = Kept()
    logger = Logger(None, [kept])
    model.set_logger(logger)
    model.learn(UPDATE, log_interval=1).learn(UPDATE, log_interval=1)
    assert model.logger is logger
    assert len(kept.dumped) == 2
    assert list(tmp_path.iterdir()) == []


@every_learner
def test_folders_of_tensorboard(algorithm, tmp_path):
    """The algorithm's name or the given one, and a number that goes up when the steps are counted anew."""
    model = small(algorithm, tensorboard_log=str(tmp_path))
    for arguments in ({}, {"reset_num_timesteps": False}, {}, {"tb_log_name": "own"}):
        model.learn(UPDATE, **arguments)
    name = algorithm.__name__
    folders = {path.name: len(list(path.glob("events.out.tfevents.*"))) for path in tmp_path.iterdir()}
    assert folders == {f"{name}_1": 2, f"{name}_2": 1, "own_1": 1}
    model.logger.close()


@each_of_ours
def test_what_is_printed(algorithm, capsys):
    """What A2C prints of device and wrappers, then the table of the log; without ``verbose`` nothing."""

    def printed(cls, verbose):
        model = small(cls, AnySpaces(VECTOR, ACTIONS["discrete"]), verbose=verbose)
        of_construction = capsys.readouterr().out
        model.learn(1, log_interval=1)
        return of_construction, capsys.readouterr().out

    assert printed(algorithm, 0) == ("", "")
    (of_construction, of_training), (expected, _) = printed(algorithm, 1), printed(A2C, 1)
    assert of_construction == expected != ""
    assert "| rollout/ " in of_training
    assert "ep_rew_mean" in of_training


# --- callbacks -------------------------------------------------------------------------------------------------------


class Recorder(BaseCallback):
    """What it is told, with the names and shapes that it sees."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.calls, self.seen = stop_after, [], {}

    def _note(self, event):
        self.calls.append((event, self.model.num_timesteps, self.n_calls))
        self.seen.setdefault(event, {name: np.shape(value) for name, value in self.locals.items() if name in SHAPED})
        self.seen.setdefault(f"names at {event}", set(self.locals))
        self.seen.setdefault(f"recorded at {event}", [self.locals.get("n_steps"), self.model.rollout_buffer.size()])

    def _init_callback(self):
        self.calls.append("init")
        assert self.training_env is self.model.get_env()

    def _on_training_start(self):
        self._note("training start")

    def _on_rollout_start(self):
        self._note("rollout start")

    def _on_step(self):
        self._note("step")
        assert self.num_timesteps == self.model.num_timesteps
        return self.n_calls != self.stop_after

    def _on_rollout_end(self):
        self._note("rollout end")

    def _on_training_end(self):
        self._note("training end")


SHAPED = ("actions", "clipped_actions", "values", "log_probs", "new_obs", "rewards", "dones", "infos")


@each_of_ours
@pytest.mark.parametrize(
    ("stop_after", "actions"), [(None, "discrete"), (1, "box_2d"), (10, "discrete"), (13, "box_2d")]
)
def test_callbacks_are_told_what_sb3_tells_them(algorithm, actions, stop_after):
    """
    The same events at the same steps, with all names that SB3's have in ``locals``, and the same shapes; but
    algorithms that learn from whole episodes compute values and log-probabilities later, and have None there.
    """
    ours, theirs = Recorder(stop_after), Recorder(stop_after)
    for cls, recorder in ((algorithm, ours), (A2C, theirs)):
        small(cls, make_env(action_space=ACTIONS[actions])).learn(2 * UPDATE, recorder)
    assert ours.calls == theirs.calls
    later = {"values": (), "log_probs": ()} if issubclass(algorithm, EpisodicAlgorithm) else {}
    assert ours.seen["step"] == theirs.seen["step"] | later
    assert ours.seen["step"].keys() == set(SHAPED)
    assert theirs.seen["names at training start"] <= ours.seen["names at training start"]
    assert theirs.seen["names at step"] <= ours.seen["names at step"]
    for event in ("step", "rollout end"):
        assert ours.seen.get(f"recorded at {event}") == theirs.seen.get(f"recorded at {event}")


@every_player
def test_a_callback_that_ends_the_training(algorithm):
    """At once, without an update; the next training goes on."""
    model = small(algorithm)
    before = vector_of(model)
    model.learn(3 * UPDATE, lambda local, _: False)
    assert model.num_timesteps == 2
    assert th.equal(vector_of(model), before)
    model.learn(UPDATE, reset_num_timesteps=False)
    assert model.num_timesteps == 2 + UPDATE
    assert not th.equal(vector_of(model), before)


@in_turn("form", ["function", "callback", "list", "CallbackList", "nested"])
def test_callbacks_of_every_form(algorithm, form):
    calls = []

    def function(local, of_module):
        calls.append(local["self"])
        assert "__name__" in of_module
        return True

    callback = Recorder()
    given = {
        "function": function,
        "callback": callback,
        "list": [callback, Recorder()],
        "CallbackList": CallbackList([callback, Recorder()]),
        "nested": [CallbackList([Recorder(), callback])],
    }[form]
    model = small(algorithm).learn(UPDATE, given)
    assert (calls if form == "function" else callback.calls) != []
    assert calls == ([model] * 10 if form == "function" else [])
    assert callback.n_calls == (0 if form == "function" else 10)


@every_algorithm
def test_every_n_steps(algorithm):
    recorder = Recorder()
    small(algorithm).learn(2 * UPDATE, EveryNTimesteps(8, recorder))
    assert [n for event, n, _ in recorder.calls[1:] if event == "step"] == [8, 16, 24, 32, 40]


@every_learner
def test_checkpoints(algorithm, tmp_path):
    """Files that hold the model as it was at these steps."""
    env = VecNormalize(make_env())
    model = small(algorithm, env)
    before = vector_of(model)
    model.learn(2 * UPDATE, CheckpointCallback(7, str(tmp_path), "own", save_vecnormalize=True))
    assert {path.name for path in tmp_path.iterdir()} == {
        "own_14_steps.zip", "own_28_steps.zip", "own_vecnormalize_14_steps.pkl", "own_vecnormalize_28_steps.pkl"
    }  # fmt: skip
    first, second = (algorithm.load(tmp_path / f"own_{n}_steps", device="cpu") for n in (14, 28))
    assert (first.num_timesteps, second.num_timesteps) == (14, 28)
    assert th.equal(vector_of(first), before)
    assert not th.equal(vector_of(second), before)
    assert VecNormalize.load(str(tmp_path / "own_vecnormalize_28_steps.pkl"), make_env()).obs_rms.count > 28


@each_of_ours
def test_evaluations(algorithm, tmp_path):
    """Every few steps, in an environment of their own; the training is as it would be without."""
    expected = vector_of(small(algorithm).learn(2 * UPDATE))
    model, kept = small(algorithm), Kept()
    model.set_logger(Logger(None, [kept]))
    best, after = Recorder(), Recorder()
    folders = {"log_path": str(tmp_path), "best_model_save_path": str(tmp_path)}
    callback = EvalCallback(make_env(n_envs=2, seed=1), best, after, n_eval_episodes=4, eval_freq=6, **folders)
    model.learn(2 * UPDATE, callback)
    assert th.equal(vector_of(model), expected)

    saved = np.load(tmp_path / "evaluations.npz")
    assert saved["timesteps"].tolist() == [12, 24, 36]
    assert saved["ep_lengths"].tolist() == [[5] * 4] * 3
    means = saved["results"].mean(axis=1).tolist()
    assert all(15 <= mean <= 25 for mean in means)
    records = [log for log in kept.dumped if "eval/mean_reward" in log]
    assert [(log["step"], log["eval/mean_reward"]) for log in records] == list(zip((12, 24, 36), means, strict=True))
    assert callback.best_mean_reward == max(means)
    step_of_best = saved["timesteps"][np.argmax(means)]
    assert algorithm.load(tmp_path / "best_model", device="cpu").num_timesteps == step_of_best
    n_best = sum(mean > max([-np.inf, *means[:i]]) for i, mean in enumerate(means))
    assert sum(event == "step" for event, *_ in best.calls[1:]) == n_best
    assert sum(event == "step" for event, *_ in after.calls[1:]) == 3


@every_player
def test_evaluations_are_normalized_as_the_training_is(algorithm):
    """At each one the statistics are those of the training then."""
    env = VecNormalize(make_env())
    evaluated = VecNormalize(make_env(n_envs=1), training=False, norm_reward=False)
    means = []

    class Compare(BaseCallback):
        def _on_step(self):
            means.append(evaluated.obs_rms.mean.copy())
            assert evaluated.obs_rms is not env.obs_rms
            return np.array_equal(evaluated.obs_rms.mean, env.obs_rms.mean)

    model = small(algorithm, env)
    model.learn(2 * UPDATE, EvalCallback(evaluated, callback_after_eval=Compare(), eval_freq=5, n_eval_episodes=1))
    assert model.num_timesteps == 2 * UPDATE, "they were the same each time"
    assert len({tuple(mean) for mean in means}) == 4


def evaluation_of(callback_after_eval=None, callback_on_new_best=None):
    """Every 6 steps; the return is always 5."""
    env = DummyVecEnv([lambda: Monitor(AnySpaces(VECTOR, ACTIONS["discrete"]))])
    return EvalCallback(env, callback_on_new_best, callback_after_eval, n_eval_episodes=1, eval_freq=6, verbose=0)


STOPPING = {
    "a function": (lambda: lambda local, _: local["self"].num_timesteps < 13, 14),
    "max_episodes": (lambda: StopTrainingOnMaxEpisodes(3), 30),
    "max_episodes of one more": (lambda: StopTrainingOnMaxEpisodes(4), 40),
    "reward_threshold": (lambda: evaluation_of(None, StopTrainingOnRewardThreshold(5.0)), 12),
    "reward_threshold out of reach": (lambda: evaluation_of(None, StopTrainingOnRewardThreshold(5.1)), 60),
    "no improvement": (lambda: evaluation_of(StopTrainingOnNoModelImprovement(1, min_evals=0)), 36),
    "a list": (lambda: [StopTrainingOnMaxEpisodes(4), StopTrainingOnMaxEpisodes(3)], 30),
    "every 16 steps": (lambda: EveryNTimesteps(16, StopTrainingOnMaxEpisodes(0)), 16),
}


@in_turn("case", STOPPING)
def test_what_ends_the_training(algorithm, case):
    callback, expected = STOPPING[case]
    assert small(algorithm).learn(3 * UPDATE, callback()).num_timesteps == expected


class Bar:
    """Stands for tqdm's."""

    made: ClassVar[list] = []

    def __init__(self, total):
        self.total, self.n, self.closed = total, 0, False
        self.made.append(self)

    def update(self, n):
        self.n += n

    def refresh(self):
        pass

    def close(self):
        self.closed = True


@in_turn("how", ["argument", "callback"])
def test_progress_bar(algorithm, how, monkeypatch):
    """Of the steps that this training is to take."""
    monkeypatch.setattr(sb3_callbacks, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    model, recorder = small(algorithm), Recorder()
    for _ in range(2):
        given = {"argument": {"progress_bar": True, "callback": recorder}, "callback": {"callback": [recorder, bar()]}}
        model.learn(UPDATE + 10, reset_num_timesteps=False, **given[how])
    assert [(bar.total, bar.n, bar.closed) for bar in Bar.made] == [(UPDATE + 10, 2 * UPDATE, True)] * 2
    assert recorder.n_calls == 40


def bar():
    return sb3_callbacks.ProgressBarCallback()
