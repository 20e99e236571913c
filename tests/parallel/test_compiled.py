"""Claim: compiled ranks do what eager ones do, up to rounding: a graph ends at the gradient, and another one steps."""

import warnings

import pytest
import torch as th

from sb3_pgext import NPG, REINFORCE, ClippedCriticPPO, DiscreteSAC
from sb3_pgext.engine import graphs
from tests.conformance.models import small, vector_of
from tests.parallel.batches import uneven
from tests.parallel.ranks import results_of
from tests.tracing import traced_only

SMALL = {"policy_kwargs": {"net_arch": [8]}}
OF_Q = {"learning_starts": 20, "batch_size": 8, "device": "cpu", "train_freq": 10, "gradient_steps": 4, **SMALL}
MAKE = {
    "reinforce": lambda **on: small(REINFORCE, uneven(2), baseline="state", batch_size=10, **on, **SMALL),
    "ppo_cc": lambda **on: small(ClippedCriticPPO, uneven(2), clip_range_vf=0.1, **on, **SMALL),
    "target_kl": lambda **on: small(ClippedCriticPPO, uneven(2), n_epochs=9, target_kl=1e-5, **on, **SMALL),
    "npg": lambda **on: small(NPG, uneven(2), **on, **SMALL),
    "sacd": lambda **on: DiscreteSAC("MlpPolicy", uneven(2, "discrete"), seed=0, **on, **OF_Q),
}


@pytest.mark.parametrize("key", [*MAKE, pytest.param("ppo_cc", marks=pytest.mark.compiler, id="compiled for real")])
def test_the_same_up_to_rounding(key, request, monkeypatch):
    """
    Also where no step is taken any more, and where only some ranks have a minibatch of the shape of the graph: all take
    the same step, to the bit.
    """
    if "compiler" not in request.keywords:
        monkeypatch.setattr(graphs, "_compile", traced_only)

    def trained(rank, compiled):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # nothing runs uncompiled
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            model = MAKE[key](compile=compiled).learn(200)
        return vector_of(model), model._n_updates

    compiled, eager = results_of(2, trained, True), results_of(2, trained, False)
    assert th.equal(compiled[0][0], compiled[1][0])
    th.testing.assert_close(compiled[0][0], eager[0][0], atol=1e-4, rtol=1e-3)
    assert compiled[0][1] == eager[0][1]
