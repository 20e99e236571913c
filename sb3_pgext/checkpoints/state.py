"""What the future of a training depends on, taken from a model and put into one."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext.algorithms.base import PolicyGradientAlgorithm
from sb3_pgext.checkpoints.encoding import Decoder, Encoder

__all__ = ["generators_of", "model_of", "restore_generators", "restore_normalization", "state_of"]

_RECREATED = ("lr_schedule",)
"""Attributes that ``_setup_model`` makes of others."""

_NOISE = ("exploration_mat", "exploration_matrices")
"""What gSDE's noise was drawn as."""


def state_of(model: OnPolicyAlgorithm, encoder: Encoder) -> dict[str, Any]:
    """
    :param model: between two updates
    :param encoder: takes the tensors
    :return: all of it but the environment, as JSON
    :raises ValueError: it is of no algorithm of the family, or a parameter is NaN or infinite
    """
    if not isinstance(model, PolicyGradientAlgorithm):
        raise ValueError(f"model={type(model).__name__}: allowed is an algorithm of sb3_pgext")
    parameters = dict(model.policy.state_dict())
    for name, tensor in parameters.items():
        if not tensor.isfinite().all():
            raise ValueError(f"parameter {name} of the policy is NaN or infinite: allowed are finite numbers only")
    left_out = _left_out(model)
    distribution = model.policy.action_dist
    normalizer = model.get_vec_normalize_env()
    parts = {
        "algorithm": type(model),
        "device": model.device.type,
        "attributes": {name: value for name, value in vars(model).items() if name not in left_out},
        "policy": parameters,
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
        "optimizer": model.policy.optimizer.state_dict(),
        "noise": {name: getattr(distribution, name) for name in _NOISE if hasattr(distribution, name)},
        "replay_buffer": getattr(model, "replay_buffer", None),
        "normalization": None if normalizer is None else _statistics(normalizer),
        "generators": generators_of(model),
    }
    return {name: encoder.encode(part, name) for name, part in parts.items()}


def model_of(
    state: Mapping[str, Any], decoder: Decoder, env: Any | None, device: th.device | str = "auto"
) -> OnPolicyAlgorithm:
    """
    :param state: of a model
    :param decoder: gives the tensors
    :param env: the environment that it is to have; None for none
    :param device: where its tensors are to be
    :return: the model; the environment and the random generators are as they were
    :raises ValueError: the environment has other spaces, or the state is none of a model
    """
    algorithm, attributes = decoder.decode(state["algorithm"]), decoder.decode(state["attributes"])
    for name in attributes:
        if callable(getattr(algorithm, name, None)) or isinstance(getattr(algorithm, name, None), property):
            raise ValueError(f"attributes/{name}: allowed are attributes, not methods, of {algorithm.__name__}")
    if env is not None:
        env = algorithm._wrap_env(env, attributes["verbose"])
        check_for_correct_spaces(env, attributes["observation_space"], attributes["action_space"])
        # Not with its spaces: a convolutional policy draws from its space when it is made.
        attributes["n_envs"] = env.num_envs
    # Without the seed, which would seed all generators anew.
    seed = attributes.pop("seed")
    model = algorithm(attributes["policy_class"], env, device=device, _init_setup_model=False)
    vars(model).update({name: value for name, value in attributes.items() if name not in _left_out(model)})
    model._setup_model()
    model.seed = seed

    model.policy.load_state_dict(decoder.decode(state["policy"]))
    frozen = set(decoder.decode(state["frozen"]))
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.policy.optimizer.load_state_dict(decoder.decode(state["optimizer"]))
    for name, noise in decoder.decode(state["noise"], model.device).items():
        if name in _NOISE:
            setattr(model.policy.action_dist, name, noise)
    replay_buffer = decoder.decode(state["replay_buffer"], model.device)
    if replay_buffer is not None:
        model.replay_buffer = replay_buffer
    return model


def _left_out(model: OnPolicyAlgorithm) -> set[str]:
    return {*model._excluded_save_params(), *_RECREATED}


def _statistics(normalizer: VecNormalize) -> dict[str, Any]:
    observations = normalizer.obs_rms if normalizer.norm_obs else None
    return {"observations": observations, "returns": normalizer.ret_rms}


def restore_normalization(model: OnPolicyAlgorithm, statistics: Mapping[str, Any] | None) -> None:
    """
    Give the VecNormalize of the model's environment its statistics.

    :param model: with an environment
    :param statistics: None where there was no VecNormalize
    :raises ValueError: there is only one of the two
    """
    normalizer = model.get_vec_normalize_env()
    if (normalizer is None) != (statistics is None):
        allowed = "one without VecNormalize" if statistics is None else "one in a VecNormalize"
        raise ValueError(f"env={model.env}: allowed is {allowed}, as the model was trained with")
    if normalizer is not None and statistics is not None:
        normalizer.ret_rms = statistics["returns"]
        if statistics["observations"] is not None:
            normalizer.obs_rms = statistics["observations"]


def generators_of(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: with an action space
    :return: the states of all random generators outside the environment
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  the generator that SB3 draws from
        "torch": th.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in th.cuda.get_rng_state_all()] if th.cuda.is_initialized() else [],
        "action_space": _generator_of(model.action_space),
    }


def restore_generators(model: OnPolicyAlgorithm, states: Mapping[str, Any]) -> None:
    """
    :param model: with an action space
    :param states: of :func:`generators_of`
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    th.set_rng_state(th.from_numpy(states["torch"]))
    if len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all([th.from_numpy(state) for state in states["cuda"]])
    if states["action_space"] is not None:
        model.action_space.np_random.bit_generator.state = states["action_space"]


def _generator_of(space: spaces.Space) -> dict[str, Any] | None:
    """None where nothing has been drawn, or seeded, yet."""
    return None if space._np_random is None else dict(space.np_random.bit_generator.state)
