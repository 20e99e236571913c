"""Claim: a batch that goes through a policy in parts leaves what it leaves as a whole, and the policy as it was."""

import pytest
import torch as th

from sb3_pgext import ClippedCriticPPO
from sb3_pgext.algorithms import evaluation as module
from sb3_pgext.algorithms import graphs
from sb3_pgext.algorithms.evaluation import any_distribution, evaluated

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
    monkeypatch.setattr(graphs, "_compile", lambda traced, arguments: lambda tensors: traced(*tensors))
    function, sizes = measures(policy)
    values, (named, observations) = evaluated(policy, function, (OBSERVATIONS, {"a": 2 * OBSERVATIONS}), key)
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


def test_dropout_and_modes(policy):
    policy.mlp_extractor.value_net.append(th.nn.Dropout(0.5))
    policy.train()
    policy.value_net.eval()
    before, state = [m.training for m in policy.modules()], th.get_rng_state()
    function, _ = measures(policy)
    first, second = (evaluated(policy, function, (OBSERVATIONS, {"a": OBSERVATIONS}))[0] for _ in range(2))
    assert th.equal(first, second)
    any_distribution(policy, OBSERVATIONS)
    assert th.equal(state, th.get_rng_state())
    assert [m.training for m in policy.modules()] == before


def test_the_modes_come_back_after_an_error(policy):
    policy.train()
    with pytest.raises(ZeroDivisionError):
        evaluated(policy, lambda observations: 1 / 0, (OBSERVATIONS,))
    assert policy.training
