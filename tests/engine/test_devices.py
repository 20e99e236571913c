"""
Claim: on every device, what is compiled computes what the uncompiled does; on a GPU each graph is a CUDA graph, and
neither way waits for the GPU in each minibatch.

On the CPU it is only traced: ``test_compiled.py`` compiles there.
"""

import warnings

import pytest
import torch as th

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.engine import graphs as module
from sb3_pgext.rollouts.acting import unvalidated_distributions
from tests.conformance.models import collected, make_env, small, vector_of
from tests.environments import ACTIONS, DICT, IMAGE, VECTOR
from tests.tracing import traced_only

SETTINGS = {
    REINFORCE: {"batch_size": 10},
    VPG: {},
    NPG: {},
    ClippedCriticPPO: {"n_epochs": 3},
    ISPG: {"batch_size": 10},
}
OBSERVATIONS = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE, "MultiInputPolicy": DICT}
family = pytest.mark.parametrize("algorithm", SETTINGS, ids=lambda algorithm: algorithm.__name__)


@pytest.fixture(autouse=True)
def _traced_only_on_the_cpu(device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(module, "_compile", traced_only)


@pytest.fixture
def skipped():
    """How often a graph has not become a CUDA graph since the test began."""
    from torch._dynamo.utils import counters

    before = counters["inductor"]["cudagraph_skips"]
    return lambda: counters["inductor"]["cudagraph_skips"] - before


def model_of(algorithm, device, compile, action="box", policy="MlpPolicy", **options):
    env = make_env(OBSERVATIONS[policy], ACTIONS[action])
    return small(algorithm, env, policy, device=device, compile=compile, **SETTINGS[algorithm] | options)


def learnt(algorithm, device, compile, n_steps=80, **options):
    return model_of(algorithm, device, compile, **options).learn(n_steps)


@family
@pytest.mark.parametrize(
    ("policy", "action"),
    [
        ("MlpPolicy", "discrete"),
        ("MlpPolicy", "box"),
        ("CnnPolicy", "discrete"),
        ("MultiInputPolicy", "multi_discrete"),
    ],
)
@pytest.mark.filterwarnings("error:compile=True")
def test_compiled_training_is_the_same(algorithm, policy, action, device):
    start = vector_of(model_of(algorithm, device, True, action, policy))
    # Two updates: in later ones of NPG, rounding turned a ReLU over on a GPU, which led a twelfth of the way elsewhere.
    eager, model = (learnt(algorithm, device, c, n_steps=40, action=action, policy=policy) for c in (False, True))
    assert len(module._graphs[model.policy]) >= 2
    assert None not in module._graphs[model.policy].values()
    wanted, found = vector_of(eager), vector_of(model)
    assert not th.equal(found, start)
    assert (found - wanted).norm() < 1e-3 * (wanted - start).norm()


@family
@pytest.mark.filterwarnings("error:compile=True")
def test_each_graph_is_a_cuda_graph(algorithm, device, skipped):
    learnt(algorithm, device, True)
    assert skipped() == 0


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.filterwarnings("error:compile=True")
def test_acting_draws_the_same_numbers(action, device):
    found = []
    for compile in (False, True):
        model = collected(model_of(ClippedCriticPPO, device, compile, action, n_steps=40))
        state = th.cuda.get_rng_state() if device == "cuda" else th.get_rng_state()
        found.append((model.rollout, state))
    (wanted, of_eager), (rollout, of_compiled) = found
    assert th.equal(of_eager, of_compiled)
    for name in ("actions", "values", "log_prob"):
        assert th.allclose(getattr(rollout, name), getattr(wanted, name), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error:compile=True")
def test_what_a_step_of_acting_returns_stays(device):
    """A CUDA graph writes its results into the same memory each time."""
    model = collected(model_of(ClippedCriticPPO, device, True, n_steps=10))
    assert len(model.rollout.log_prob.unique()) == 20


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("policy", OBSERVATIONS)
@pytest.mark.filterwarnings("error:compile=True")
def test_the_same_products_with_the_fisher_matrix(policy, fisher, device):
    model = collected(model_of(NPG, device, False, "discrete", policy, fisher=fisher))
    steps, parameters = model._sampled_steps(model.rollout), list(policy_parameters(model.policy).values())
    products = []
    for model.compile in (False, True):
        with unvalidated_distributions():
            batch = (steps.observations, steps.actions)
            products.append(model.engine.fisher(parameters, model._geometry, batch, fisher))
    for _ in range(3):
        v = th.randn(sum(p.numel() for p in parameters), device=device)
        wanted, found = (product(v) for product in products)
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def waits_of_update(device, compile, batch_size):
    """How often the second update of a training waits for the GPU."""
    model = model_of(ClippedCriticPPO, device, compile, batch_size=batch_size).learn(20)
    collected(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            th.cuda.set_sync_debug_mode("warn")
        try:
            model.train()
        finally:
            if device == "cuda":
                th.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


@pytest.mark.parametrize("compile", [False, True])
def test_minibatches_do_not_wait_for_the_gpu(device, compile):
    of_few, of_many = (waits_of_update(device, compile, batch_size) for batch_size in (10, 2))
    assert of_many == of_few
