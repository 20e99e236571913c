"""Search spaces of ``sb3-pgext train --optimize``: the numbers of an algorithm, for optuna to choose."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:  # the extra zoo need not be installed
    from optuna import Trial

_NET_ARCH = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
_ACTIVATION = {"tanh": nn.Tanh, "relu": nn.ReLU}

Space = dict[str, Callable[["Trial", str], Any]]
"""Name of each number → a function that samples it."""


def convert_params(sampled_params: dict[str, Any], critic: str = "vf") -> dict[str, Any]:
    """
    Turn what optuna sampled into constructor arguments; rl_zoo3 calls it for ``--trial-id`` also.

    ``<name>_pow`` stands for a power of two, ``one_minus_<name>`` for a distance from one. ``train_freq`` stands for as
    many gradient steps too, divided by ``subsample_steps``, as in rl_zoo3.

    :param sampled_params: the parameters of an optuna trial
    :param critic: the critic's key in ``net_arch``, ``"vf"`` or ``"qf"``
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
    if "train_freq" in params:
        params["gradient_steps"] = max(params["train_freq"] // params.pop("subsample_steps", 1), 1)
    if "net_arch" not in params:  # the network stays the configuration's
        return params
    net_arch, activation_fn = _NET_ARCH[params.pop("net_arch")], _ACTIVATION[params.pop("activation_fn")]
    return {**params, "policy_kwargs": {"net_arch": {"pi": net_arch, critic: net_arch}, "activation_fn": activation_fn}}


def sampler(
    space: Callable[[Mapping[str, Any]], Space], convert: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[..., dict[str, Any]]:
    """
    Make rl_zoo3's sampler of a search space. Its arguments beside the trial are for other algorithms.

    :param space: the search space beside a configuration, which rl_zoo3 keeps in the study's attributes, as text
    :param convert: :func:`convert_params` of the algorithm
    :return: the sampler
    """

    def sample(trial: "Trial", *_: Any) -> dict[str, Any]:
        return convert({name: one(trial, name) for name, one in space(trial.study.user_attrs).items()})

    return sample


def _log(low: float, high: float) -> Callable[["Trial", str], float]:
    """Sample a number whose order of magnitude is unknown."""
    return lambda trial, name: trial.suggest_float(name, low, high, log=True)


def _between(low: float, high: float) -> Callable[["Trial", str], float]:
    return lambda trial, name: trial.suggest_float(name, low, high)


def _whole(low: int, high: int, log: bool = False) -> Callable[["Trial", str], int]:
    return lambda trial, name: trial.suggest_int(name, low, high, log=log)


def _one_of(*choices: Any) -> Callable[["Trial", str], Any]:
    return lambda trial, name: trial.suggest_categorical(name, choices)


_COMMON: Space = {
    "learning_rate": _log(1e-4, 3e-2),
    "one_minus_gamma": _log(1e-4, 3e-2),
    "ent_coef": _log(1e-8, 0.1),
    "net_arch": _one_of(*_NET_ARCH),
    "activation_fn": _one_of(*_ACTIVATION),
}
_ADVANTAGE: Space = {"normalize_advantage": _one_of(False, True)}
_CRITIC: Space = {"n_critic_updates": _whole(1, 20, log=True), "batch_size_pow": _whole(5, 10)}
_ROLLOUTS: Space = {**_COMMON, "n_steps_pow": _whole(5, 11), **_CRITIC, **_ADVANTAGE}
_LAMBDA: Space = {"one_minus_gae_lambda": _log(1e-3, 0.3)}
_REPLAY: Space = {
    "learning_rate": _log(1e-5, 2e-3),
    "one_minus_gamma": _log(1e-4, 3e-2),
    "batch_size_pow": _whole(2, 11),
    "train_freq": _whole(1, 10),
    "tau": _log(1e-3, 0.08),
    "net_arch": _one_of(*_NET_ARCH),
    "activation_fn": _one_of(*_ACTIVATION),
}
"""rl_zoo3's of SAC, with our networks."""


def _adaptive(config: Mapping[str, Any]) -> Space:
    """The divergence that a learning rate adapts to, if that of the configuration does."""
    return {"learning_rate_kl_target": _log(1e-3, 0.1)} if config.get("learning_rate_kl_target") else {}


def reinforce_space(config: Mapping[str, Any]) -> Space:
    """
    Make REINFORCE's search space. Its ingredients (baseline, credit, critic target) stay the configuration's, and what
    only some of them allow is sampled only with those.

    :param config: the configuration
    :return: the search space
    """
    space = {**_COMMON, **_adaptive(config), "max_grad_norm": _log(0.3, 5.0), "n_episodes_pow": _whole(2, 6)}
    baseline = config.get("baseline", "state")
    if baseline != "optimal" and config.get("weights") != "per_decision":
        space |= _ADVANTAGE
    if baseline == "state":
        space |= _CRITIC
    if config.get("critic_target") == "lambda":
        space |= _LAMBDA
    return space


def ispg_space(config: Mapping[str, Any]) -> Space:
    """
    Make the search space of REINFORCE's numbers, and of the reuse. The weights and the replay stay the configuration's.

    :param config: the configuration
    :return: the search space
    """
    min_ess = _between(0.1, 0.9)
    return {**reinforce_space(config), "gradient_steps": _whole(2, 50, log=True), "min_ess": min_ess}


def vpg_space(config: Mapping[str, Any]) -> Space:
    """
    Make VPG's search space. Its ingredients (critic, gradient, advantage, critic target) stay the configuration's, and
    n, λ, draws and what is done to advantages are sampled where they are used.

    :param config: the configuration
    :return: the search space
    """
    space = {**_ROLLOUTS, **_adaptive(config), "max_grad_norm": _log(0.3, 5.0)}
    used = {config.get("critic_target", "lambda")}
    if config.get("gradient") == "all_action":
        del space["normalize_advantage"]
    else:
        used.add(config.get("advantage", "gae"))
    if "n_step" in used:
        space |= {"lookahead": _whole(2, 100, log=True)}
    if used & {"gae", "lambda"}:
        space |= _LAMBDA
    if "n_action_samples" in config:
        space |= {"n_action_samples": _whole(2, 64, log=True)}
    return space


def npg_space(config: Mapping[str, Any]) -> Space:
    """
    Make NPG's search space. Its ingredients (step rule, Fisher matrix, line search) stay the configuration's.

    :param config: the configuration
    :return: the search space
    """
    space = {**_ROLLOUTS, **_LAMBDA, "cg_damping": _log(1e-4, 0.3), "cg_max_steps": _whole(5, 30)}
    fixed = config.get("step_rule") == "fixed"
    if fixed:
        space |= {"step_size": _log(1e-3, 1.0)}
    if not fixed or config.get("line_search"):
        space |= {"target_kl": _log(1e-3, 0.1)}
    return space


def ppo_cc_space(config: Mapping[str, Any]) -> Space:
    """
    Make rl_zoo3's search space of PPO, with the numbers of the surrogate and the critic that the configuration has.

    :param config: the configuration
    :return: the search space
    """
    space: Space = {
        **_COMMON,
        **_adaptive(config),
        "learning_rate": _log(1e-5, 2e-3),
        "one_minus_gae_lambda": _log(1e-4, 0.1),
        "n_steps_pow": _whole(5, 12),
        "batch_size_pow": _whole(2, 10),
        "n_epochs": _one_of(1, 5, 10, 20),
        "max_grad_norm": _between(0.3, 2.0),
    }
    surrogate = config.get("surrogate", "clip")
    if surrogate == "clip":
        space |= {"clip_range": _one_of(0.1, 0.2, 0.3, 0.4)}
    if config.get("clip_range_vf") is not None:
        space |= {"clip_range_vf": _log(0.05, 50.0)}
    if surrogate in ("kl", "adaptive_kl"):
        space |= {"kl_coef": _log(0.1, 30.0)}
    if surrogate == "adaptive_kl":
        space |= {"desired_kl": _log(1e-3, 0.1)}
    return space


def es_space(config: Mapping[str, Any]) -> Space:
    """
    Make the search space of search gradients. Their ingredients (pairs, shaping, optimizer) stay the configuration's,
    and so does the network.

    :param config: the configuration
    :return: the search space
    """
    return {"learning_rate": _log(1e-3, 0.3), "n_directions_pow": _whole(1, 5), "sigma": _log(1e-2, 0.5)}


def opac_space(config: Mapping[str, Any]) -> Space:
    """
    Make rl_zoo3's search space of SAC, with the numbers of the gradient and of the temperature that the configuration
    has. A target of the entropy stays the configuration's: what is possible depends on the actions.

    :param config: the configuration
    :return: the search space
    """
    space = dict(_REPLAY)
    if config.get("gradient") == "sampled":
        space |= {"weight_clip": _log(1.0, 20.0)}
    if config.get("n_action_samples") is not None:
        space |= {"n_action_samples": _whole(2, 32, log=True)}
    if not _is_learnt(config):
        space |= {"ent_coef": _log(1e-4, 0.5)}
    return space


def sacd_space(config: Mapping[str, Any]) -> Space:
    """
    Make the search space of discrete SAC: ``opac``'s, and the target of the entropy, up to that of two actions.

    :param config: the configuration
    :return: the search space
    """
    space = {**opac_space(config), "subsample_steps": _whole(1, 8)}
    return space | {"target_entropy": _log(0.01, 0.69)} if _is_learnt(config) else space


def ew_space(config: Mapping[str, Any]) -> Space:
    """
    Make the search space of exponential weights: the step size, and with bandit feedback the rollout.

    :param config: the configuration
    :return: the search space
    """
    space: Space = {"learning_rate": _log(1e-3, 30.0)}
    return space if config.get("feedback") == "full" else space | {"n_steps_pow": _whole(0, 11)}


def a3c_space(config: Mapping[str, Any]) -> Space:
    """
    Make rl_zoo3's search space of A2C. Workers, optimizer and whether they wait stay the configuration's.

    :param config: the configuration
    :return: the search space
    """
    return {**_COMMON, **_LAMBDA, "learning_rate": _log(1e-5, 1e-2), "n_steps_pow": _whole(2, 6)}


def _is_learnt(config: Mapping[str, Any]) -> bool:
    """Test for a coefficient of the entropy that is learnt, and not a number."""
    return str(config.get("ent_coef", "auto")).startswith("auto")
