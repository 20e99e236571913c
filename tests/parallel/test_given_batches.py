"""
Claim: ranks that learn from given batches do what one process does with the concatenation of these batches: for every
algorithm, baseline, weight and surrogate, to 1e-10 in double precision; and the parameters of all ranks are equal to
the bit.
"""

from functools import partial

import pytest
import torch as th

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from tests.conformance.models import vector_of
from tests.parallel.batches import of_ranks, uneven
from tests.parallel.ranks import results_of

ALL = {"batch_size": 20}
"""One minibatch of everything: which rows go together is drawn."""

both_sizes = pytest.mark.parametrize("size", [2, 3])


def require_same_update(models, alone):
    """Let the ranks and the process alone take an update, and compare what has become of them."""

    def updated(rank):
        models[rank].train()
        return vector_of(models[rank]), counts_of(models[rank])

    (first, counts), *others = results_of(len(models), updated)
    before = vector_of(alone)
    alone.train()
    moved = (vector_of(alone) - before).abs().max()
    assert moved > 1e-5
    th.testing.assert_close(first, vector_of(alone), rtol=0, atol=1e-10)
    assert counts == counts_of(alone)
    for vector, of_other in others:
        assert th.equal(vector, first)
        assert of_other == counts


def counts_of(model):
    """The numbers of a model that an update changes beside its parameters."""
    logged = model.logger.name_to_value
    steps = {name: logged[f"train/{name}"] for name in ("gradient_steps", "line_search_success") if name in logged}
    return {"updates": model._n_updates, "kl_coef": getattr(model, "kl_coef", None), **steps}


@both_sizes
@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "none"},
        {"baseline": "constant"},
        {"baseline": "constant", "leave_one_out": False, "credit": "trajectory"},
        {"baseline": "constant", "credit": "trajectory"},
        {"baseline": "time"},
        {"baseline": "time", "leave_one_out": False, "discount_weighting": True},
        {"baseline": "optimal", "ent_coef": 0.1},
        {"baseline": "optimal", "leave_one_out": False},
        {"baseline": "state", "ent_coef": 0.1, "batch_size": 100},
        {
            "baseline": "state",
            "normalize_advantage": True,
            "max_grad_norm": 0.1,
            "critic_target": "lambda",
            "batch_size": 100,
        },
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_baselines(options, size):
    require_same_update(*of_ranks(REINFORCE, size, n_episodes=3, **options))


@both_sizes
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_advantage": True, "ent_coef": 0.1, "advantage": "mc"},
        {"critic": "q", "gradient": "all_action", "ent_coef": 0.1},
        {"critic": "q", "advantage": "q", "critic_target": "sarsa"},
    ],
    ids=["plain", "normalized", "all_action", "q"],
)
def test_vpg(options, size):
    env = partial(uneven, action_space="discrete" if "critic" in options else "box")
    require_same_update(*of_ranks(VPG, size, env, n_steps=10, **ALL, **options))


@both_sizes
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fisher": "empirical", "ent_coef": 0.1},
        {"line_search": True, "target_kl": 0.05, "normalize_advantage": False},
        {"step_rule": "fixed"},
    ],
    ids=["trust region", "empirical", "line search", "fixed"],
)
def test_npg(options, size):
    require_same_update(*of_ranks(NPG, size, n_steps=10, **ALL, **options))


@both_sizes
@pytest.mark.parametrize(
    "options",
    [
        {"clip_range_vf": 0.1},
        {"surrogate": "none", "normalize_advantage": "rollout", "ent_coef": 0.1},
        {"surrogate": "kl", "normalize_advantage": False, "kl_direction": "new_old"},
        {"surrogate": "adaptive_kl", "desired_kl": 1e-9, "recompute_advantage": True},
        {"target_kl": 1e-7, "n_epochs": 10},
    ],
    ids=["clip", "none", "kl", "adaptive_kl", "target_kl"],
)
def test_ppo(options, size):
    options = {"n_epochs": 3, "learning_rate": 1e-3, **ALL, **options}
    require_same_update(*of_ranks(ClippedCriticPPO, size, n_steps=10, **options))


@both_sizes
@pytest.mark.parametrize("weights", ["trajectory", "per_decision", "causal", "per_step"])
@pytest.mark.parametrize(
    "options",
    [
        {"replay_batches": 0, "self_normalize": True, "min_ess": 0.9},
        {"replay_batches": 1, "baseline": "time", "weight_clip": 1.1},
        {"replay_batches": 1, "baseline": "optimal", "mixture": "own", "min_ess": 0.5},
        {"replay_batches": 1, "baseline": "state", "self_normalize": True, "batch_size": 100, "ent_coef": 0.1},
    ],
    ids=["one batch", "balance", "optimal", "self-normalized"],
)
def test_ispg(options, weights, size):
    options = {"baseline": "constant", "learning_rate": 0.01, "gradient_steps": 5, "min_ess": 0.0, **options}
    require_same_update(*of_ranks(ISPG, size, n_episodes=3, weights=weights, n_rollouts=2, **options))
