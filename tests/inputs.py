"""
Arguments, configurations and studies at random, right and wrong, and what must come of them.

What is documented stands here a second time, as predicates of its own: an example with a value outside of it must be
refused by a ValueError that names one of its arguments; any other is made, and learns, or is refused as a combination.
"""

import contextlib
import io
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from gymnasium import spaces
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import (
    ISPG,
    NPG,
    REINFORCE,
    VPG,
    ClippedCriticPPO,
    DiscreteSAC,
    ExponentialWeights,
    OffPolicyActorCritic,
    SearchGradient,
)
from sb3_pgext.algorithms.ew import TabularPolicy
from sb3_pgext.algorithms.q_policies import MlpPolicy
from sb3_pgext.compare.study import read_study
from sb3_pgext.rollouts import StepBuffer
from sb3_pgext.zoo.configs import check_config
from tests.environments import AnySpaces

HUGE = 10**400


def _half(progress: float) -> float:
    return 0.5


def _nan(progress: float) -> float:
    return math.nan


def _no_argument() -> float:
    return 0.1


PLAIN = [None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf, HUGE, -HUGE]
PLAIN += [2**31 - 1, 2**31, 2**63, 1e30, 1e39, 1e308, 5e-324, "", "abc", "1", "none", "auto", "lin_0.1", "lin_", "a.b"]
PLAIN += [[], [1], ["a"], {}, {"a": 1}, {1: 2}, [[]], "True", "0.5", "nan"]
"""What YAML can say."""

OBJECTS = [np.float32(0.5), np.float64(0.5), np.float32(np.nan), np.float32(0.0), np.int64(3), np.int8(-1)]
OBJECTS += [np.bool_(True), np.str_("a"), np.array([1, 2]), np.array(0.5), th.tensor(1.0), th.tensor([1.0, 2.0])]
OBJECTS += [(1,), 1j, b"x", Decimal(1), object(), th.nn.Linear, RolloutBuffer, th.device("cpu"), Path("x")]
OBJECTS += [len, int, str, _half, _nan, _no_argument]

plain = st.one_of(st.sampled_from(PLAIN), st.integers(), st.floats(), st.text(max_size=5))
anything = st.one_of(plain, st.sampled_from(OBJECTS))


def is_number(value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False) -> bool:
    """A finite one that single precision holds, of Python's or numpy's; ``above``: more than ``low``."""
    if type(value) not in (int, float, np.float32, np.float64, np.int64, np.int8):
        return False
    value = value if isinstance(value, int) else value.item() if isinstance(value, np.generic) else value
    if abs(value) > 1e38:
        return False
    return math.isfinite(value) and (low < value if above else low <= value) and value <= high


def is_whole(value: Any, low: int = 1, high: int = 2**31 - 1) -> bool:
    """A whole one, of Python's or numpy's."""
    return type(value) in (int, np.int64, np.int8) and low <= value <= high


def is_schedule(value: Any, above: bool = False) -> bool:
    """A number, or a function that starts with one."""
    if not callable(value):
        return is_number(value, 0.0, above=above)
    try:
        return is_number(value(1.0), 0.0)
    except Exception:
        return False


def is_empty(value: Any) -> bool:
    """An empty dict; an array would compare each of its entries with one."""
    return isinstance(value, dict) and not value


@dataclass(frozen=True)
class Domain:
    """
    :param allowed: what is documented
    :param usual: right values that training is quick with
    :param is_work: whether a large value means much work, so that nothing is trained with it
    """

    allowed: Callable[[Any], bool]
    usual: list[Any]
    is_work: bool = False


def count(*usual: int, low: int = 1, optional: bool = False, work: bool = False) -> Domain:
    """Whole numbers."""
    allowed = (lambda x: x is None or is_whole(x, low)) if optional else (lambda x: is_whole(x, low))
    return Domain(allowed, [*usual, np.int64(usual[0]), *([None] if optional else [])], work)


def number(*usual: float, low: float = -math.inf, high: float = math.inf, above: bool = False, optional: bool = False):
    """Finite numbers."""
    return Domain(
        lambda x: (optional and x is None) or is_number(x, low, high, above),
        [*usual, np.float32(usual[0]), *([None] if optional else [])],
    )


def choice(*choices: Any) -> Domain:
    """One of a few; 1 is not True."""
    return Domain(lambda x: any(type(x) in (type(c), np.str_) and x == c for c in choices), list(choices))


def schedule(*usual: Any, above: bool = False) -> Domain:
    """A number or a function."""
    return Domain(lambda x: is_schedule(x, above), [*usual, np.float32(0.1), _half])


SWITCH = choice(True, False)
FRACTION = number(0.0, 0.5, 0.99, 1.0, low=0.0, high=1.0)
KL_TARGET = number(0.01, low=0.0, above=True, optional=True)
RIGHT_KWARGS = [None, {"net_arch": [4]}, {"net_arch": {"pi": [4], "vf": [4]}}, {"net_arch": [4], "ortho_init": False}]
RIGHT_KWARGS += [{"net_arch": [4], "optimizer_class": th.optim.SGD}, {"net_arch": []}]
WRONG_KWARGS = [{"net_arch": [-1]}, {"net_arch": "big"}, {"nope": 1}, {"net_arch": [4], "activation_fn": 3}, {1: 2}]
WRONG_KWARGS += [{"optimizer_kwargs": {"nope": 1}}, {"optimizer_class": 3}, {"net_arch": [2.5]}, [("net_arch", [4])]]

COMMON = {
    "policy": Domain(
        lambda x: isinstance(x, (str, type)) and x in ("MlpPolicy", ActorCriticPolicy), ["MlpPolicy", ActorCriticPolicy]
    ),
    "learning_rate": schedule(0.01, 0, 3e-4),
    "gamma": FRACTION,
    "ent_coef": number(0.0, 0.01, -0.01),
    "use_sde": SWITCH,
    "sde_sample_freq": Domain(lambda x: is_whole(x, -1) and x != 0, [-1, 1, 2]),
    "stats_window_size": count(1, 100),
    "tensorboard_log": Domain(lambda x: x is None or isinstance(x, (str, Path)), [None]),
    "policy_kwargs": Domain(lambda x: any(x is right for right in RIGHT_KWARGS) or is_empty(x), RIGHT_KWARGS),
    "verbose": count(0, 1, 2, low=0),
    "seed": Domain(lambda x: x is None or is_whole(x, 0, 2**32 - 1), [None, 0, 1, np.int64(3)]),
    "device": Domain(lambda x: isinstance(x, (str, th.device)) and str(x) in ("cpu", "auto"), ["cpu", "auto"]),
    "compile": Domain(lambda x: isinstance(x, bool), [False]),
}
OF_ROLLOUTS = {
    "n_steps": count(2, 3, 8, work=True),
    "batch_size": count(2, 4, 100),
    "gae_lambda": FRACTION,
    "rollout_buffer_class": Domain(lambda x: x is None or x is StepBuffer or x is RolloutBuffer, [None, StepBuffer]),
    "rollout_buffer_kwargs": Domain(lambda x: x is None or is_empty(x), [None]),
}
OF_EPISODES = {
    "n_episodes": count(2, 3, 1, work=True),
    "credit": choice("reward_to_go", "trajectory"),
    "baseline": Domain(
        lambda x: callable(x) or choice("none", "constant", "time", "optimal", "state").allowed(x),
        ["none", "constant", "time", "optimal", "state"],
    ),
    "leave_one_out": SWITCH,
    "discount_weighting": SWITCH,
    "critic_target": choice("mc", "td", "lambda"),
    "gae_lambda": FRACTION,
    "n_critic_updates": count(1, 2, work=True),
    "batch_size": count(1, 8),
    "truncation": choice(None, "bootstrap", "terminal"),
    "max_episode_steps": count(2, 10, optional=True),
    "normalize_advantage": SWITCH,
    "max_grad_norm": number(0.5, low=0.0, above=True, optional=True),
    "learning_rate_kl_target": KL_TARGET,
}
OF_CRITICS = {
    "critic_target": choice("mc", "td", "lambda"),
    "n_critic_updates": count(1, 2, work=True),
    "normalize_advantage": SWITCH,
}
NOISE = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
Q_KWARGS = [None, {"net_arch": [4]}, {"net_arch": {"pi": [4], "qf": []}}, {"net_arch": [4], "n_critics": 1}]
Q_KWARGS += [{"net_arch": [4], "optimizer_class": th.optim.SGD}, {"net_arch": [4], "share_features_extractor": True}]


def _is_train_freq(value: Any) -> bool:
    if not isinstance(value, tuple):
        return is_whole(value)
    return len(value) == 2 and is_whole(value[0]) and value[1] in ("step", "episode")


def _is_ent_coef(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"auto(_0?\.\d+)?", value) is not None
    return is_number(value, 0.0)


OF_REPLAYS = {
    **{name: COMMON[name] for name in COMMON if name not in ("use_sde", "sde_sample_freq")},
    "policy": Domain(lambda x: isinstance(x, (str, type)) and x in ("MlpPolicy", MlpPolicy), ["MlpPolicy", MlpPolicy]),
    "policy_kwargs": Domain(lambda x: any(x is right for right in Q_KWARGS) or is_empty(x), Q_KWARGS),
    "buffer_size": count(50, 30, 10**5),
    "learning_starts": count(0, 5, 29, low=0, work=True),
    "batch_size": count(2, 4, 100, work=True),
    "tau": FRACTION,
    "train_freq": Domain(_is_train_freq, [1, 4, (3, "step"), np.int64(2)], True),
    "gradient_steps": count(1, 2, -1, 0, low=-1, work=True),
    "replay_buffer_class": Domain(lambda x: x is None or x in (ReplayBuffer, NStepReplayBuffer), [None, ReplayBuffer]),
    "replay_buffer_kwargs": Domain(
        lambda x: x is None or is_empty(x) or x == {"handle_timeout_termination": False},
        [None, {"handle_timeout_termination": False}],
    ),
    "optimize_memory_usage": SWITCH,
    "n_steps": count(1, 3),
    "n_action_samples": count(2, 4, low=2, optional=True, work=True),
    "ent_coef": Domain(_is_ent_coef, ["auto", "auto_0.1", 0.1, 0.0, np.float32(0.1)]),
    "target_update_interval": count(1, 2),
    "target_entropy": Domain(
        lambda x: (isinstance(x, str) and x == "auto") or is_number(x, high=math.log(2)), ["auto", 0.1, 0.5, 0]
    ),
}
OF_ANY = {name: COMMON[name] for name in COMMON if name not in ("gamma", "ent_coef", "use_sde", "sde_sample_freq")}
ARS_KWARGS = [None, {"net_arch": [4]}, {"with_bias": False}]
ARGUMENTS: dict[type, dict[str, Domain]] = {
    ExponentialWeights: {
        **OF_ANY,
        "policy": Domain(lambda x: isinstance(x, (str, type)) and x in ("MlpPolicy", TabularPolicy), ["MlpPolicy"]),
        "policy_kwargs": Domain(lambda x: x is None or is_empty(x), [None]),
        "learning_rate": Domain(
            lambda x: (isinstance(x, str) and x == "auto") or is_schedule(x, above=True), ["auto", 0.1, _half]
        ),
        "n_steps": count(1, 4, work=True),
        "gamma": FRACTION,
        "feedback": choice("bandit", "full"),
        "baseline": number(0.0, 1.0),
        "control_variate": Domain(
            lambda x: x is None or (isinstance(x, (list, np.ndarray, th.Tensor)) and np.shape(x) in ((2,), (4, 2))),
            [None, [0.1, 0.2], [[0.0, 1.0]] * 4],
        ),
    },
    SearchGradient: {
        **OF_ANY,
        "policy": Domain(lambda x: isinstance(x, str) and x in ("MlpPolicy", "LinearPolicy"), ["MlpPolicy"]),
        "policy_kwargs": Domain(lambda x: any(x is right for right in ARS_KWARGS) or is_empty(x), ARS_KWARGS),
        "n_directions": count(2, 4, work=True),
        "sigma": schedule(0.1, 0.05, above=True),
        "antithetic": SWITCH,
        "shaping": choice("none", "standardized", "ranks"),
        "baseline": choice("none", "mean"),
        "optimizer": choice("sgd", "adam"),
        "weight_decay": number(0.0, 0.01, low=0.0),
        "n_eval_episodes": count(1, 2, work=True),
        "alive_bonus_offset": number(0.0, -1.0),
        "zero_policy": SWITCH,
    },
    OffPolicyActorCritic: {
        **OF_REPLAYS,
        **{name: COMMON[name] for name in ("use_sde", "sde_sample_freq")},
        "use_sde_at_warmup": SWITCH,
        "gradient": choice("auto", "all_action", "sampled", "reparameterized"),
        "n_action_samples": count(2, 4, 1, optional=True, work=True),
        "weight_clip": number(1.0, 2.0, low=0.0, above=True, optional=True),
        "action_noise": Domain(lambda x: x is None or x is NOISE, [None, NOISE]),
    },
    DiscreteSAC: {**OF_REPLAYS},
    REINFORCE: {**COMMON, **OF_EPISODES},
    ISPG: {
        **COMMON,
        **OF_EPISODES,
        "gradient_steps": count(1, 2, work=True),
        "weights": choice("trajectory", "per_decision", "causal", "per_step"),
        "weight_clip": number(1.0, 2.0, low=0.0, above=True, optional=True),
        "self_normalize": SWITCH,
        "replay_batches": count(0, 1, 2, low=0),
        "mixture": choice("balance", "own"),
        "min_ess": FRACTION,
    },
    VPG: {
        **COMMON,
        **OF_ROLLOUTS,
        **OF_CRITICS,
        "critic": choice("v", "q"),
        "gradient": choice("sampled", "all_action"),
        "n_action_samples": count(2, 4, low=2, optional=True),
        "critic_target": choice("mc", "td", "lambda", "sarsa", "expected_sarsa", "n_step"),
        "advantage": choice("mc", "td", "n_step", "gae", "q"),
        "lookahead": count(5, 1),
        "max_grad_norm": number(0.5, low=0.0, above=True, optional=True),
        "learning_rate_kl_target": KL_TARGET,
    },
    NPG: {
        **COMMON,
        **OF_ROLLOUTS,
        **OF_CRITICS,
        "step_rule": choice("trust_region", "fixed"),
        "target_kl": number(0.01, 0.1, low=0.0, above=True),
        "step_size": number(0.1, 0.2, low=0.0, above=True),
        "fisher": choice("exact", "empirical"),
        "cg_max_steps": count(1, 15, work=True),
        "cg_damping": number(0.1, 0.0, low=0.0),
        "cg_tolerance": number(1e-10, 0.0, low=0.0),
        "line_search": SWITCH,
        "line_search_shrinking_factor": Domain(lambda x: is_number(x, 0.0, above=True) and x < 1, [0.8, 0.5]),
        "line_search_max_iter": count(10, 2, work=True),
        "sub_sampling_factor": count(1, 2),
    },
    ClippedCriticPPO: {
        **COMMON,
        **OF_ROLLOUTS,
        "n_epochs": count(1, 2, work=True),
        "clip_range": schedule(0.2, 0.1, above=True),
        "clip_range_vf": Domain(lambda x: x is None or is_schedule(x, above=True), [0.2, None, _half]),
        "normalize_advantage": choice("minibatch", "rollout", True, False),
        "vf_coef": number(0.5, 0.0),
        "max_grad_norm": number(0.5, low=0.0, above=True, optional=True),
        "learning_rate_kl_target": KL_TARGET,
        "target_kl": number(0.01, low=0.0, above=True, optional=True),
        "value_clip": choice("max", "clip"),
        "surrogate": choice("clip", "kl", "adaptive_kl", "none"),
        "kl_coef": number(1.0, 0.5, low=0.0, above=True),
        "desired_kl": number(0.01, low=0.0, above=True),
        "kl_direction": choice("old_new", "new_old"),
        "recompute_advantage": SWITCH,
    },
}
SMALL = {
    REINFORCE: {"n_episodes": 2},
    ISPG: {"n_episodes": 2, "gradient_steps": 2},
    VPG: {"n_steps": 4, "batch_size": 4, "n_critic_updates": 1},
    NPG: {"n_steps": 4, "batch_size": 4, "n_critic_updates": 1},
    ClippedCriticPPO: {"n_steps": 4, "batch_size": 4, "n_epochs": 2},
    OffPolicyActorCritic: {"buffer_size": 50, "learning_starts": 5, "batch_size": 4},
    DiscreteSAC: {"buffer_size": 50, "learning_starts": 5, "batch_size": 4},
    SearchGradient: {"n_directions": 2},
    ExponentialWeights: {},
}
"""Of what is not set."""

KEYS = {"reinforce": REINFORCE, "ispg": ISPG, "vpg": VPG, "npg": NPG, "ppo_cc": ClippedCriticPPO}
KEYS |= {"opac": OffPolicyActorCritic, "sacd": DiscreteSAC, "es": SearchGradient, "ew": ExponentialWeights}
OTHER_NAMES = {"use_sde": "gSDE", "algo": "algorithm", "environments": "environment", "seeds": "seed", "params": "key"}
"""What else messages call them."""


@dataclass(frozen=True)
class Example:
    """
    :param what: class of an algorithm, or zoo key; the changed study
    :param given: the arguments, keys or parts of it that are drawn
    :param wrong: which of them are outside of what is documented
    :param options: what else
    """

    what: Any
    given: dict[str, Any]
    wrong: list[str]
    options: dict[str, Any] = field(default_factory=dict)

    def must_be_named(self, error: ValueError, path: str = "") -> None:
        """One of those drawn: with several wrong ones, or a wrong combination beside them, any may be the first."""
        names = [*self.given, *(OTHER_NAMES[name] for name in self.given if name in OTHER_NAMES)]
        assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names), f"{names}: {error}"
        assert path in str(error), error


@st.composite
def drawn(draw: Any, domains: dict[str, Domain], pool: st.SearchStrategy[Any], suitable: Callable[[Any], bool]) -> Any:
    """Some arguments with values: right ones, or any at all."""
    names = draw(st.lists(st.sampled_from(sorted(domains)), max_size=5, unique=True))
    given = {}
    for name in names:
        usual = [value for value in domains[name].usual if suitable(value)]
        wrong_kwargs = st.sampled_from(WRONG_KWARGS) if name == "policy_kwargs" else st.nothing()
        given[name] = draw(st.sampled_from(usual) if draw(st.integers(0, 3)) else st.one_of(pool, wrong_kwargs))
    return given, [name for name, value in given.items() if not domains[name].allowed(value)]


@st.composite
def constructors(draw: Any) -> Example:
    """An algorithm with some arguments."""
    algorithm = draw(st.sampled_from(list(ARGUMENTS)))
    given, wrong = draw(drawn(ARGUMENTS[algorithm], anything, lambda _: True))
    suitable = {DiscreteSAC: ("discrete", "shifted"), ExponentialWeights: ("shifted",)}
    envs = suitable.get(algorithm, tuple(_ENVS))
    return Example(algorithm, given, wrong, {"env": draw(st.sampled_from(envs))})


class _Cheap(AnySpaces):
    """Always the same: numbers from 0, of a dtype that changes after the reset."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.float64), {}

    def step(self, action: Any) -> Any:
        _, *outcome = super().step(action)
        return np.full(self.observation_space.shape, self.t % 2, np.float32), *outcome


_UNIT, _CONTINUOUS = spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))
_ENVS = {
    name: DummyVecEnv([lambda o=observation, a=action: _Cheap(o, a)] * 2)  # type: ignore[misc]
    for name, (observation, action) in {
        "continuous": (_UNIT, _CONTINUOUS),
        "discrete": (_UNIT, spaces.Discrete(2)),
        "0-d": (_UNIT, spaces.Box(-1, 1, ())),
        "shifted": (spaces.Discrete(4, start=5), spaces.Discrete(2)),
    }.items()
}


def outcome_of_constructor(example: Example, trains: bool) -> str:
    """
    :param example: of :func:`constructors`
    :param trains: whether what has been made is to learn
    :return: ``"refused"``, ``"made"``, ``"learnt"``, or ``"stopped"`` for a model whose numbers are so large that its
        update is refused
    """
    algorithm, given = example.what, example.given
    small = {} if algorithm is ExponentialWeights else {"net_arch": [4]}
    arguments = {"policy": "MlpPolicy", "policy_kwargs": small, "device": "cpu"}
    arguments |= SMALL[algorithm] | given
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model = algorithm(env=_ENVS[example.options["env"]], **arguments)
        except ValueError as error:
            if "policy_kwargs" not in example.wrong:  # which the policy, torch or the optimizer refuses in its words
                example.must_be_named(error)
            return "refused"
        except (TypeError, RuntimeError, AttributeError, AssertionError, MemoryError) as error:
            # SB3's PPO refuses in its words, too: wrong values, and minibatches of 1 that cannot be normalised.
            of_sb3 = algorithm is ClippedCriticPPO and str(error).startswith(("`clip_range_vf`", "`batch_size`"))
            of_sb3 = of_sb3 or (isinstance(error, MemoryError) and given.get("buffer_size", 0) > 10**8)
            if not of_sb3 and "policy_kwargs" not in example.wrong:
                raise
            return "refused"
        assert not example.wrong, f"accepted: {example.wrong}"
        too_much = any(
            ARGUMENTS[algorithm][name].is_work and is_number(value) and value > 64 for name, value in given.items()
        )
        users_own = callable(given.get("baseline")) or model.compile or model.tensorboard_log is not None
        if not trains or too_much or users_own:
            return "made"
        try:
            model.learn(2 * model.n_steps * 2 + 1 if hasattr(model, "rollout_buffer_class") else 30)
        except ValueError as error:
            ends = callable(given.get("learning_rate")) and "learning_rate at progress" in str(error)
            large = any(is_number(x) and abs(x) > 100 for x in given.values()) and "finite" in str(error)
            if not ends and not large:
                raise
            assert all(p.isfinite().all() for p in model.policy.parameters())
            return "stopped"
        assert all(p.isfinite().all() for p in model.policy.parameters())
        return "learnt"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_lin(value: Any) -> bool:
    match = re.fullmatch(r"lin_([0-9.e-]+)", value) if isinstance(value, str) else None
    return match is not None and is_number(float(match[1]), 0.0)


def _is_plain_whole(value: Any) -> bool:
    return (
        type(value) in (int, float)
        and math.isfinite(max(min(value, 1e300), -1e300))
        and 1 <= value <= 10**15
        and value % 1 == 0
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


ZOO_KEYS = {
    "n_timesteps": Domain(_is_plain_whole, [1000, 1e5]),
    "n_envs": Domain(is_whole, [1, 4]),
    "vec_env": choice("dummy", "subproc", "gymnasium", "envpool"),
}
_OF_YAML = (int, float, str, bool, type(None), list, dict)


def _of_yaml(value: Any) -> bool:
    return type(value) in _OF_YAML and "optimizer_class" not in (value if isinstance(value, dict) else {})


def _in_a_configuration(name: str, domain: Domain) -> Domain:
    """As rl_zoo3 reads it."""
    if name in ("learning_rate", "clip_range", "clip_range_vf"):  # that of the bound is written by leaving it out
        return Domain(lambda x: _is_lin(x) or (x is not None and domain.allowed(x)), [0.1, "lin_0.1"])
    if name == "policy":
        return Domain(lambda x: _is_text(x) and (x == "MlpPolicy" or "." in x), ["MlpPolicy"])
    if name == "policy_kwargs":  # a network is not built, and rl_zoo3 evaluates a text
        return Domain(lambda x: x is None or _is_text(x) or _is_named(x), [{"net_arch": [4]}])
    if name == "rollout_buffer_kwargs":
        return Domain(lambda x: x is None or _is_named(x), [None])
    if name == "replay_buffer_kwargs":  # a text, too
        return Domain(lambda x: x is None or _is_text(x) or _is_named(x), [None])
    if name == "replay_buffer_class":
        return Domain(lambda x: x is None or _is_text(x), [None])
    return domain


CONFIGURATIONS = {
    key: ZOO_KEYS
    | {
        name: _in_a_configuration(name, domain)
        for name, domain in ARGUMENTS[algorithm].items()
        if name not in ("tensorboard_log", "seed", "verbose", "device")
    }
    for key, algorithm in KEYS.items()
}


@st.composite
def configurations(draw: Any) -> Example:
    """An entry of a configuration file."""
    algo = draw(st.sampled_from(list(CONFIGURATIONS)))
    given, wrong = draw(drawn(CONFIGURATIONS[algo], plain, _of_yaml))
    if draw(st.integers(0, 9)) == 0:
        given, wrong = {**given, "n_episode": 3}, [*wrong, "n_episode"]
    return Example(algo, given, wrong)


def outcome_of_configuration(example: Example) -> str:
    """
    :param example: of :func:`configurations`
    :return: ``"refused"`` or ``"accepted"``
    """
    entry = {"policy": "MlpPolicy", "n_timesteps": 1000, **example.given}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "mine.yml"
        path.write_text(yaml.safe_dump({"CartPole-v1": entry}))
        try:
            check_config(example.what, "CartPole-v1", str(path))
        except ValueError as error:
            example.must_be_named(error, str(path))
            return "refused"
    assert not example.wrong, f"accepted: {example.wrong}"
    return "accepted"


STUDY = {"environments": ["CartPole-v1"], "runs": {"a": {"algo": "reinforce"}, "b": {"algo": "ppo"}}}
_POSITIVE = Domain(lambda x: x is None or _is_plain_whole(x), [1, 10, 1e3])


def _are_seeds(value: Any) -> bool:
    if not isinstance(value, list):
        return _is_plain_whole(value) and value <= 10_000
    return bool(value) and len({str(x) for x in value}) == len(value) and all(is_whole(x, 0) for x in value)


STUDIES = {
    "environments": Domain(lambda x: x == ["CartPole-v1"], [["CartPole-v1"]]),
    "seeds": Domain(lambda x: x is None or x == {} or _are_seeds(x), [1, 2, [3, 5], {"CartPole-v1": 2}]),
    "n_timesteps": Domain(lambda x: _POSITIVE.allowed(x) or x == {}, [10, 1e5, {"CartPole-v1": 10}]),
    "threshold": Domain(lambda x: x is None or x == {} or (type(x) is not bool and is_number(x)), [400, 1.5]),
    "baseline": Domain(lambda x: x is None or x in ("a", "b"), ["a", None]),
    "gym_packages": Domain(lambda x: x == [], [[]]),
    "evaluation": Domain(lambda x: x == {}, [{}]),
    "frequency": Domain(lambda x: _POSITIVE.allowed(x) or x == {}, [5]),
    "episodes": Domain(lambda x: _POSITIVE.allowed(x) or x == {}, [2]),
    "deterministic": Domain(lambda x: isinstance(x, bool), [True, False]),
    "runs": Domain(lambda x: False, [STUDY["runs"]]),
    "algo": Domain(lambda x: x in ("reinforce", "ppo"), ["reinforce"]),
    "params": Domain(lambda x: x in (None, {}), [{}]),
}
for _key in ("n_timesteps", "seeds", "threshold", "runs"):
    _usual = STUDIES[_key].usual
    STUDIES[_key] = Domain(lambda x, a=STUDIES[_key].allowed, u=_usual: a(x) or any(x is y for y in u), _usual)  # type: ignore[misc]


@st.composite
def studies(draw: Any) -> Example:
    """A study, one to five of its parts drawn, and a parameter of a run."""
    given, wrong = draw(drawn(STUDIES, plain, lambda _: True))
    params = {}
    if draw(st.booleans()):
        domains = {name: d for name, d in CONFIGURATIONS["reinforce"].items() if name not in ("n_timesteps", "policy")}
        params, wrong_params = draw(drawn(domains, plain, _of_yaml))
        params = {name: value for name, value in params.items() if value is not None}
        wrong = wrong + [name for name in wrong_params if name in params]
    return Example("study", {**params, **given}, wrong, {"params": params, "given": given})


def outcome_of_study(example: Example) -> str:
    """
    :param example: of :func:`studies`
    :return: ``"refused"`` or ``"accepted"``
    """
    given = dict(example.options["given"])
    of_run = {key: given.pop(key) for key in ("algo", "params") if key in given}
    of_evaluation = {key: given.pop(key) for key in ("frequency", "episodes", "deterministic") if key in given}
    run = {"algo": "reinforce", "params": example.options["params"], **of_run}
    hidden = [key for key in ("params",) if key in of_run]  # what stood there has not been written
    wrong = [name for name in example.wrong if not (hidden and name in example.options["params"] and name not in given)]
    content = {**STUDY, "runs": {"a": run, "b": {"algo": "ppo"}}, "evaluation": of_evaluation, **given}
    if "runs" in given:
        wrong = [n for n in wrong if n not in ("algo", "params") and (n in given or n in of_evaluation)]
    if "evaluation" in given:
        wrong = [name for name in wrong if name not in of_evaluation]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "mine.yml"
        path.write_text(yaml.safe_dump(content))
        try:
            study = read_study(path)
        except ValueError as error:
            example.must_be_named(error, str(path))
            return "refused"
    assert not wrong, f"accepted: {wrong}"
    assert study.runs
    return "accepted"


OUTCOMES: dict[str, tuple[st.SearchStrategy[Example], Callable[[Example, int], str]]] = {
    "constructor": (constructors(), lambda example, n: outcome_of_constructor(example, trains=n % 2 == 0)),
    "configuration": (configurations(), lambda example, n: outcome_of_configuration(example)),
    "study": (studies(), lambda example, n: outcome_of_study(example)),
}
"""Kind → how its examples are drawn, and what comes of the n-th."""
