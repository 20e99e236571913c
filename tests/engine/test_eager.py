"""Claim: a batch that goes through a policy in parts leaves what it leaves as a whole, and the policy as it was."""

import pytest
import torch as th

from sb3_pgext import ISPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms.distributions import any_distribution
from sb3_pgext.engine import CompiledEngine, Engine, graphs
from sb3_pgext.engine import eager as module
from tests.tracing import traced_only

OBSERVATIONS = th.randn(10, 3)


@pytest.fixture
def policy():
    return ClippedCriticPPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").policy


def measures(policy):
    sizes = []

    def of_rows(observations, named):
        sizes.append(len(observations))
        return policy.predict_values(observations), (named["a"], observations)

    return of_rows, sizes


@pytest.mark.parametrize("at_once", [4, 5, 10, 100])
@pytest.mark.parametrize("key", [None, "key"])
def test_parts_of_a_batch(policy, at_once, key, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    monkeypatch.setattr(graphs, "_compile", traced_only)
    function, sizes = measures(policy)
    values, (named, observations) = CompiledEngine(policy, "").evaluate(
        function, (OBSERVATIONS, {"a": 2 * OBSERVATIONS}), key
    )
    assert th.allclose(values, policy.predict_values(OBSERVATIONS), atol=1e-6)
    assert th.equal(named, 2 * observations)
    assert th.equal(observations, OBSERVATIONS)
    assert not values.requires_grad
    if key is None:
        assert max(sizes) == min(at_once, 10)
        assert sum(sizes) == 10
    else:
        (graph,) = graphs._graphs[policy].values()
        assert graph is not None
        assert max(sizes) == min(at_once, 10), "traced for the rows of a part"
        assert len(sizes) == (2 if at_once == 4 else 1), "beside that, only what is shorter is not in the graph"


def test_dropout_and_modes(policy):
    policy.mlp_extractor.value_net.append(th.nn.Dropout(0.5))
    policy.train()
    policy.value_net.eval()
    before, state = [m.training for m in policy.modules()], th.get_rng_state()
    function, _ = measures(policy)
    first, second = (Engine(policy).evaluate(function, (OBSERVATIONS, {"a": OBSERVATIONS}))[0] for _ in range(2))
    assert th.equal(first, second)
    any_distribution(policy, OBSERVATIONS)
    assert th.equal(state, th.get_rng_state())
    assert [m.training for m in policy.modules()] == before


def test_the_modes_come_back_after_an_error(policy):
    policy.train()
    with pytest.raises(ZeroDivisionError):
        Engine(policy).evaluate(lambda observations: 1 / 0, (OBSERVATIONS,))
    assert policy.training


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (VPG, {"n_steps": 100, "ent_coef": 0.1}),
        (REINFORCE, {"n_episodes": 4, "baseline": "optimal", "ent_coef": 0.1}),
        (REINFORCE, {"n_episodes": 4, "baseline": "state", "ent_coef": 0.1}),
        (ISPG, {"n_episodes": 4, "ent_coef": 0.1}),
    ],
)
def test_gradients_of_large_batches(cls, options, monkeypatch):
    """In parts, they are those of the whole batch."""
    model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **options)
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 100)
    whole = model.estimate_gradient()
    monkeypatch.setattr(module, "AT_ONCE", 16)
    assert not th.equal(whole, th.zeros_like(whole))
    assert th.allclose(model.estimate_gradient(), whole, rtol=1e-4, atol=1e-6)


def test_what_looks_at_other_rows_sees_all_of_them(policy, monkeypatch):
    """A policy with a part of a user's own has the whole batch at once while it learns."""
    monkeypatch.setattr(module, "AT_ONCE", 4)
    function, sizes = measures(policy)
    batch = (OBSERVATIONS, {"a": OBSERVATIONS})
    Engine(policy).differentiable(function, batch)
    assert sizes == [4, 4, 2]
    sizes.clear()
    policy.mlp_extractor.policy_net.append(type("Own", (th.nn.Identity,), {"__module__": "own"})())
    Engine(policy).differentiable(function, batch)
    assert sizes == [10]


@pytest.mark.parametrize("norm", [th.nn.BatchNorm1d(64), th.nn.BatchNorm1d(64, track_running_stats=False)])
def test_batch_norm_sees_the_whole_batch(norm, monkeypatch):
    model = VPG("MlpPolicy", "CartPole-v1", n_steps=100, seed=0, device="cpu")
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 100)
    model.policy.mlp_extractor.policy_net.append(norm)
    whole = model.estimate_gradient()
    monkeypatch.setattr(module, "AT_ONCE", 16)
    assert th.equal(model.estimate_gradient(), whole)


def test_a_module_that_changes_its_input(monkeypatch):
    """It does so once, also where its output is computed twice."""
    model = VPG("MlpPolicy", "CartPole-v1", n_steps=100, seed=0, device="cpu")
    model.policy.mlp_extractor.policy_net.insert(0, th.nn.ELU(inplace=True))
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 100)
    monkeypatch.setattr(module, "AT_ONCE", 16)
    in_parts = model.estimate_gradient()
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    assert th.allclose(in_parts, model.estimate_gradient(), rtol=1e-4, atol=1e-6)


def test_the_networks_keep_less_of_large_batches(policy, monkeypatch):
    """Their activations are not there when all rows have gone through."""
    function, _ = measures(policy)
    kept = []
    for at_once in (10, 4):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        saved = []
        with th.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            Engine(policy).differentiable(function, (OBSERVATIONS, {"a": OBSERVATIONS}))
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 10
