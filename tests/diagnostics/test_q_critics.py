r"""
Claim: with the exact Q, each gradient of the off-policy actor-critic has the mean that MATH.md, section 9, says: the
exact gradient in states of the policy's own visitation; in those of an older policy's replay the biased one that is
computed from d^μ instead of d^π; over a Box that of a quadrature. The soft target's fixed point is the exact soft Q.

The gradients are those of ``OffPolicyActorCritic._actor_loss`` on minibatches of independent transitions, compared as
in ``test_unbiased.py``: by the largest \|z\|, against a bound that holds for all tests there and here together.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import OffPolicyActorCritic
from sb3_pgext.algorithms.q_policies import action_distribution, draws
from sb3_pgext.diagnostics import (
    action_probabilities,
    exact_actor_gradient,
    exact_policy_gradient,
    exact_values,
    exact_visitation,
    gradient_statistics,
)
from sb3_pgext.envs import TabularMDP, random_mdp
from sb3_pgext.rollouts.transitions import Transitions
from tests.diagnostics.test_unbiased import largest_z, smallest_bias
from tests.environments import AnySpaces

GAMMA = 0.9
HIDDEN_LAYER = {"net_arch": [8], "activation_fn": th.nn.Tanh}
"""A ReLU may give nothing in all of the few states, and a parameter without a gradient tells nothing."""

MDPS = {
    "three actions": lambda: random_mdp(0),
    "two actions": lambda: random_mdp(1, n_states=6, n_actions=2, end_probability=0.1),
    "finite horizon of one": lambda: random_mdp(2, n_actions=4, horizon=1),
}
each_mdp = pytest.mark.parametrize("name", MDPS)


def model_on(mdp, seed=0, **arguments):
    arguments = {"ent_coef": 0.0, "gamma": GAMMA, "seed": seed, "device": "cpu", "buffer_size": 200, **arguments}
    model = OffPolicyActorCritic("MlpPolicy", mdp, policy_kwargs=HIDDEN_LAYER, **arguments)
    perturb(model.actor, seed, 0.5)
    return model


def perturb(actor, seed, scale):
    """Weights that make the policy far from uniform, or another one."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for p in actor.parameters():
            p += scale * th.randn(p.shape, generator=generator)


def with_exact_q(model, mdp, q=None):
    """The critic is a table."""
    q = exact_values(model.actor, mdp, GAMMA)[1] if q is None else q
    model.critic.forward = lambda observations: (q.float()[observations.long().flatten()],)
    return q


def gradients(model, batches, **options):
    """The estimates of all minibatches under these options, ``(K, P)``."""
    for name, value in options.items():
        setattr(model, name, value)
    parameters, samples = list(model.actor.parameters()), []
    for batch in batches:
        noise = model._noise(len(batch.actions), model._n_draws)
        loss, _ = model._actor_loss(batch, noise, model._ent_coef)
        samples.append(-th.cat([g.flatten() for g in th.autograd.grad(loss, parameters)]))
    return th.stack(samples)


def transitions(states, actions, log_prob):
    nothing = th.zeros(len(states))
    return Transitions(states, actions, states, nothing, nothing, GAMMA, (log_prob.float(),))


def minibatches(states, behaviour, n_batches, size, seed):
    """Pairs of s ~ d and a ~ μ(·|s), independent of each other."""
    generator = th.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        s = th.multinomial(states, size, replacement=True, generator=generator)
        a = th.multinomial(behaviour[s], 1, generator=generator).flatten()
        batches.append(transitions(s.unsqueeze(1), a.float(), behaviour.log()[s, a]))
    return batches


@each_mdp
def test_on_states_of_the_policys_own_visitation(name):
    """
    102,400 transitions, in minibatches of 256: a bias of 3 % of the gradient is found, of 6 % with ``sampled``. All
    actions never have more variance than the sampled one.
    """
    mdp = MDPS[name]()
    model = model_on(mdp)
    with_exact_q(model, mdp)
    states, pi = exact_visitation(model.actor, mdp), action_probabilities(model.actor, mdp)
    target = exact_actor_gradient(model.actor, mdp, GAMMA, states)
    batches, traces = minibatches(states, pi, 400, 256, seed=0), {}
    for gradient, found in (("all_action", 0.03), ("sampled", 0.06)):
        samples = gradients(model, batches, gradient=gradient)
        z, bound = largest_z(samples, target)
        assert z < bound, gradient
        assert smallest_bias(samples, target) < found, gradient
        traces[gradient] = gradient_statistics(samples).trace
    assert traces["all_action"].high < traces["sampled"].low


def test_the_exact_gradient_is_the_policy_gradient():
    """Along the visits of whole episodes, it is the one that REINFORCE is held to, by another route."""
    mdp = random_mdp(0)
    model = model_on(mdp)
    visitation = exact_visitation(model.actor, mdp)
    expected = exact_policy_gradient(model.actor, mdp, GAMMA, discount_weighting=False)
    found = exact_actor_gradient(model.actor, mdp, GAMMA, visitation)
    pi, transitions_ = action_probabilities(model.actor, mdp), th.as_tensor(mdp.transitions)
    at_time, length = th.as_tensor(mdp.initial), 0.0
    for _ in range(2000):
        length += at_time.sum().item()
        at_time = th.einsum("s,sa,sap->p", at_time, pi, transitions_)
    th.testing.assert_close(found * length, expected, rtol=1e-8, atol=1e-10)


def test_the_replay_holds_the_visitation():
    """Of the policy that has acted: frequencies of states in 20,000 collected steps, within 3 %."""
    mdp = random_mdp(0)
    env = DummyVecEnv([lambda: random_mdp(0)] * 20)
    arguments = {"buffer_size": 20_000, "learning_starts": 0, "gradient_steps": 0, "gradient": "sampled"}
    model = OffPolicyActorCritic("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]}, **arguments)
    perturb(model.actor, 0, 0.5)
    model.learn(20_000)
    states = model.replay_buffer.observations.flatten()
    frequencies = th.as_tensor(np.bincount(states, minlength=4) / len(states))
    assert (frequencies - exact_visitation(model.actor, mdp)).abs().max() < 0.03
    pi = action_probabilities(model.actor, mdp)[states, model.replay_buffer.actions.flatten()]
    np.testing.assert_allclose(model.replay_buffer.log_probs.flatten(), pi.log(), rtol=1e-4, atol=1e-5)


@each_mdp
def test_on_states_of_an_older_policys_replay(name):
    """
    The mean is the one computed from d^μ, whichever gradient, and whoever's actions they are; the bias is seen: it is
    not the gradient in the policy's own states. 307,200 transitions: a bias of 3 % is found, of 10 % with weights.
    """
    mdp = MDPS[name]()
    model = model_on(mdp)
    older = model_on(mdp, seed=7)
    with_exact_q(model, mdp)
    pi, mu = (action_probabilities(m.actor, mdp) for m in (model, older))
    assert (pi - mu).abs().max() > 0.1
    own, of_replay = (exact_visitation(m.actor, mdp) for m in (model, older))
    target, predicted = (exact_actor_gradient(model.actor, mdp, GAMMA, states) for states in (own, of_replay))
    batches = minibatches(of_replay, mu, 300, 1024, seed=1)
    for gradient, found in (("all_action", 0.03), ("sampled", 0.1)):
        samples = gradients(model, batches, gradient=gradient)
        z, bound = largest_z(samples, predicted)
        assert z < bound, gradient
        assert smallest_bias(samples, predicted) < found, gradient
        if name != "finite horizon of one":  # all states are first ones there
            assert largest_z(samples, target)[0] > bound, gradient
        else:
            th.testing.assert_close(target, predicted)


def test_clipped_weights_are_biased_as_predicted():
    """E[min(ρ, c) ∇log π (Q - V)], which is not the gradient; without the clip it is."""
    mdp, clip = random_mdp(0), 0.8
    model, older = model_on(mdp), model_on(mdp, seed=7)
    q = with_exact_q(model, mdp)
    pi, mu = (action_probabilities(m.actor, mdp) for m in (model, older))
    states = exact_visitation(older.actor, mdp)
    advantages = q - (pi * q).sum(1, keepdim=True)
    ratios = (pi / mu).clamp(max=clip)
    # Σ_a μ min(ρ, c) ∇log π A = Σ_a ∇π (μ min(ρ, c) / π) A
    predicted = exact_actor_gradient(model.actor, mdp, GAMMA, states, mu * ratios / pi * advantages)
    target = exact_actor_gradient(model.actor, mdp, GAMMA, states)
    samples = gradients(model, minibatches(states, mu, 300, 1024, seed=2), gradient="sampled", weight_clip=clip)
    z, bound = largest_z(samples, predicted)
    assert z < bound
    assert largest_z(samples, target)[0] > bound


@pytest.mark.parametrize("gradient", ["all_action", "sampled"])
def test_the_entropy_is_in_the_gradient(gradient):
    """With α = 0.5: Σ_a ∇π (Q - α log π)."""
    mdp = random_mdp(0)
    model = model_on(mdp, ent_coef=0.5)
    q = with_exact_q(model, mdp)
    states, pi = exact_visitation(model.actor, mdp), action_probabilities(model.actor, mdp)
    target = exact_actor_gradient(model.actor, mdp, GAMMA, states, q - 0.5 * pi.log())
    samples = gradients(model, minibatches(states, pi, 300, 256, seed=3), gradient=gradient)
    z, bound = largest_z(samples, target)
    assert z < bound
    assert largest_z(samples, exact_actor_gradient(model.actor, mdp, GAMMA, states, q))[0] > bound


# --- a Box -----------------------------------------------------------------------------------------------------------


def q_of(actions):
    """Known, with a slope that changes its sign."""
    return (th.sin(3 * actions) + actions**2 - 0.5 * actions).sum(1, keepdim=True)


def on_line(ent_coef, seed=0, **arguments):
    """A squashed Gaussian over one action, with a critic that knows Q."""
    env = AnySpaces(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))
    model = model_on(env, seed, ent_coef=ent_coef, **arguments)
    model.critic.forward = lambda observations, actions: (q_of(actions),)
    with th.no_grad():  # hardly any actions where tanh is 1 in single precision
        model.actor.log_std.weight *= 0.3
        model.actor.log_std.bias -= 0.7
    return model


def quadrature(model, observations, ent_coef):
    """∇ E[Q - α log π] of the states, by the trapezoidal rule in double precision."""
    nodes = th.linspace(-10, 10, 4001, dtype=th.float64)
    weights = (-0.5 * nodes**2).exp()
    weights = weights / weights.sum()
    mean, log_std, _ = model.actor.get_action_dist_params(observations)
    mean, log_std = mean.double(), log_std.double()  # (B, 1)
    gaussian = mean + log_std.exp() * nodes  # (B, K)
    actions = gaussian.tanh()
    log_prob = -0.5 * nodes**2 - log_std - 0.5 * np.log(2 * np.pi) - (1 - actions**2 + 1e-6).log()
    value = (weights * (q_of(actions.reshape(-1, 1)).view_as(actions) - ent_coef * log_prob)).sum(1).mean()
    return th.cat([g.flatten().double() for g in th.autograd.grad(value, list(model.actor.parameters()))])


BOX = {
    "all_action": ({"gradient": "all_action", "n_action_samples": 4}, 0.05),
    "all_action of two": ({"gradient": "all_action", "n_action_samples": 2}, 0.08),
    "sampled": ({"gradient": "sampled", "n_action_samples": 4}, 0.2),
    "reparameterized": ({"gradient": "reparameterized"}, 0.05),
}


@pytest.mark.parametrize("ent_coef", [0.0, 0.2])
@pytest.mark.parametrize("case", BOX)
def test_over_a_box_it_is_the_quadratures(case, ent_coef):
    """
    In 8 given states, 256 times each in a minibatch, the actions of the replay those of an older policy: of 200
    minibatches a bias of 5 % to 20 % of the gradient is found.
    """
    options, found = BOX[case]
    model, older = on_line(ent_coef), on_line(ent_coef)
    perturb(older.actor, 3, 0.1)
    observations = th.randn(8, 2, generator=th.Generator().manual_seed(5))
    target = quadrature(model, observations, ent_coef)
    states, batches = observations.repeat(256, 1), []
    th.manual_seed(6)
    for _ in range(200):
        with th.no_grad():
            ((actions, log_prob),) = draws(action_distribution(older.actor, states), (), 1)
        batches.append(transitions(states, actions, log_prob))
    samples = gradients(model, batches, **options)
    z, bound = largest_z(samples, target)
    assert z < bound
    assert smallest_bias(samples, target) < found


# --- targets ---------------------------------------------------------------------------------------------------------


def eighths(seed):
    """An MDP whose probabilities are multiples of 1/8."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(7, np.full(4, 0.25), size=(4, 3))  # the last eighth ends the episode
    return TabularMDP(counts / 8, rng.normal(size=(4, 3)), np.full(4, 0.25))


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fixed_point_of_the_target_is_the_exact_soft_q(seed, ent_coef):
    """A critic that is a table, fitted by ``_critic_loss`` on all transitions as often as they are probable."""
    mdp = eighths(seed)
    model = table_on(mdp, ent_coef)
    pi = action_probabilities(model.actor, mdp)
    P, R = th.as_tensor(mdp.transitions), th.as_tensor(mdp.expected_rewards)
    P_pi = th.einsum("sa,sap->sp", pi, P)
    soft = (pi * (R - ent_coef * pi.log())).sum(1)
    V = th.linalg.solve(th.eye(4, dtype=th.float64) - GAMMA * P_pi, soft)
    Q = R + GAMMA * P @ V
    rows = [(s, a, n, k) for s in range(4) for a in range(3) for n, k in enumerate((mdp.transitions[s, a] * 8).round())]
    s, a, following = zip(*[(s, a, n) for s, a, n, k in rows for _ in range(int(k))], strict=True)
    ends = [(s, a) for s in range(4) for a in range(3)]
    states, actions = th.tensor([*s, *(x for x, _ in ends)]), th.tensor([*a, *(x for _, x in ends)])
    next_states = th.tensor([*following, *(0 for _ in ends)]).unsqueeze(1)
    terminated = th.tensor([0.0] * len(s) + [1.0] * len(ends))
    rewards = R.float()[states, actions]
    batch = Transitions(states.unsqueeze(1), actions.float(), next_states, terminated, rewards, GAMMA, ())
    optimizer = th.optim.SGD(model.critic.parameters(), lr=3.0)
    for _ in range(1500):
        loss, _ = model._critic_loss(batch, (), model._ent_coef)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model._follow()
    with th.no_grad():
        for q in model.critic(th.arange(4).unsqueeze(1)):
            th.testing.assert_close(q.double(), Q, rtol=0, atol=1e-3)


def table_on(mdp, ent_coef):
    kwargs = {"net_arch": {"pi": [8], "qf": []}}
    arguments = {"ent_coef": ent_coef, "gamma": GAMMA, "tau": 0.5, "seed": 0, "device": "cpu", "buffer_size": 200}
    model = OffPolicyActorCritic("MlpPolicy", mdp, policy_kwargs=kwargs, **arguments)
    perturb(model.actor, 0, 0.5)
    return model
