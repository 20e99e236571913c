"""Claim: DiscreteSAC is Christodoulou's (2019): one update is his, it has his settings, and it learns."""

import inspect

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_pgext import DiscreteSAC, OffPolicyActorCritic
from sb3_pgext.engine import graphs
from tests.algorithms.off_policy import numbers_of, on_actions, small, vector_of
from tests.environments import ACTIONS
from tests.tracing import traced_only


def christodoulou(model, batch):
    """One update of his, on a copy of the parameters: critics, actor, temperature, targets; plain and slow."""
    actor, critic, target = model.actor, model.critic, model.critic_target
    alpha = model.log_ent_coef.detach().exp()

    def pi(observations):
        return actor.get_distribution(observations).distribution.probs

    with th.no_grad():
        p = pi(batch.next_observations)
        q1, q2 = target(batch.next_observations)
        value = (p * (th.min(q1, q2) - alpha * p.log())).sum(1, keepdim=True)  # eq. 10
        y = batch.rewards + (1 - batch.dones) * model.gamma * value
    loss = 0.5 * sum(F.mse_loss(q.gather(1, batch.actions.long()), y) for q in critic(batch.observations))
    critic.optimizer.zero_grad()
    loss.backward()
    critic.optimizer.step()

    p = pi(batch.observations)
    with th.no_grad():
        q1, q2 = critic(batch.observations)
    loss = (p * (alpha * p.log() - th.min(q1, q2))).sum(1).mean()  # eq. 12
    actor.optimizer.zero_grad()
    loss.backward()
    actor.optimizer.step()

    entropy_gap = (p * (-p.log() - model.target_entropy)).sum(1).detach()  # eq. 11, in log α as SB3 has it
    model.ent_coef_optimizer.zero_grad()
    (model.log_ent_coef * entropy_gap).mean().backward()
    model.ent_coef_optimizer.step()
    with th.no_grad():
        for ours, theirs in zip(target.parameters(), critic.parameters(), strict=True):
            ours.copy_((1 - model.tau) * ours + model.tau * theirs)


def test_an_update_is_christodoulous():
    models = []
    for update in (lambda model, batch: model.train(1, 16), christodoulou):
        model = on_actions("discrete", 2, algorithm=DiscreteSAC, ent_coef="auto_0.3", tau=0.1).learn(40)
        for _ in range(3):
            state = np.random.get_state()  # noqa: NPY002
            batch = model.replay_buffer.sample(16)
            np.random.set_state(state)  # noqa: NPY002
            update(model, batch)
            np.random.set_state(state)  # noqa: NPY002
            model.replay_buffer.sample(16)
        models.append(model)
    ours, theirs = map(numbers_of, models)
    for name in ours:
        th.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_it_is_the_off_policy_actor_critic_with_all_actions():
    one, other = (
        on_actions("multi_discrete", 2, algorithm=algorithm, train_freq=1, **options).learn(60)
        for algorithm, options in ((DiscreteSAC, {}), (OffPolicyActorCritic, {"gradient": "all_action"}))
    )
    assert th.equal(vector_of(one), vector_of(other))
    assert th.equal(one.log_ent_coef, other.log_ent_coef)


def test_its_settings():
    defaults = {name: p.default for name, p in inspect.signature(DiscreteSAC.__init__).parameters.items()}
    of_parent = inspect.signature(OffPolicyActorCritic.__init__).parameters
    changed = {name: x for name, x in defaults.items() if name in of_parent and x != of_parent[name].default}
    assert changed == {"learning_starts": 20_000, "batch_size": 64, "train_freq": 4}
    left_out = of_parent.keys() - defaults.keys()
    of_box = {"action_noise", "action_std", "use_sde", "sde_sample_freq", "use_sde_at_warmup"}
    assert left_out == {"gradient", "weight_clip"} | of_box
    with pytest.raises(AssertionError, match=r"Box.*provided|supports only .*Discrete"):
        small(DiscreteSAC, "Pendulum-v1")


def test_actions_that_do_not_start_at_0():
    """In SB3's DQN they end in an index out of range, in the first update after the exploration."""
    with pytest.raises(
        ValueError, match=r"action_space=Discrete\(3, start=2\): allowed is one whose actions start at 0"
    ):
        on_actions(spaces.Discrete(3, start=2), algorithm=DiscreteSAC)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=str)
def test_it_takes_what_is_discrete(space):
    if isinstance(space, spaces.Box):
        with pytest.raises(AssertionError, match="The algorithm only supports"):
            on_actions(space, algorithm=DiscreteSAC)
    else:
        model = on_actions(space, algorithm=DiscreteSAC).learn(30)
        assert model._n_updates > 0


@pytest.mark.parametrize("ent_coef", ["auto", 0.01])
def test_it_looks_ahead(ent_coef):
    """The first of two actions decides what the second step pays."""
    model = small(DiscreteSAC, "tests/PaysLater-v0", learning_rate=1e-2, gamma=1.0, ent_coef=ent_coef, tau=0.1,
                  train_freq=2, **({"target_entropy": 0.2} if ent_coef == "auto" else {}))  # fmt: skip
    model.learn(500)
    assert model.predict(np.array(0), deterministic=True)[0] == 1
    assert np.mean(model.predict(np.zeros(500, np.int64))[0]) > 0.8
    with th.no_grad():
        q = th.stack(model.critic(th.tensor([0]))).min(0).values[0]
    assert q[1] - q[0] > 0.5


@pytest.mark.parametrize("action", ["discrete", "multi_binary"])
def test_traced_updates_are_the_eager_ones(action, monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)
    compiled_and_eager(action, 4, 1e-3)


@pytest.mark.compiler
def test_compiled_updates_are_the_eager_ones():
    compiled_and_eager("discrete", 1, 1e-6)


def compiled_and_eager(action, n_updates, tolerance):
    models = []
    for compile in (False, True):
        model = on_actions(action, 2, algorithm=DiscreteSAC, compile=compile, train_freq=30).learn(60)
        assert model._n_updates == 1
        model.train(n_updates - 1, 16) if n_updates > 1 else None
        models.append(numbers_of(model))
    for name in models[0]:
        th.testing.assert_close(models[1][name], models[0][name], rtol=tolerance, atol=tolerance / 10, msg=name)
