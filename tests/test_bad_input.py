"""A wrong argument, configuration or study is refused at once, by a ValueError that names it; a right one works."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, Phase, given, settings
from stable_baselines3.common.utils import ConstantSchedule

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from tests.inputs import OUTCOMES

FAMILY = (REINFORCE, VPG, NPG, ClippedCriticPPO, ISPG)


@pytest.mark.parametrize(("kind", "n_examples"), [("constructor", 200), ("configuration", 200), ("study", 100)])
def test_any_input_is_refused_by_name_or_works(kind, n_examples):
    """``benchmarks/bad_input.py`` has ten thousand."""
    examples, outcome = OUTCOMES[kind]
    found = []

    @settings(max_examples=n_examples, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(examples)
    def check(example):
        found.append(outcome(example, len(found)))

    check()
    assert "refused" in found
    assert {"learnt", "accepted"} & set(found)


@pytest.mark.parametrize("algorithm", FAMILY)
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"learning_rate": math.nan}, "learning_rate=nan: allowed is a finite number >= 0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": "lin_0.1"}, "learning_rate='lin_0.1'"),
        ({"learning_rate": len}, "learning_rate=<built-in function len>.*TypeError"),
        ({"learning_rate": lambda _: math.nan}, "learning_rate="),
        ({"gamma": 10**400}, "gamma=1000"),
        ({"gamma": np.complex64(0.5)}, "gamma="),
        ({"ent_coef": 10**400}, "ent_coef=1000"),
        ({"max_grad_norm": np.float32(0.0)}, "max_grad_norm="),
        ({"sde_sample_freq": np.array([1, 2])}, "sde_sample_freq="),
        ({"seed": -1}, "seed=-1: allowed is a whole number >= 0"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"stats_window_size": 0}, "stats_window_size=0"),
        ({"verbose": "loud"}, "verbose='loud'"),
        ({"tensorboard_log": 3}, "tensorboard_log=3"),
        ({"device": "cuda0"}, "device='cuda0'"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": 0}, "device=0"),
        ({"use_sde": 1}, "use_sde=1: allowed is True or False"),
        ({"policy_kwargs": [4]}, r"policy_kwargs=\[4\]"),
        ({"policy": "MlpPolice"}, "policy='MlpPolice': allowed is one of 'MlpPolicy'"),
        ({"env": "CartPol-v1"}, "env='CartPol-v1'.*CartPole"),
        ({"env": "no id at all!"}, "env='no id at all!'"),
        ({"env": None}, "env=None"),
    ],
)
def test_arguments_that_sb3_does_not_look_at(algorithm, parameters, named):
    arguments = {"policy": "MlpPolicy", "env": "CartPole-v1", "device": "cpu", **parameters}
    if algorithm is NPG and "max_grad_norm" in parameters:
        pytest.skip("has none")
    with pytest.raises(ValueError, match=named):
        algorithm(**arguments)


@pytest.mark.parametrize(
    ("algorithm", "parameters", "named"),
    [
        (VPG, {"rollout_buffer_class": "StepBuffer"}, "rollout_buffer_class='StepBuffer'"),
        (VPG, {"n_steps": 2**31}, "n_steps=2147483648: allowed is a whole number >= 1 and <= 2147483647"),
        (ClippedCriticPPO, {"n_steps": "many"}, "n_steps='many'"),
        (ClippedCriticPPO, {"vf_coef": "auto"}, "vf_coef='auto'"),
        (ClippedCriticPPO, {"normalize_advantage": 1}, "normalize_advantage=1: allowed is one of"),
        (ClippedCriticPPO, {"recompute_advantage": "yes"}, "recompute_advantage='yes'"),
        (ClippedCriticPPO, {"clip_range_vf": np.array([1, 2])}, "clip_range_vf="),
        (REINFORCE, {"baseline": np.array(["none", "time"])}, "baseline="),
        (REINFORCE, {"n_episodes": 10**30}, "n_episodes=1000"),
        (ISPG, {"weights": np.array([1, 2])}, "weights="),
        (ISPG, {"replay_batches": np.array([1, 2])}, "replay_batches="),
    ],
)
def test_arguments_of_one_algorithm(algorithm, parameters, named):
    with pytest.raises(ValueError, match=named):
        algorithm("MlpPolicy", "CartPole-v1", device="cpu", **parameters)


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG])
@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({"policy_kwargs": {"net_arc": [4]}}, TypeError, "unexpected keyword argument 'net_arc'"),
        ({"policy_kwargs": {"net_arch": [-1]}}, RuntimeError, "negative dimension -1"),
        ({"rollout_buffer_kwargs": {"size": 3}}, TypeError, "unexpected keyword argument 'size'"),
    ],
)
def test_what_cannot_be_built_says_so_itself(algorithm, parameters, error, named):
    if algorithm is REINFORCE and "rollout_buffer_kwargs" in parameters:
        parameters = {"policy_kwargs": {"size": 3}}
    with pytest.raises(error, match=named):
        algorithm("MlpPolicy", "CartPole-v1", device="cpu", **parameters)


def test_numbers_of_numpy_are_numbers():
    arguments = {"learning_rate": np.float32(0.1), "clip_range": np.float32(0.25), "seed": np.int64(3)}
    model = ClippedCriticPPO("MlpPolicy", "CartPole-v1", n_steps=4, batch_size=4, device="cpu", **arguments)
    model.learn(4)
    assert model.clip_range(1.0) == 0.25
    assert model.seed == 3


@pytest.mark.parametrize("algorithm", FAMILY)
def test_an_agent_that_only_acts_may_have_schedules_of_0(algorithm):
    """As rl_zoo3 gives them."""
    algorithm("MlpPolicy", "CartPole-v1", learning_rate=ConstantSchedule(0.0), device="cpu")


def test_a_device_that_is_there():
    model = REINFORCE("MlpPolicy", "CartPole-v1", device=th.device("cpu"))
    assert model.device.type == "cpu"
