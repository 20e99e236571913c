"""Everything that the future of a training depends on, taken from a model and put into one."""

import random
import warnings
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.her import HerReplayBuffer

from sb3_pgext.checkpoints.encoding import ALGORITHMS, Decoder, Encoder, qualified_name
from sb3_pgext.checkpoints.replay import replay_of, restored_replay

__all__ = ["generators_of", "model_of", "restore_generators", "restore_normalization", "state_of"]

_STATISTICS = ("obs_rms", "ret_rms")
"""Attributes of VecNormalize; the first one is missing without ``norm_obs``."""

_NOISE = ("exploration_mat", "exploration_matrices")
"""Attributes of a distribution that hold the noise drawn for gSDE."""


def state_of(model: BaseAlgorithm, encoder: Encoder) -> dict[str, Any]:
    """
    The state of a model, without its environment.

    :param model: between two updates
    :param encoder: takes the tensors
    :return: the state as JSON
    :raises ValueError: a parameter is NaN or infinite
    """
    names, variables = model._get_torch_save_params()
    tensors = {name: attrgetter(name)(model) for name in variables}
    for name, tensor in {**model.policy.state_dict(), **tensors}.items():
        if not tensor.isfinite().all():
            raise ValueError(f"parameter {name} is NaN or infinite: allowed are finite numbers only")
    left_out = {*_left_out(model), *(name.partition(".")[0] for name in (*names, *variables))}
    normalizer = model.get_vec_normalize_env()
    known = ALGORITHMS.get(qualified_name(type(model))) is type(model)
    parts = {
        "algorithm": qualified_name(type(model)) if known else type(model),
        "device": model.device.type,
        "attributes": {name: value for name, value in vars(model).items() if name not in left_out},
        "state_dicts": {name: attrgetter(name)(model).state_dict() for name in names},
        "tensors": tensors,
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
        "noise": {name: _noise_of(module) for name, module in model.policy.named_modules() if _noise_of(module)},
        "replay_buffer": replay_of(getattr(model, "replay_buffer", None)),
        "normalization": normalizer and {name: part for name, part in vars(normalizer).items() if name in _STATISTICS},
        "generators": generators_of(model),
    }
    return {name: encoder.encode(part, name) for name, part in parts.items()}


def model_of(
    state: Mapping[str, Any], decoder: Decoder, env: Any | None, device: th.device | str = "auto"
) -> BaseAlgorithm:
    """
    The model that a state was taken from.

    :param state: the outcome of :func:`state_of`
    :param decoder: gives the tensors
    :param env: the environment that it is to have; None for none
    :param device: where its tensors are to be
    :return: the model; the environment and the random generators are as they were
    :raises ValueError: the environment has other spaces, or the state is none of a model
    """
    name = state["algorithm"]
    algorithm: Any = ALGORITHMS[name] if isinstance(name, str) else decoder.decode(name)
    attributes = decoder.decode(state["attributes"])
    for name in attributes:
        if callable(defined := getattr(algorithm, name, None)) or isinstance(defined, property):
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
    _restore_replay(model, decoder.decode(state["replay_buffer"], model.device))
    model._setup_model()
    model.seed = seed

    for name, state_dict in decoder.decode(state["state_dicts"]).items():
        attrgetter(name)(model).load_state_dict(state_dict)
    for name, tensor in decoder.decode(state["tensors"]).items():
        attrgetter(name)(model).data.copy_(tensor)
    frozen = set(decoder.decode(state["frozen"]))
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, noise in decoder.decode(state["noise"], model.device).items():
        distribution = model.policy.get_submodule(name).action_dist
        vars(distribution).update({attribute: noise[attribute] for attribute in _NOISE})
    return model


def _noise_of(module: th.nn.Module) -> dict[str, th.Tensor]:
    """The noise that was drawn for gSDE, where a module acts with it."""
    distribution = getattr(module, "action_dist", None)
    return {name: getattr(distribution, name) for name in _NOISE if hasattr(distribution, name)}


def _restore_replay(model: Any, saved: Any) -> None:
    """Give a model its replay buffer, before its ``_setup_model`` would make one."""
    replay_buffer = restored_replay(saved, model.device)
    if getattr(replay_buffer, "n_envs", model.n_envs) != model.n_envs:
        sizes = f"it has n_envs={replay_buffer.n_envs}, env has {model.n_envs}"
        warnings.warn(f"the replay buffer starts empty: {sizes}", stacklevel=2)
    elif replay_buffer is not None:
        model.replay_buffer = replay_buffer
        if isinstance(replay_buffer, HerReplayBuffer) and model.env is not None:
            replay_buffer.set_env(model.env)


def _left_out(model: BaseAlgorithm) -> set[str]:
    """The attributes that SB3 does not save either, and the one that ``_setup_model`` makes from others."""
    return {*model._excluded_save_params(), "lr_schedule"}


def restore_normalization(model: BaseAlgorithm, statistics: Mapping[str, Any] | None) -> None:
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
    for name in _STATISTICS:
        if statistics is not None and name in statistics:
            setattr(normalizer, name, statistics[name])


def generators_of(model: BaseAlgorithm) -> dict[str, Any]:
    """
    The states of all random generators outside the environment.

    :param model: with an action space
    :return: the states, by generator
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  the generator that SB3 draws from
        "torch": th.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in th.cuda.get_rng_state_all()] if th.cuda.is_initialized() else [],
        "action_space": model.action_space.np_random.bit_generator.state,
    }


def restore_generators(model: BaseAlgorithm, states: Mapping[str, Any]) -> None:
    """
    Put all random generators outside the environment back.

    :param model: with an action space
    :param states: the outcome of :func:`generators_of`
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    th.set_rng_state(th.from_numpy(states["torch"]))
    if len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all([th.from_numpy(state) for state in states["cuda"]])
    model.action_space.np_random.bit_generator.state = states["action_space"]
