"""Claim: a training with a replay buffer and several optimizers resumes to the bit too, from each of its updates."""

import numpy as np
import pytest
import stable_baselines3 as sb3
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pgext import CheckpointCallback, DiscreteSAC, OffPolicyActorCritic, load, resume, save
from sb3_pgext.checkpoints import files
from tests.checkpoints.models import assert_same
from tests.checkpoints.test_resume import disturb
from tests.environments import ACTIONS, VECTOR, AnySpaces, RewardsAndLimits
from tests.toy_off_policy import ToyOffPolicy

TOTAL = 80
OFF_POLICY = {"buffer_size": 200, "learning_starts": 20, "batch_size": 8}
ZERO, SOME = np.zeros(1), np.full(1, 0.3)


def pendulum(n_envs=1, limit=15, normalize=False):
    env = make_vec_env("Pendulum-v1", n_envs, seed=3, env_kwargs={"max_episode_steps": limit})
    return VecNormalize(env) if normalize else env


def several_parts(action="box"):
    space = spaces.Dict(vector=VECTOR, kind=spaces.Discrete(3))
    return DummyVecEnv([lambda: AnySpaces(space, ACTIONS[action])] * 2)


def on_actions(action, n_envs=1):
    return DummyVecEnv([lambda: RewardsAndLimits(VECTOR, ACTIONS[action])] * n_envs)


MODELS = {
    "steps": lambda: (ToyOffPolicy, pendulum(), {"train_freq": 7, "gradient_steps": 2}),
    "episodes, temporally correlated noise": lambda: (
        ToyOffPolicy,
        pendulum(),
        {"train_freq": (1, "episode"), "gradient_steps": -1, "action_noise": OrnsteinUhlenbeckActionNoise(ZERO, SOME)},
    ),
    "two environments, noise": lambda: (
        ToyOffPolicy,
        pendulum(2),
        {"train_freq": 4, "action_noise": OrnsteinUhlenbeckActionNoise(ZERO, SOME)},
    ),
    "two environments, full, normalised": lambda: (
        ToyOffPolicy,
        pendulum(2, normalize=True),
        {"train_freq": 4, "buffer_size": 30, "action_noise": NormalActionNoise(ZERO, SOME)},
    ),
    "little memory": lambda: (
        ToyOffPolicy,
        pendulum(),
        {
            "train_freq": 5,
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        },
    ),
    "little memory, full": lambda: (
        ToyOffPolicy,
        pendulum(2),
        {
            "train_freq": 5,
            "buffer_size": 30,
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        },
    ),
    "dict observations": lambda: (ToyOffPolicy, several_parts(), {"policy": "MultiInputPolicy", "train_freq": 5}),
    "SAC": lambda: (sb3.SAC, pendulum(), {"train_freq": 5}),
    "SAC, several steps": lambda: (sb3.SAC, pendulum(2), {"train_freq": 5, "n_steps": 3, "ent_coef": 0.1}),
    "TD3": lambda: (sb3.TD3, pendulum(), {"train_freq": 5}),
    "DQN": lambda: (
        sb3.DQN,
        make_vec_env("CartPole-v1", 1, seed=3),
        {"train_freq": 5, "target_update_interval": 10, "exploration_fraction": 0.5},
    ),
    "hindsight": lambda: (
        sb3.SAC,
        DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)]),
        {"policy": "MultiInputPolicy", "train_freq": 5, "replay_buffer_class": sb3.HerReplayBuffer},
    ),
    "OPAC": lambda: (OffPolicyActorCritic, pendulum(), {"train_freq": 5}),
    "OPAC, fixed, several steps, normalised": lambda: (
        OffPolicyActorCritic,
        pendulum(2, normalize=True),
        {"train_freq": 5, "n_steps": 3, "ent_coef": 0.1, "action_noise": NormalActionNoise(ZERO, SOME)},
    ),
    "OPAC, gSDE": lambda: (
        OffPolicyActorCritic,
        pendulum(),
        {"train_freq": 5, "use_sde": True, "sde_sample_freq": 3, "target_entropy": -0.5},
    ),
    "OPAC, episodes, hindsight": lambda: (
        OffPolicyActorCritic,
        DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)]),
        {
            **{"policy": "MultiInputPolicy", "train_freq": (1, "episode"), "gradient_steps": -1},
            "replay_buffer_class": sb3.HerReplayBuffer,
        },
    ),
    "OPAC, sampled": lambda: (
        OffPolicyActorCritic,
        on_actions("box"),
        {"train_freq": 5, "gradient": "sampled", "n_action_samples": 2, "weight_clip": 2.0},
    ),
    "OPAC, sampled, several steps, full": lambda: (
        OffPolicyActorCritic,
        on_actions("multi_discrete", 2),
        {"train_freq": 5, "gradient": "sampled", "n_steps": 3, "buffer_size": 30},
    ),
    "OPAC, sampled, dict": lambda: (
        OffPolicyActorCritic,
        several_parts("discrete"),
        {"policy": "MultiInputPolicy", "train_freq": 5, "gradient": "sampled"},
    ),
    "DiscreteSAC": lambda: (DiscreteSAC, on_actions("discrete"), {"train_freq": 5}),
    "DiscreteSAC, little memory": lambda: (
        DiscreteSAC,
        on_actions("multi_binary", 2),
        {
            **{"train_freq": 4, "gradient_steps": 2, "ent_coef": "auto_0.1", "target_entropy": 1.0, "buffer_size": 30},
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        },
    ),
}


def made(name):
    algorithm, env, arguments = MODELS[name]()
    arguments = {"policy": "MlpPolicy", "learning_rate": LinearSchedule(3e-3, 1e-3, 1.0), **OFF_POLICY, **arguments}
    arguments["policy_kwargs"] = {"net_arch": [8]}  # SB3 adds to it
    return algorithm(env=env, seed=1, device="cpu", **arguments)


@pytest.mark.parametrize("name", MODELS)
def test_each_replay_from_each_update(name, tmp_path):
    model = made(name)
    model.learn(TOTAL, callback=CheckpointCallback(1, tmp_path, keep=100))
    assert model._n_updates > 5
    checkpoints = files.found(tmp_path)[1:]
    assert len(checkpoints) >= 5
    assert files.num_timesteps_at(checkpoints[-1]) == 0
    for checkpoint in checkpoints:
        disturb()
        other = resume(checkpoint)
        assert_same(model, other.learn(TOTAL - other.num_timesteps, reset_num_timesteps=False))


def test_sb3s_own_algorithms_on_policy(tmp_path):
    model = sb3.PPO("MlpPolicy", pendulum(2), n_steps=16, batch_size=16, seed=0, device="cpu")
    model.learn(200, callback=CheckpointCallback(1, tmp_path, keep=100))
    other = resume(files.found(tmp_path)[3])
    assert_same(model, other.learn(200 - other.num_timesteps, reset_num_timesteps=False))


@pytest.mark.parametrize(
    "name",
    [
        "SAC",
        "DQN",
        *(name for name in MODELS if "OPAC" in name or "DiscreteSAC" in name),
        "two environments, full, normalised",
        "episodes, temporally correlated noise",
    ],
)
def test_only_classes_of_ones_own_are_pickled(name, tmp_path):
    model = made(name).learn(TOTAL)
    save(model, tmp_path / "model")
    if isinstance(model, ToyOffPolicy):
        with pytest.raises(ValueError, match=r"algorithm \(tests.toy_off_policy.ToyOffPolicy\) is pickled"):
            load(tmp_path / "model")
        assert_same(model, resume(tmp_path / "model"))
    elif "hindsight" not in name:
        assert not (tmp_path / "model" / files.CUSTOM).exists()
        other = load(tmp_path / "model")
        assert other.replay_buffer.size() == model.replay_buffer.size()
        assert getattr(other, "target_entropy", None) == getattr(model, "target_entropy", None)


def test_only_the_filled_part_of_the_replay_is_written(tmp_path):
    small, large = (ToyOffPolicy("MlpPolicy", pendulum(), buffer_size=size, seed=0).learn(60) for size in (100, 10**6))
    save(small, tmp_path / "small")
    save(large, tmp_path / "large")
    sizes = [(tmp_path / name / files.TENSORS).stat().st_size for name in ("small", "large")]
    assert abs(sizes[1] - sizes[0]) < 100
    assert resume(tmp_path / "large").replay_buffer.buffer_size == 10**6


def test_a_log_coefficient_that_is_not_finite_is_not_saved(tmp_path):
    model = made("SAC")
    model.log_ent_coef.data.fill_(np.nan)
    with pytest.raises(ValueError, match="parameter log_ent_coef is NaN or infinite"):
        save(model, tmp_path / "model")


def test_a_replay_of_another_number_of_environments_is_left_out(tmp_path):
    save(made("SAC").learn(TOTAL), tmp_path / "model")
    with pytest.warns(UserWarning, match="the replay buffer starts empty: it has n_envs=1, env has 2"):
        other = load(tmp_path / "model", env=pendulum(2))
    assert other.replay_buffer.size() == 0
    other.learn(30)


def test_noise_is_reset_at_the_next_episode_all_the_same(tmp_path):
    noise = OrnsteinUhlenbeckActionNoise(ZERO, SOME)
    model = ToyOffPolicy("MlpPolicy", pendulum(), seed=0, action_noise=noise).learn(40)
    save(model, tmp_path / "model")
    restored = resume(tmp_path / "model").action_noise
    before = restored.noise_prev
    assert before != 0
    restored.reset()
    assert restored.noise_prev == before, "as learn() does"
    restored.reset()
    assert restored.noise_prev == 0


def test_gsde_of_sb3_is_warned_of(tmp_path):
    model = sb3.SAC("MlpPolicy", pendulum(), use_sde=True, device="cpu", **OFF_POLICY)
    with pytest.warns(UserWarning, match="will draw other noise than the uninterrupted one: SAC draws that of gSDE"):
        model.learn(5, callback=CheckpointCallback(100, tmp_path))
