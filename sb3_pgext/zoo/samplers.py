"""Search spaces of ``sb3-pgext train --optimize``: the numbers of an algorithm, for optuna to choose."""

from collections.abc import Callable
from typing import Any

import optuna
from torch import nn

_NET_ARCH = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
_ACTIVATION = {"tanh": nn.Tanh, "relu": nn.ReLU}


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what optuna sampled into constructor arguments; rl_zoo3 calls it for ``--trial-id`` also.

    ``<name>_pow`` stands for a power of two, ``one_minus_<name>`` for a distance from one.

    :param sampled_params: the parameters of an optuna trial
    :return: keyword arguments of the algorithm's constructor
    """
    params: dict[str, Any] = {}
    for name, value in sampled_params.items():
        if name.endswith("_pow"):
            params[name.removesuffix("_pow")] = 2**value
        elif name.startswith("one_minus_"):
            params[name.removeprefix("one_minus_")] = 1 - value
        else:
            params[name] = value
    net_arch = _NET_ARCH[params.pop("net_arch")]
    params["policy_kwargs"] = {
        "net_arch": {"pi": net_arch, "vf": net_arch},
        "activation_fn": _ACTIVATION[params.pop("activation_fn")],
    }
    return params


def sampler(sample: Callable[[optuna.Trial], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """
    Make a search space as rl_zoo3 calls it, whose other arguments are for algorithms that add noise to their actions.

    :param sample: samples the numbers of one algorithm, which :func:`convert_params` converts
    :return: the search space
    """
    return lambda trial, n_actions, n_envs, additional_args: convert_params(sample(trial))


def _log(trial: optuna.Trial, name: str, low: float, high: float) -> dict[str, float]:
    """Sample a number whose order of magnitude is unknown."""
    return {name: trial.suggest_float(name, low, high, log=True)}


def _sample_common(trial: optuna.Trial, learning_rates: tuple[float, float] = (1e-4, 3e-2)) -> dict[str, Any]:
    """Sample the numbers of every algorithm of ours."""
    return {
        **_log(trial, "learning_rate", *learning_rates),
        **_log(trial, "one_minus_gamma", 1e-4, 3e-2),
        **_log(trial, "ent_coef", 1e-8, 0.1),
        "net_arch": trial.suggest_categorical("net_arch", list(_NET_ARCH)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(_ACTIVATION)),
    }


def _sample_rollouts_and_critic(trial: optuna.Trial) -> dict[str, Any]:
    """Sample the numbers of the algorithms that step once per rollout."""
    return {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 11),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 1, 20, log=True),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [False, True]),
    }


def sample_reinforce(trial: optuna.Trial) -> dict[str, Any]:
    """
    Sample REINFORCE's numbers. Its ingredients (baseline, credit, critic target) stay the configuration's.

    What only some baselines allow is sampled only where the configuration has one of those: rl_zoo3 keeps the
    configuration in the study's attributes, as text.

    :param trial: the trial to sample for
    :return: the numbers
    """
    sampled = {
        **_sample_common(trial),
        **_log(trial, "max_grad_norm", 0.3, 5.0),
        "n_episodes_pow": trial.suggest_int("n_episodes_pow", 2, 6),
    }
    config = trial.study.user_attrs
    baseline = config.get("baseline", "state")
    if baseline != "optimal" and config.get("weights") != "per_decision":
        sampled["normalize_advantage"] = trial.suggest_categorical("normalize_advantage", [False, True])
    if baseline == "state":
        sampled["n_critic_updates"] = trial.suggest_int("n_critic_updates", 1, 20, log=True)
        sampled["batch_size_pow"] = trial.suggest_int("batch_size_pow", 5, 10)
    if config.get("critic_target") == "lambda":
        sampled |= _log(trial, "one_minus_gae_lambda", 1e-3, 0.3)
    return sampled


def sample_ispg(trial: optuna.Trial) -> dict[str, Any]:
    """
    Sample REINFORCE's numbers, and those of the reuse. The weights and the replay stay the configuration's.

    :param trial: the trial to sample for
    :return: the numbers
    """
    return {
        **sample_reinforce(trial),
        "gradient_steps": trial.suggest_int("gradient_steps", 2, 50, log=True),
        "min_ess": trial.suggest_float("min_ess", 0.1, 0.9),
    }


def sample_vpg(trial: optuna.Trial) -> dict[str, Any]:
    """
    Sample VPG's numbers. Its ingredients (advantage, critic target) stay the configuration's, and n and λ are sampled
    where they use them.

    :param trial: the trial to sample for
    :return: the numbers
    """
    sampled = {
        **_sample_common(trial),
        **_log(trial, "max_grad_norm", 0.3, 5.0),
        **_sample_rollouts_and_critic(trial),
    }
    config = trial.study.user_attrs
    advantage = config.get("advantage", "gae")
    if advantage == "n_step":
        sampled["lookahead"] = trial.suggest_int("lookahead", 2, 100, log=True)
    if advantage == "gae" or config.get("critic_target", "lambda") == "lambda":
        sampled |= _log(trial, "one_minus_gae_lambda", 1e-3, 0.3)
    return sampled


def sample_npg(trial: optuna.Trial) -> dict[str, Any]:
    """
    Sample NPG's numbers. Its ingredients (step rule, Fisher matrix, line search) stay the configuration's.

    :param trial: the trial to sample for
    :return: the numbers
    """
    sampled = {
        **_sample_common(trial),
        **_sample_rollouts_and_critic(trial),
        **_log(trial, "one_minus_gae_lambda", 1e-3, 0.3),
        **_log(trial, "cg_damping", 1e-4, 0.3),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
    }
    config = trial.study.user_attrs
    fixed = config.get("step_rule") == "fixed"
    if fixed:
        sampled |= _log(trial, "step_size", 1e-3, 1.0)
    if not fixed or config.get("line_search"):
        sampled |= _log(trial, "target_kl", 1e-3, 0.1)
    return sampled


def sample_ppo_cc(trial: optuna.Trial) -> dict[str, Any]:
    """
    Sample what rl_zoo3 samples for PPO, and the numbers of the surrogate and the critic that the configuration has.

    :param trial: the trial to sample for
    :return: the numbers
    """
    sampled = {
        **_sample_common(trial, learning_rates=(1e-5, 2e-3)),
        **_log(trial, "one_minus_gae_lambda", 1e-4, 0.1),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 12),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 2, 10),
        "n_epochs": trial.suggest_categorical("n_epochs", [1, 5, 10, 20]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2.0),
    }
    config = trial.study.user_attrs
    surrogate = config.get("surrogate", "clip")
    if surrogate == "clip":
        sampled["clip_range"] = trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4])
    if config.get("clip_range_vf") is not None:
        sampled |= _log(trial, "clip_range_vf", 0.05, 50.0)
    if surrogate in ("kl", "adaptive_kl"):
        sampled |= _log(trial, "kl_coef", 0.1, 30.0)
    if surrogate == "adaptive_kl":
        sampled |= _log(trial, "desired_kl", 1e-3, 0.1)
    return sampled
