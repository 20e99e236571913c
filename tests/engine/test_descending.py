"""Claim: many steps in a row are the steps of the user's optimizer, to the bit, and leave it as they would."""

import math

import pytest
import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_pgext.engine import CompiledEngine, Engine

OPTIMIZERS = {
    "Adam": (th.optim.Adam, {"lr": 0.01, "eps": 1e-5}),
    "Adam with decay": (th.optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.9), "maximize": True}),
    "AdamW": (th.optim.AdamW, {"lr": 0.01}),
    "Adam, decoupled": (th.optim.Adam, {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    "amsgrad": (th.optim.Adam, {"amsgrad": True}),
    "fused": (th.optim.Adam, {"fused": True}),
    "foreach": (th.optim.AdamW, {"foreach": True}),
    "SGD": (th.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "RMSprop": (RMSpropTFLike, {}),
}


def network_and_optimizer(name):
    th.manual_seed(0)
    network = th.nn.Sequential(th.nn.Linear(3, 5), th.nn.Tanh(), th.nn.Linear(5, 1))
    optimizer_class, options = OPTIMIZERS[name]
    return network, optimizer_class(network.parameters(), **options)


def minibatches(n_steps):
    generator = th.Generator().manual_seed(1)
    return [th.randn(7, 3, generator=generator) for _ in range(n_steps)]


def loss_of(network):
    def loss_function(minibatch):
        loss = 10 * network(minibatch).square().mean()
        return loss, loss.detach()

    return loss_function


def one_by_one(network, optimizer, parameters, max_norm, n_steps):
    norms = []
    for minibatch in minibatches(n_steps):
        loss, _ = loss_of(network)(minibatch)
        optimizer.zero_grad(set_to_none=True)
        for p, gradient in zip(parameters, th.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient
        norms.append(th.nn.utils.clip_grad_norm_(parameters, max_norm))
        optimizer.step()
    return norms


def in_a_row(network, optimizer, parameters, max_norm, n_steps):
    with Engine(network).descending(optimizer, parameters, loss_of(network), max_norm) as descend:
        return [descend(minibatch)[1] for minibatch in minibatches(n_steps)]


@pytest.mark.parametrize("part", ["all", "last layer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_steps_to_the_bit(name, part):
    networks, optimizers, norms = [], [], []
    for method in (one_by_one, in_a_row):
        network, optimizer = network_and_optimizer(name)
        one_by_one(network, optimizer, list(network.parameters()), math.inf, n_steps=3)  # so that there are moments
        parameters = list(network.parameters()) if part == "all" else list(network[2].parameters())
        norms.append(method(network, optimizer, parameters, 0.1, n_steps=4))
        norms[-1] += method(network, optimizer, parameters, math.inf, n_steps=2)
        one_by_one(network, optimizer, list(network.parameters())[:1], math.inf, n_steps=1)
        networks.append(network)
        optimizers.append(optimizer)
    assert norms[0] == norms[1]
    assert max(norms[0]) > 0.1  # some were shortened
    for p, q in zip(*(network.parameters() for network in networks), strict=True):
        assert th.equal(p, q)
        assert q.untyped_storage().nbytes() == 4 * q.numel()
    first, second = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert first.keys() == second.keys()
    for index, state in first.items():
        assert state.keys() == second[index].keys()
        assert all(th.equal(th.as_tensor(x), th.as_tensor(second[index][key])) for key, x in state.items())


@pytest.mark.parametrize("name", ["Adam", "Adam with decay", "AdamW"])
def test_fused_steps_are_the_same_up_to_rounding(name):
    networks = []
    for fused in (False, True):
        network, optimizer = network_and_optimizer(name)
        parameters = list(network[2].parameters())
        one_by_one(network, optimizer, list(network.parameters()), math.inf, n_steps=2)
        with Engine(network).descending(optimizer, parameters, loss_of(network), 0.1, fused=fused) as descend:
            for minibatch in minibatches(5):
                descend(minibatch)
        assert {float(optimizer.state[p]["step"]) for p in network.parameters()} == {2.0, 7.0}
        networks.append(network)
    for p, q in zip(*(network.parameters() for network in networks), strict=True):
        th.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_from_the_first_step_and_after_an_error():
    network, optimizer = network_and_optimizer("Adam")
    same_network, same_optimizer = network_and_optimizer("Adam")

    def three_steps_and_an_error():
        with Engine(network).descending(optimizer, list(network.parameters()), loss_of(network)) as descend:
            assert [descend(batch)[1:] for batch in minibatches(3)] == [(None, True)] * 3
            raise KeyError

    with pytest.raises(KeyError):
        three_steps_and_an_error()
    one_by_one(same_network, same_optimizer, list(same_network.parameters()), math.inf, n_steps=3)
    for p, q in zip(network.parameters(), same_network.parameters(), strict=True):
        assert th.equal(p, q)
        assert th.equal(optimizer.state[p]["exp_avg"], same_optimizer.state[q]["exp_avg"])


def test_the_parameters_stay_where_they_are_in_memory():
    """Other processes may look at them, or a graph of CUDA's."""
    network, optimizer = network_and_optimizer("Adam")
    network.share_memory()
    addresses = [p.data_ptr() for p in network.parameters()]
    in_a_row(network, optimizer, list(network.parameters()), None, n_steps=2)
    assert [p.data_ptr() for p in network.parameters()] == addresses
    assert all(p.is_shared() for p in network.parameters())


def test_hooks_of_the_optimizer_are_called():
    network, optimizer = network_and_optimizer("Adam")
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    in_a_row(network, optimizer, list(network.parameters()), None, n_steps=2)
    assert called == [1, 1]


def test_what_the_optimizer_does_not_know_stays():
    network, _ = network_and_optimizer("Adam")
    optimizer = th.optim.Adam(network[2].parameters())
    before = network[0].weight.detach().clone()
    in_a_row(network, optimizer, list(network.parameters()), None, n_steps=2)
    assert th.equal(network[0].weight, before)
    assert optimizer.state_dict()["state"].keys() == {0, 1}


def test_without_a_step_nothing_changes():
    network, optimizer = network_and_optimizer("Adam")
    before = [p.detach().clone() for p in network.parameters()]

    def proceed(loss):
        return loss > math.inf

    with Engine(network).descending(optimizer, list(network.parameters()), loss_of(network), 1.0, proceed) as descend:
        assert [descend(batch)[1:] for batch in minibatches(2)] == [(None, False)] * 2
    assert all(th.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert all(not moment.any() for state in optimizer.state.values() for moment in state.values())


@pytest.mark.filterwarnings("ignore:compile=True. an update runs uncompiled")  # where the counts are not the same
@pytest.mark.parametrize("engine", [Engine, lambda network: CompiledEngine(network, "key")], ids=["eager", "compiled"])
@pytest.mark.parametrize("change", ["loaded", "cleared", "stepped"])
def test_what_others_do_to_the_optimizer_between_two_updates_counts(engine, change):
    (ours, optimizer), (theirs, expected) = (network_and_optimizer("Adam") for _ in range(2))
    for network, its in ((ours, optimizer), (theirs, expected)):
        for n_steps in (2, 3):
            parameters = list(network.parameters())
            if its is expected:
                one_by_one(network, its, parameters, math.inf, n_steps)
            else:
                with engine(network).descending(its, parameters, loss_of(network)) as descend:
                    for minibatch in minibatches(n_steps):
                        descend(minibatch)
            if change == "loaded":
                state = its.state_dict()
                for moments in state["state"].values():
                    moments["exp_avg"] = moments["exp_avg"] + 0.1
                its.load_state_dict(state)
            elif change == "cleared":
                its.state.clear()
            else:  # with the first layer alone: the counts are no longer the same
                its.zero_grad(set_to_none=True)
                parameters[0].grad = th.ones_like(parameters[0])
                its.step()
                its.zero_grad(set_to_none=True)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        th.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
