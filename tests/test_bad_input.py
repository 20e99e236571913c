"""A wrong argument, configuration or study is refused at once, by a ValueError that names it; a right one works."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_pgext import A3C, ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO, DiscreteSAC, OffPolicyActorCritic
from tests.environments import VECTOR, AnySpaces
from tests.inputs import OUTCOMES

FAMILY = (REINFORCE, VPG, NPG, ClippedCriticPPO, ISPG, A3C, OffPolicyActorCritic, DiscreteSAC)


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
    without = {NPG: {"max_grad_norm"}, OffPolicyActorCritic: {"max_grad_norm"}}
    without[DiscreteSAC] = {"max_grad_norm", "sde_sample_freq", "use_sde"}
    if parameters.keys() & without.get(algorithm, set()):
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


DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1, 1, (2,))
MANY = spaces.MultiBinary(9)
NOISE = NormalActionNoise(np.zeros(2), np.ones(2))


@pytest.mark.parametrize(
    ("space", "parameters", "named"),
    [
        # What the action space does not allow.
        (DISCRETE, {"gradient": "reparameterized"}, r"gradient='reparameterized': .*'sampled'\] on a Discrete action"),
        (BOX, {"gradient": "all-action"}, "gradient='all-action': .*'reparameterized'"),
        (BOX, {"gradient": None}, "gradient=None"),
        (BOX, {"gradient": np.array(["sampled"])}, "gradient="),
        (BOX, {"gradient": "all_action"}, "n_action_samples=None: allowed is 2 or more with gradient='all_action'"),
        (BOX, {"gradient": "all_action", "n_action_samples": 1}, "n_action_samples=1: .*>= 2"),
        (MANY, {}, "n_action_samples=None: .*over more than 256 joint actions"),
        (MANY, {"n_action_samples": 1}, "n_action_samples=1: .*>= 2"),
        (MANY, {"gradient": "sampled", "n_action_samples": 0}, "n_action_samples=0: .*>= 1"),
        (DISCRETE, {"gradient": "sampled", "n_steps": "lin_0.1"}, "n_steps='lin_0.1': allowed is a whole number >= 1"),
        (DISCRETE, {"n_action_samples": 2}, "n_action_samples=2: allowed is None where all actions are enumerated"),
        (BOX, {"n_action_samples": 2}, "n_action_samples=2: allowed is None .*gradient='reparameterized'"),
        (DISCRETE, {"action_noise": NOISE}, "action_noise=.*: allowed is None on discrete actions"),
        (DISCRETE, {"use_sde": True}, "gSDE"),
        (BOX, {"use_sde": True, "gradient": "sampled", "n_action_samples": 2}, "use_sde=True: .*gradient='sampled'"),
        (DISCRETE, {"policy": SACPolicy}, "policy='SACPolicy': .*OffPolicyActorCriticPolicy on a Discrete"),
        (BOX, {"policy": ActorCriticPolicy}, "policy='ActorCriticPolicy': .*subclass of SACPolicy on a Box"),
        (DISCRETE, {"policy_kwargs": {"clip_mean": 1.0}}, r"policy_kwargs: clip_mean=1\.0: .*on discrete actions"),
        (DISCRETE, {"policy_kwargs": {"log_std_init": 0}}, "policy_kwargs: log_std_init=0"),
        (spaces.Discrete(3, start=1), {}, r"action_space=Discrete\(3, start=1\): .*start at 0"),
        # Weights.
        (DISCRETE, {"weight_clip": 2.0}, "weight_clip=2.0: allowed is None with gradient=.*only 'sampled'"),
        (BOX, {"weight_clip": 2.0}, "weight_clip=2.0: allowed is None with gradient=.*only 'sampled'"),
        (DISCRETE, {"gradient": "sampled", "weight_clip": 0}, "weight_clip=0"),
        (DISCRETE, {"gradient": "sampled", "weight_clip": -1.0}, "weight_clip=-1.0"),
        (BOX, {"gradient": "sampled", "action_noise": NOISE}, "action_noise=.*None with gradient='sampled'"),
        # Replays.
        (BOX, {"learning_starts": 99, "buffer_size": 99}, "learning_starts=99: .* buffer's size, buffer_size=99"),
        (BOX, {"learning_starts": -1}, "learning_starts=-1"),
        (BOX, {"learning_starts": 0.5}, "learning_starts=0.5"),
        (BOX, {"buffer_size": 0}, "buffer_size=0"),
        (BOX, {"buffer_size": 1e6}, "buffer_size=1000000.0"),
        (BOX, {"batch_size": 0}, "batch_size=0"),
        (BOX, {"replay_buffer_class": RolloutBuffer}, "replay_buffer_class=.*subclass of SB3.s ReplayBuffer"),
        (BOX, {"replay_buffer_class": "ReplayBuffer"}, "replay_buffer_class='ReplayBuffer'"),
        (BOX, {"replay_buffer_kwargs": [3]}, r"replay_buffer_kwargs=\[3\]"),
        (DISCRETE, {"gradient": "sampled", "replay_buffer_class": ReplayBuffer}, "buffer_class=.*add_log_prob"),
        (DISCRETE, {"gradient": "sampled", "replay_buffer_class": NStepReplayBuffer}, "buffer_class=.*add_log_prob"),
        (DISCRETE, {"gradient": "sampled", "replay_buffer_class": HerReplayBuffer}, "buffer_class=.*add_log_prob"),
        (BOX, {"n_steps": 0}, "n_steps=0"),
        (BOX, {"n_steps": 3, "replay_buffer_class": ReplayBuffer}, "n_steps=3: allowed is 1 with .*ReplayBuffer"),
        (BOX, {"n_steps": 3, "optimize_memory_usage": True}, "optimize_memory_usage=True: .*False with n_steps=3"),
        (BOX, {"optimize_memory_usage": 1}, "optimize_memory_usage=1"),
        # Schedules.
        (BOX, {"train_freq": 0}, "train_freq=0"),
        (BOX, {"train_freq": (1, "minute")}, r"train_freq=\(1, 'minute'\): .*'step' or 'episode'"),
        (BOX, {"train_freq": (1,)}, r"train_freq=\(1,\)"),
        (BOX, {"train_freq": "often"}, "train_freq='often'"),
        (BOX, {"train_freq": ()}, r"train_freq=\(\)"),
        (BOX, {"gradient_steps": -2}, "gradient_steps=-2"),
        (BOX, {"gradient_steps": 0.5}, "gradient_steps=0.5"),
        (BOX, {"target_update_interval": 0}, "target_update_interval=0"),
        (BOX, {"tau": 1.5}, "tau=1.5"),
        (BOX, {"tau": math.nan}, "tau=nan"),
        (BOX, {"action_noise": 0.1}, "action_noise=0.1: allowed is None or SB3's ActionNoise"),
        (BOX, {"use_sde_at_warmup": True}, "use_sde_at_warmup=True: allowed is False without use_sde"),
        (BOX, {"sde_sample_freq": 4}, "sde_sample_freq=4"),
        # Temperature.
        *((BOX, {"ent_coef": bad}, "ent_coef=.*: allowed is a number >= 0, 'auto', or 'auto_' and a number > 0")
          for bad in ("auto_x", "auto_", "auto_0", "auto_-1", "auto_inf", "auto_nan", "auto_1_0", "auto0.1",
                      "automatic", "Auto", "0.1", "", -0.1, math.nan, math.inf, None, True)),
        (DISCRETE, {"target_entropy": 1.2}, r"target_entropy=1\.2: allowed is 'auto' or a number in \[0\.0, 1\.099\]"),
        (DISCRETE, {"target_entropy": -0.1}, r"target_entropy=-0\.1"),
        (BOX, {"target_entropy": 1.5}, r"target_entropy=1\.5: allowed is 'auto' or a number in \[-inf, 1\.386\]"),
        (MANY, {"n_action_samples": 2, "target_entropy": 7.0}, r"target_entropy=7\.0: .*6\.238"),
        (BOX, {"target_entropy": "high"}, "target_entropy='high'"),
        (BOX, {"target_entropy": None}, "target_entropy=None"),
        (BOX, {"target_entropy": -1.0, "ent_coef": 0.1}, r"target_entropy=-1\.0: allowed is 'auto' .*fixed ent_coef"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_the_off_policy_actor_critic(space, parameters, named):
    env = AnySpaces(VECTOR, space)
    with pytest.raises(ValueError, match=named):
        OffPolicyActorCritic(**{"policy": "MlpPolicy", "env": env, "device": "cpu", "buffer_size": 2000, **parameters})


def test_several_steps_of_dict_observations():
    env = AnySpaces(spaces.Dict(vector=VECTOR), DISCRETE)
    for gradient in ("sampled", "all_action"):
        with pytest.raises(ValueError, match="n_steps=3: allowed is 1 with Dict observations"):
            OffPolicyActorCritic(
                "MultiInputPolicy", env, n_steps=3, gradient=gradient, buffer_size=100, learning_starts=9
            )


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
    arguments = {"learning_rate": ConstantSchedule(0.0), "device": "cpu"}
    algorithm("MlpPolicy", "Pendulum-v1" if algorithm is OffPolicyActorCritic else "CartPole-v1", **arguments)


def test_a_device_that_is_there():
    model = REINFORCE("MlpPolicy", "CartPole-v1", device=th.device("cpu"))
    assert model.device.type == "cpu"
