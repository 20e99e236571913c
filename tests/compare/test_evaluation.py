"""Claim: every algorithm is evaluated at the same step counts, on exactly the episodes asked for, off the clock."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pgext import REINFORCE
from sb3_pgext.compare import evaluation
from sb3_pgext.compare.evaluation import EvaluateAtTimesteps, due_timesteps
from sb3_pgext.compare.study import Evaluation
from tests.environments import NeverEnding


class _Countdown(gym.Env):
    """Ends after as many steps as its seed says, each worth 1; the return of an episode is its length."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 10))
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self._left -= 1
        return np.zeros(2, dtype=np.float32), 1.0, self._left == 0, False, {}


def _evaluated(model, env: VecEnv, due: list[int], episodes: int = 3) -> EvaluateAtTimesteps:
    callback = EvaluateAtTimesteps(env, Evaluation(1, episodes), due, lambda *progress: None)
    model.learn(due[-1], callback=callback)
    return callback


def test_due_at_zero_at_each_multiple_and_at_the_end() -> None:
    assert due_timesteps(5, 20) == [0, 5, 10, 15, 20]
    assert due_timesteps(5, 18) == [0, 5, 10, 15, 18]
    assert due_timesteps(50, 18) == [0, 18]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(REINFORCE, {"n_episodes": 6}), (PPO, {"n_steps": 64, "batch_size": 64, "n_epochs": 1})],
)
def test_each_due_count_is_evaluated_at_the_first_step_that_reaches_it(algorithm, arguments) -> None:
    model = algorithm("MlpPolicy", make_vec_env(_Countdown, 3, seed=0), device="cpu", **arguments)
    callback = _evaluated(model, make_vec_env(_Countdown, 2, seed=1), [0, 100, 200, 250])
    assert [m.timesteps for m in callback.measurements] == [0, 100, 200, 250]
    for measured in callback.measurements:
        assert measured.timesteps <= measured.true_timesteps < measured.timesteps + 3
    assert model.num_timesteps == callback.measurements[-1].true_timesteps, "it learnt from more steps than its budget"
    assert callback.complete


def test_counts_passed_in_one_vector_step_share_an_evaluation() -> None:
    model = PPO("MlpPolicy", make_vec_env(_Countdown, 8, seed=0), n_steps=8, batch_size=64, device="cpu")
    first, second, third = _evaluated(model, make_vec_env(_Countdown, 2, seed=1), [0, 2, 4]).measurements
    assert (second.timesteps, third.timesteps) == (2, 4)
    assert second.true_timesteps == third.true_timesteps == 8
    assert second.mean_return == third.mean_return
    assert first.true_timesteps == 0


@pytest.mark.parametrize("episodes", [1, 4, 5])
def test_the_mean_is_over_exactly_the_episodes_asked_for(episodes: int) -> None:
    env = make_vec_env(_Countdown, 2, seed=11)
    model = PPO("MlpPolicy", make_vec_env(_Countdown, 1, seed=0), n_steps=8, batch_size=8, device="cpu")
    (measured, _) = _evaluated(model, env, [0, 8], episodes).measurements
    # By hand: the second of two sub-environments plays the odd episode.
    lengths = []
    for rank, share in ((0, episodes // 2), (1, (episodes + 1) // 2)):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(11 + rank)))
        lengths += [int(rng.integers(1, 10)) for _ in range(share)]
    assert measured.episodes == episodes
    assert measured.mean_return == pytest.approx(np.mean(lengths))
    assert measured.std_return == pytest.approx(np.std(lengths))


def test_an_episode_without_end_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "MAX_STEPS_WITHOUT_END", 100)
    model = PPO("MlpPolicy", make_vec_env(NeverEnding, 1), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(RuntimeError, match="An episode of the evaluation is longer than 100 steps"):
        _evaluated(model, make_vec_env(NeverEnding, 2), [0, 8])


def test_evaluation_is_not_on_the_training_clock(monkeypatch) -> None:
    clock = itertools.count()  # A second passes with each look at the clock,

    def slow_evaluation(*args, **kwargs):
        for _ in range(1000):  # and a thousand with each evaluation.
            next(clock)
        return [1.0], [1]

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(evaluation, "evaluate_policy", slow_evaluation)
    model = PPO("MlpPolicy", make_vec_env(_Countdown, 1, seed=0), n_steps=8, batch_size=8, device="cpu")
    measured = _evaluated(model, make_vec_env(_Countdown, 1, seed=1), [0, 8, 16, 24]).measurements
    seconds = [m.training_seconds for m in measured]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 20


def test_the_evaluation_environment_normalises_as_the_training_environment_does() -> None:
    training = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1), training=False, norm_reward=False)
    model = PPO("MlpPolicy", training, n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    _evaluated(model, env, [0, 64], episodes=2)
    assert (env.obs_rms.mean == training.obs_rms.mean).all()
    assert (env.obs_rms.mean != 0).any()


def test_progress_is_reported_with_the_steps_taken_and_the_evaluations_made() -> None:
    reported: list[tuple[int, int]] = []
    model = PPO("MlpPolicy", make_vec_env(_Countdown, 2, seed=0), n_steps=8, batch_size=16, device="cpu")
    callback = EvaluateAtTimesteps(
        make_vec_env(_Countdown, 1, seed=1), Evaluation(1, 1), [0, 6], lambda *p: reported.append(p)
    )
    model.learn(6, callback=callback)
    assert reported == [(2, 1), (4, 1), (6, 2)]
