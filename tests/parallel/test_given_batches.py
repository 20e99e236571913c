"""
Claim: ranks that learn from given batches do what one process does with the concatenation of these batches: for every
algorithm, baseline, weight and surrogate, to 1e-10 in double precision; and the parameters of all ranks are equal to
the bit.
"""

from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import (
    ISPG,
    NPG,
    REINFORCE,
    VPG,
    ClippedCriticPPO,
    ExponentialWeights,
    OffPolicyActorCritic,
    SearchGradient,
)
from sb3_pgext.algorithms.es import Population
from sb3_pgext.engine.nested import leaves, rebuilding
from tests.conformance.models import collected, small, vector_of
from tests.parallel.batches import Precise, fill, make_precise, of_ranks, uneven, whole
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


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.prove)])
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


@both_sizes
@pytest.mark.parametrize(
    "options",
    [
        {"antithetic": False, "shaping": "none", "baseline": "mean"},
        {"shaping": "none"},
        {"shaping": "standardized"},
        {"shaping": "ranks"},
    ],
    ids=["leave one out", "pairs", "standardized", "ranks"],
)
def test_search_gradient(options, size):
    """Each rank draws the noise of all others anew."""
    options = {"policy": "LinearPolicy", "n_directions": 3, **options}
    models = [small(SearchGradient, uneven(2, "discrete"), **options) for _ in range(size)]
    alone = small(SearchGradient, uneven(2, "discrete"), **whole(options, size))

    def updated(rank):
        model = models[rank]
        model.set_random_seed(0)
        _, callback = model._setup_learn(10**9)
        model.collect_rollouts(model.env, callback)
        model.train()
        return vector_of(model), model.population

    results = results_of(size, updated)
    noise, fitness = (th.cat([getattr(of_rank, name) for _, of_rank in results]) for name in ("noise", "fitness"))
    assert len(noise.unique(dim=0)) == len(noise)
    alone.population = Population(noise, results[0][1].sigma, fitness)
    alone.train()
    for vector, _ in results:
        th.testing.assert_close(vector, vector_of(alone))
        assert th.equal(vector, results[0][0])


@both_sizes
def test_bandit_feedback(size):
    envs = [make_vec_env("sb3_pgext/Bandit-v0", 2) for _ in range(size)]
    models = [collected(ExponentialWeights("MlpPolicy", env, n_steps=4, seed=r)) for r, env in enumerate(envs)]
    alone = ExponentialWeights("MlpPolicy", make_vec_env("sb3_pgext/Bandit-v0", 2 * size), n_steps=4, seed=size)
    alone._setup_learn(10**9)
    fill(alone.rollout_buffer, [model.rollout_buffer for model in models], np.float32)
    alone.collector.last_dones = np.concatenate([model.collector.last_dones for model in models])

    def updated(rank):
        models[rank].train()
        return models[rank].policy.logits

    results = results_of(size, updated)
    alone.train()
    for logits in results:
        th.testing.assert_close(logits, alone.policy.logits)
        assert th.equal(logits, results[0])


@both_sizes
@pytest.mark.parametrize("space", ["box", "discrete"])
@pytest.mark.parametrize("gradient", ["auto", "sampled"])
def test_critics_of_q_with_a_replay(gradient, space, size):
    """Also the temperature, and the targets that follow."""
    options = {"gradient": gradient, "learning_starts": 0, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"}
    options["policy_kwargs"] = {"net_arch": [8], "features_extractor_class": Precise}
    models = [OffPolicyActorCritic("MlpPolicy", uneven(2, space), seed=r, **options) for r in range(size)]
    alone = OffPolicyActorCritic("MlpPolicy", uneven(2, space), **whole(options, size))
    batches, noises = [], []
    for model in models:
        model.learn(10)
        batches.append(model._sample(8))
        noises.append([model._noise(8, model._n_draws), model._noise(8)])
    for model in (*models, alone):
        make_precise(model.policy)
        model.log_ent_coef.data = models[0].log_ent_coef.detach().double()
        model.set_parameters(models[0].get_parameters())
    give(alone, rebuilt(batches), [rebuilt(of_ranks) for of_ranks in zip(*noises, strict=True)])

    def updated(rank):
        give(models[rank], batches[rank], noises[rank])
        models[rank].train(3, 8)
        return vector_of(models[rank]), models[rank].log_ent_coef.item()

    (first, ent_coef), *others = results_of(size, updated)
    alone.train(3, 8 * size)
    th.testing.assert_close(first, vector_of(alone), rtol=0, atol=1e-10)
    assert ent_coef == pytest.approx(alone.log_ent_coef.item(), abs=1e-10)
    for vector, of_other in others:
        assert th.equal(vector, first)
        assert of_other == ent_coef


def rebuilt(parts):
    """Minibatches, or noise of K draws, one after the other."""
    dim = (
        1
        if isinstance(parts[0], tuple) and not hasattr(parts[0], "_fields") and parts[0] and parts[0][0].dim() == 3
        else 0
    )
    columns = zip(*map(leaves, parts), strict=True)
    return rebuilding(parts[0])(th.cat(column, dim) if th.is_tensor(column[0]) else column[0] for column in columns)


def give(model, batch, noises):
    """Let a model learn from this minibatch and this noise, each time."""
    model._sample = lambda batch_size: batch
    model._noise = lambda batch_size, n_draws="next": noises[n_draws == "next"]


@pytest.mark.parametrize("lengths", [(30, 30), (10, 35), (1, 30, 12)])
def test_minibatches_of_ranks_with_different_numbers_of_steps(lengths, monkeypatch):
    """A rank whose minibatches are used up waits for the others; each row counts the same."""
    monkeypatch.setattr(th, "randperm", lambda n, **options: th.arange(n))
    data = [(th.rand(n, 3), th.rand(n)) for n in lengths]
    models = [small(REINFORCE, uneven(2), baseline="state", n_critic_updates=2, batch_size=10) for _ in lengths]

    def updated(rank):
        observations, targets = data[rank]
        models[rank]._fit_critic(observations, targets, targets)
        return vector_of(models[rank])

    first, *others = results_of(len(lengths), updated)
    policy = small(REINFORCE, uneven(2)).policy
    for _ in range(2):
        for start in range(0, max(lengths), 10):
            parts = [(x[start : start + 10], y[start : start + 10]) for x, y in data]
            x, y = (th.cat(column) for column in zip(*parts, strict=True))
            policy.optimizer.zero_grad()
            (policy.predict_values(x).flatten() - y).square().mean().backward()
            policy.optimizer.step()
    th.testing.assert_close(first, th.nn.utils.parameters_to_vector(policy.parameters()).detach())
    assert all(th.equal(vector, first) for vector in others)


def test_minibatches_of_a_rollout(monkeypatch):
    """The k-th minibatches of all ranks are one, and Ψ is standardised over them."""
    size, steps, batch_size = 2, 20, 8
    options = {"n_steps": 10, "n_epochs": 2, "batch_size": batch_size, "learning_rate": 1e-3}
    models, alone = of_ranks(ClippedCriticPPO, size, **options)
    of_rank = np.random.RandomState(0).permutation(steps)
    union = [
        rank * steps + k
        for start in range(0, steps, batch_size)
        for rank in range(size)
        for k in of_rank[start : start + batch_size]
    ]
    monkeypatch.setattr(np.random, "permutation", lambda n: of_rank if n == steps else np.array(union))
    require_same_update(models, alone)
