"""Claim: rl_zoo3 knows our algorithms, and searches only among parameters that their constructors accept."""

from typing import Any

import optuna
import pytest
import rl_zoo3
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_pgext import (
    A3C,
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
from sb3_pgext.zoo import ALGORITHMS


def test_our_algorithms_are_in_rl_zoo3s_tables() -> None:
    assert ALGORITHMS["reinforce"] is REINFORCE
    assert ALGORITHMS["vpg"] is VPG
    assert ALGORITHMS["npg"] is NPG
    assert ALGORITHMS["ppo_cc"] is ClippedCriticPPO
    assert ALGORITHMS["ispg"] is ISPG
    assert ALGORITHMS["opac"] is OffPolicyActorCritic
    assert ALGORITHMS["sacd"] is DiscreteSAC
    assert ALGORITHMS["es"] is SearchGradient
    assert ALGORITHMS["ew"] is ExponentialWeights
    assert ALGORITHMS["a3c"] is A3C
    for algo, algorithm in ALGORITHMS.items():
        assert ALGOS[algo] is algorithm
        assert rl_zoo3.ALGOS[algo] is algorithm
        assert algo in HYPERPARAMS_SAMPLER
        assert algo in HYPERPARAMS_CONVERTER


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"critic_target": "lambda"},
        {"critic_target": "td"},
        *({"baseline": baseline} for baseline in ("state", "none", "constant", "time", "optimal")),
    ],
)
def test_whatever_is_sampled_for_reinforce_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():  # As rl_zoo3 does.
        study.set_user_attr(key, str(value))
    for _ in range(10):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["reinforce"](trial, 1, 8, {})
        REINFORCE("MlpPolicy", "CartPole-v1", device="cpu", **config | sampled)
        # --trial-id gets its parameters back from the numbers that the study has kept.
        assert HYPERPARAMS_CONVERTER["reinforce"](trial.params) == sampled


@pytest.mark.parametrize(
    "config",
    [
        {},
        *({"surrogate": surrogate} for surrogate in ("kl", "adaptive_kl", "none")),
        *({"clip_range_vf": 0.2, "value_clip": value_clip} for value_clip in ("clip", "max")),
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_whatever_is_sampled_for_ppo_cc_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, str(value))
    for _ in range(10):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["ppo_cc"](trial, 1, 8, {})
        ClippedCriticPPO("MlpPolicy", "CartPole-v1", device="cpu", **config | sampled)
        assert HYPERPARAMS_CONVERTER["ppo_cc"](trial.params) == sampled


@pytest.mark.parametrize("advantage", [None, "mc", "td", "n_step", "gae"])
@pytest.mark.parametrize("critic_target", [None, "mc", "lambda"])
def test_whatever_is_sampled_for_vpg_is_accepted_beside_its_configuration(
    advantage: str | None, critic_target: str | None
) -> None:
    choices = {"advantage": advantage, "critic_target": critic_target}
    config: dict[str, Any] = {key: value for key, value in choices.items() if value is not None}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, value)
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["vpg"](trial, 1, 8, {})
        VPG("MlpPolicy", "CartPole-v1", device="cpu", **config | sampled)
        assert HYPERPARAMS_CONVERTER["vpg"](trial.params) == sampled
        assert ("lookahead" in sampled) == (advantage == "n_step")
        assert ("gae_lambda" in sampled) == (advantage in (None, "gae") or critic_target in (None, "lambda"))


@pytest.mark.parametrize("action_samples", [{}, {"n_action_samples": 4}])
@pytest.mark.parametrize("config", [{"gradient": "all_action"}, {"critic_target": "n_step"}, {"advantage": "q"}])
def test_whatever_is_sampled_for_vpg_with_a_critic_of_q_is_accepted(
    config: dict[str, Any], action_samples: dict[str, Any]
) -> None:
    config = {"critic": "q", **config, **action_samples}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, value)
    for _ in range(5):
        sampled = HYPERPARAMS_SAMPLER["vpg"](study.ask(), 1, 8, {})
        VPG("MlpPolicy", "Pendulum-v1" if action_samples else "CartPole-v1", device="cpu", **config | sampled)
        assert ("lookahead" in sampled) == ("critic_target" in config)
        assert ("n_action_samples" in sampled) == bool(action_samples)
        assert ("normalize_advantage" in sampled) == ("gradient" not in config)


@pytest.mark.parametrize("config", [{}, {"step_rule": "fixed"}, {"step_rule": "fixed", "line_search": True}])
def test_whatever_is_sampled_for_npg_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, value)
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["npg"](trial, 1, 8, {})
        NPG("MlpPolicy", "CartPole-v1", device="cpu", **config | sampled)
        assert HYPERPARAMS_CONVERTER["npg"](trial.params) == sampled
        assert ("step_size" in sampled) == ("step_rule" in config)


@pytest.mark.parametrize("config", [{}, {"weights": "per_decision"}, {"weights": "causal", "baseline": "optimal"}])
def test_whatever_is_sampled_for_ispg_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, str(value))
    for _ in range(10):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["ispg"](trial, 1, 8, {})
        ISPG("MlpPolicy", "CartPole-v1", device="cpu", **config | sampled)
        assert HYPERPARAMS_CONVERTER["ispg"](trial.params) == sampled


@pytest.mark.parametrize(
    ("algo", "env_id", "config", "sampled_too"),
    [
        ("opac", "Pendulum-v1", {}, set()),
        ("opac", "Pendulum-v1", {"ent_coef": 0.1}, {"ent_coef"}),
        ("opac", "Pendulum-v1", {"gradient": "all_action", "n_action_samples": 4}, {"n_action_samples"}),
        ("opac", "CartPole-v1", {"gradient": "sampled", "ent_coef": "auto_0.1"}, {"weight_clip"}),
        ("sacd", "CartPole-v1", {}, {"target_entropy"}),
        ("sacd", "CartPole-v1", {"ent_coef": 0.01}, {"ent_coef"}),
    ],
)
def test_whatever_is_sampled_for_a_replay_is_accepted_beside_its_configuration(
    algo: str, env_id: str, config: dict[str, Any], sampled_too: set[str]
) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, str(value))
    for _ in range(10):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER[algo](trial, 1, 8, {})
        assert {"ent_coef", "n_action_samples", "target_entropy", "weight_clip"} & sampled.keys() == sampled_too
        assert 1 <= sampled["gradient_steps"] <= sampled["train_freq"]
        assert sampled["policy_kwargs"]["net_arch"].keys() == {"pi", "qf"}
        assert HYPERPARAMS_CONVERTER[algo](trial.params) == sampled
        ALGORITHMS[algo]("MlpPolicy", env_id, device="cpu", **config | sampled)


@pytest.mark.parametrize("config", [{}, {"feedback": "full"}])
def test_whatever_is_sampled_for_ew_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for key, value in config.items():
        study.set_user_attr(key, value)
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["ew"](trial, 1, 8, {})
        ExponentialWeights("MlpPolicy", "sb3_pgext/Chain-v0", device="cpu", **config | sampled)
        assert HYPERPARAMS_CONVERTER["ew"](trial.params) == sampled


def test_the_critics_numbers_are_sampled_where_there_is_a_critic() -> None:
    def sampled(**config: str) -> dict[str, Any]:
        study = optuna.create_study()
        for key, value in config.items():
            study.set_user_attr(key, value)
        return HYPERPARAMS_SAMPLER["reinforce"](study.ask(), 1, 8, {})

    assert {"n_critic_updates", "batch_size"} <= sampled(baseline="state").keys()
    assert not {"n_critic_updates", "batch_size"} & sampled(baseline="none").keys()
    assert "gae_lambda" in sampled(critic_target="lambda")
    assert "gae_lambda" not in sampled(critic_target="mc")


def test_conversion_of_powers_and_distances_from_one() -> None:
    sampled = {
        "n_episodes_pow": 4,
        "one_minus_gamma": 0.25,
        "ent_coef": 0.5,
        "net_arch": "tiny",
        "activation_fn": "relu",
    }
    converted = HYPERPARAMS_CONVERTER["reinforce"](sampled)
    policy_kwargs = converted.pop("policy_kwargs")
    assert converted == {"n_episodes": 16, "gamma": 0.75, "ent_coef": 0.5}
    assert policy_kwargs["net_arch"] == {"pi": [64], "vf": [64]}
    assert policy_kwargs["activation_fn"].__name__ == "ReLU"


def test_whatever_is_sampled_for_es_is_accepted() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["es"](trial, 1, 8, {})
        SearchGradient("LinearPolicy", "CartPole-v1", device="cpu", **sampled)
        assert HYPERPARAMS_CONVERTER["es"](trial.params) == sampled


@pytest.mark.parametrize("config", [{}, {"optimizer": "adam", "synchronous": True}])
def test_whatever_is_sampled_for_a3c_is_accepted_beside_its_configuration(config: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["a3c"](trial, 1, 8, {})
        A3C("MlpPolicy", "CartPole-v1", **config | sampled)
        assert HYPERPARAMS_CONVERTER["a3c"](trial.params) == sampled
