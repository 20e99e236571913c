"""Search spaces of ``sb3-pgext train --optimize``: the numbers of an algorithm, for optuna to choose."""

from collections.abc import Sequence
from typing import Any, cast

import optuna
from rl_zoo3.hyperparams_opt import sample_ppo_params
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


def _sample_common(trial: optuna.Trial) -> dict[str, Any]:
    """What every algorithm of ours has."""
    return {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 3e-2, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(_NET_ARCH)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(_ACTIVATION)),
    }


def _sample_rollouts_and_critic(trial: optuna.Trial) -> dict[str, Any]:
    """What the algorithms have that step once per rollout."""
    return {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 11),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 1, 20, log=True),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [False, True]),
    }


def sample_reinforce_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample REINFORCE's numbers. Its ingredients (baseline, credit, critic target) stay the configuration's.

    What only some baselines allow is sampled only where the configuration has one of those: rl_zoo3 keeps the
    configuration in the study's attributes, as text.

    :param trial: the trial to sample for
    :param n_actions: dimension of a continuous action; not used
    :param n_envs: number of environments; not used
    :param additional_args: rl_zoo3's settings of replay buffers; not used
    :return: keyword arguments of :class:`sb3_pgext.REINFORCE`
    """
    return convert_params(_sampled_for_reinforce(trial))


def _sampled_for_reinforce(trial: optuna.Trial) -> dict[str, Any]:
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "n_episodes_pow": trial.suggest_int("n_episodes_pow", 2, 6),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 5.0, log=True),
        **_sample_common(trial),
    }
    config = trial.study.user_attrs
    baseline = config.get("baseline", "state")
    if baseline != "optimal" and config.get("weights") != "per_decision":
        sampled["normalize_advantage"] = trial.suggest_categorical("normalize_advantage", [False, True])
    if baseline == "state":
        sampled["critic_epochs"] = trial.suggest_int("critic_epochs", 1, 20, log=True)
        sampled["critic_batch_size_pow"] = trial.suggest_int("critic_batch_size_pow", 5, 10)
    if config.get("critic_target") == "lambda":
        sampled["one_minus_gae_lambda"] = trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.3, log=True)
    return sampled


def sample_ispg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    What is sampled for REINFORCE, and the numbers of the reuse. The weights and the replay stay the configuration's.

    :param trial: the trial to sample for
    :param n_actions: dimension of a continuous action; not used
    :param n_envs: number of environments; not used
    :param additional_args: rl_zoo3's settings of replay buffers; not used
    :return: keyword arguments of :class:`sb3_pgext.ISPG`
    """
    sampled = _sampled_for_reinforce(trial)
    sampled["n_gradient_steps"] = trial.suggest_int("n_gradient_steps", 2, 50, log=True)
    sampled["min_ess"] = trial.suggest_float("min_ess", 0.1, 0.9)
    return convert_params(sampled)


def sample_vpg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample VPG's numbers. Its ingredients (advantage, critic target) stay the configuration's, and n and λ are sampled
    where they use them.

    :param trial: the trial to sample for
    :param n_actions: dimension of a continuous action; not used
    :param n_envs: number of environments; not used
    :param additional_args: rl_zoo3's settings of replay buffers; not used
    :return: keyword arguments of :class:`sb3_pgext.VPG`
    """
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 5.0, log=True),
        **_sample_common(trial),
        **_sample_rollouts_and_critic(trial),
    }
    config = trial.study.user_attrs
    advantage = config.get("advantage", "gae")
    if advantage == "n_step":
        sampled["n_step"] = trial.suggest_int("n_step", 2, 100, log=True)
    if advantage == "gae" or config.get("critic_target", "lambda") == "lambda":
        sampled["one_minus_gae_lambda"] = trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.3, log=True)
    return convert_params(sampled)


def sample_npg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample NPG's numbers. Its ingredients (step rule, Fisher matrix, line search) stay the configuration's.

    :param trial: the trial to sample for
    :param n_actions: dimension of a continuous action; not used
    :param n_envs: number of environments; not used
    :param additional_args: rl_zoo3's settings of replay buffers; not used
    :return: keyword arguments of :class:`sb3_pgext.NPG`
    """
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.3, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 1e-4, 0.3, log=True),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        **_sample_common(trial),
        **_sample_rollouts_and_critic(trial),
    }
    config = trial.study.user_attrs
    fixed = config.get("step_rule") == "fixed"
    if fixed:
        sampled["step_size"] = trial.suggest_float("step_size", 1e-3, 1.0, log=True)
    if not fixed or config.get("line_search"):
        sampled["target_kl"] = trial.suggest_float("target_kl", 1e-3, 0.1, log=True)
    return convert_params(sampled)


def sample_ppo_cc_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    What rl_zoo3 samples for PPO, and the numbers of the surrogate and the critic that the configuration has.

    :param trial: the trial to sample for
    :param n_actions: dimension of a continuous action
    :param n_envs: number of environments
    :param additional_args: rl_zoo3's settings of replay buffers
    :return: keyword arguments of :class:`sb3_pgext.ClippedCriticPPO`
    """
    config = trial.study.user_attrs
    surrogate = config.get("surrogate", "clip")
    if surrogate == "clip":
        sampled = sample_ppo_params(trial, n_actions, n_envs, additional_args)
    else:
        sampled = sample_ppo_params(cast(optuna.Trial, _WithoutClipRange(trial)), n_actions, n_envs, additional_args)
        del sampled["clip_range"]
    if config.get("value_clip", "max") != "none":
        sampled["clip_range_vf"] = trial.suggest_float("clip_range_vf", 0.05, 50.0, log=True)
    if surrogate in ("kl", "adaptive_kl"):
        sampled["kl_coef"] = trial.suggest_float("kl_coef", 0.1, 30.0, log=True)
    if surrogate == "adaptive_kl":
        sampled["kl_target"] = trial.suggest_float("kl_target", 1e-3, 0.1, log=True)
    return sampled


class _WithoutClipRange:
    """A trial that does not record the choice of a ``clip_range``, for a surrogate that has none."""

    def __init__(self, trial: optuna.Trial):
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0] if name == "clip_range" else self._trial.suggest_categorical(name, choices)
