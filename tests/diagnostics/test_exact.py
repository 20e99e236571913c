"""Claim: the exact quantities are exact, by identities, finite differences and the Hessian of the KL."""

from copy import deepcopy

import gymnasium as gym
import pytest
import torch as th
from torch.func import functional_call, hessian

from sb3_pgext.diagnostics import (
    action_probabilities,
    exact_fisher,
    exact_policy_gradient,
    exact_return,
    exact_values,
    policy_parameters,
)
from sb3_pgext.envs import Bandit, TabularMDP, chain, gridworld, random_mdp
from tests.diagnostics.laboratory import model_on

MDPS = {
    "random": (lambda: random_mdp(0), 0.9),
    "undiscounted": (lambda: random_mdp(1), 1.0),
    "finite horizon": (lambda: random_mdp(2, horizon=4), 0.9),
    "time limit": (lambda: random_mdp(2, horizon=4, at_horizon="truncate"), 0.9),
    "chain": (lambda: chain(4), 0.95),
    "gridworld": (lambda: gridworld(3, 2), 0.95),
    "bandit": (Bandit, 1.0),
}
everywhere = pytest.mark.parametrize("name", MDPS)


def policy_and_mdp(name):
    make, gamma = MDPS[name]
    policy = model_on(make()).policy.double()
    # float64 parameters, so that finite differences are not lost in rounding; SB3's observations stay float32.
    policy.features_extractor.register_forward_pre_hook(lambda module, x: tuple(t.double() for t in x))
    return policy, make(), gamma


@everywhere
def test_values_by_iterating_the_bellman_equation(name):
    """V ← r_π + γP_π V, as often as there are steps to go; and J = dᵀV, V = Σ_a π Q."""
    policy, mdp, gamma = policy_and_mdp(name)
    pi, R = action_probabilities(policy, mdp), th.as_tensor(mdp.expected_rewards)
    V = th.zeros(len(pi), dtype=th.float64)
    for _ in range(4 if name == "finite horizon" else 5000):
        V = sum(pi[:, a] * (R[:, a] + gamma * th.as_tensor(mdp.transitions[:, a]) @ V) for a in range(pi.shape[1]))
    values, action_values = exact_values(policy, mdp, gamma)
    th.testing.assert_close(values, V)
    th.testing.assert_close((pi * action_values).sum(1), V)
    assert exact_return(policy, mdp, gamma) == pytest.approx(float(th.as_tensor(mdp.initial) @ V))


@everywhere
def test_gradient_by_finite_differences(name):
    policy, mdp, gamma = policy_and_mdp(name)
    gradient = exact_policy_gradient(policy, mdp, gamma)
    differences, h = [], 1e-5
    for parameter in policy_parameters(policy).values():
        flat = parameter.data.view(-1)
        for k in range(len(flat)):
            own = flat[k].item()
            flat[k] = own + h
            above = exact_return(policy, mdp, gamma)
            flat[k] = own - h
            below = exact_return(policy, mdp, gamma)
            flat[k] = own
            differences.append((above - below) / (2 * h))
    differences = th.tensor(differences, dtype=th.float64)
    assert gradient.norm() > 1e-3
    assert (gradient - differences).norm() < 1e-6 * gradient.norm()


@everywhere
def test_without_discount_weighting_by_summing_over_time(name):
    """Σ_t Σ_s P(s_t = s) Σ_a ∇π(a|s) Q_t(s, a), the state distributions pushed forward one step at a time."""
    policy, mdp, gamma = policy_and_mdp(name)
    pi, P, R = action_probabilities(policy, mdp), th.as_tensor(mdp.transitions), th.as_tensor(mdp.expected_rewards)
    n_states, n_actions = pi.shape
    states = th.arange(n_states).repeat_interleave(n_actions)
    log_pi = policy.get_distribution(states).log_prob(th.arange(n_actions).repeat(n_states)).view(n_states, n_actions)
    at_time, expected = th.as_tensor(mdp.initial), 0.0
    horizon = 4 if name == "finite horizon" else 3000
    for t in range(horizon):
        to_go = TabularMDP(P, R, mdp.initial, horizon - t) if name == "finite horizon" else mdp
        if t == 0 or to_go is not mdp:
            _, Q = exact_values(policy, to_go, gamma)
        expected = expected + (at_time[:, None] * log_pi.exp() * Q).sum()
        at_time = th.einsum("s,sa,sap->p", at_time, pi, P)
    gradients = th.autograd.grad(expected, list(policy_parameters(policy).values()))
    expected = th.cat([g.flatten() for g in gradients])
    estimate = exact_policy_gradient(policy, mdp, gamma, discount_weighting=False)
    th.testing.assert_close(estimate, expected, rtol=1e-8, atol=1e-10)
    if gamma == 1.0:
        th.testing.assert_close(estimate, exact_policy_gradient(policy, mdp, gamma), rtol=1e-8, atol=1e-10)


@everywhere
def test_fisher_is_the_hessian_of_the_mean_kl(name):
    policy, mdp, gamma = policy_and_mdp(name)
    pi, P = action_probabilities(policy, mdp), th.as_tensor(mdp.transitions)
    at_time, visits = th.as_tensor(mdp.initial), 0.0
    for t in range(4 if name == "finite horizon" else 3000):
        visits = visits + gamma**t * at_time
        at_time = th.einsum("s,sa,sap->p", at_time, pi, P)
    states = th.arange(len(pi))
    shapes = {n: p.shape for n, p in policy_parameters(policy).items()}
    policy.action_dist = deepcopy(model_on(mdp).policy.action_dist)

    class Logits(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy = policy

        def forward(self):
            return self.policy.action_net(
                self.policy.mlp_extractor.forward_actor(self.policy.extract_features(states))
            ).log_softmax(1)

    def mean_kl(flat):
        pieces = flat.split([s.numel() for s in shapes.values()])
        new = {f"policy.{n}": x.view(s) for (n, s), x in zip(shapes.items(), pieces, strict=True)}
        return (visits / visits.sum()) @ (pi * (pi.log() - functional_call(Logits(), new))).sum(1)

    current = th.cat([p.detach().flatten() for p in policy_parameters(policy).values()])
    fisher = exact_fisher(policy, mdp, gamma)
    assert (fisher - hessian(mean_kl)(current)).norm() < 1e-6 * fisher.norm()


def test_float32_policies_are_computed_in_float64_and_left_alone():
    model, mdp = model_on(random_mdp(0)), random_mdp(0)
    before = deepcopy(model.policy.state_dict())
    gradient = exact_policy_gradient(model.policy, mdp, 0.9)
    assert gradient.dtype == exact_fisher(model.policy, mdp, 0.9).dtype == th.float64
    policy, _, _ = policy_and_mdp("random")
    th.testing.assert_close(gradient, exact_policy_gradient(policy, mdp, 0.9))
    assert all(th.equal(before[k], v) and v.dtype == before[k].dtype for k, v in model.policy.state_dict().items())
    assert action_probabilities(model.policy, mdp).sum(1).tolist() == pytest.approx([1] * 4)


def test_no_way_out():
    endless = random_mdp(0, end_probability=0.0)
    policy = model_on(endless).policy
    with pytest.raises(ValueError, match=r"gamma=1.*way out"):
        exact_return(policy, endless, 1.0)
    with pytest.raises(ValueError, match=r"gamma=1.*way out"):
        exact_policy_gradient(policy, endless, 0.9, discount_weighting=False)
    exact_return(policy, endless, 0.9)


def test_wrappers_that_change_the_task_are_refused():
    mdp = gym.make("sb3_pgext/RandomMDP-v0")
    policy = model_on(random_mdp(0)).policy
    assert exact_return(policy, mdp, 0.9) == exact_return(policy, random_mdp(0), 0.9)
    with pytest.raises(ValueError, match="wrappers that change"):
        exact_return(policy, gym.wrappers.TransformReward(mdp, lambda r: 10 * r), 0.9)


def test_wrong_arguments():
    model = model_on("CartPole-v1")
    with pytest.raises(ValueError, match="TabularMDP"):
        exact_return(model.policy, model.env.envs[0], 0.9)
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        exact_return(model.policy, random_mdp(0), 1.5)
