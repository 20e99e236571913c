"""Ways to a Fisher-vector product, side by side.

usage: python benchmarks/fisher.py [--env CartPole-v1] [--steps 2048]

* Hessian: the gradient of the mean divergence, differentiated again (as TRPO's implementations do)
* two passes back: Jᵀ M J, with J v from differentiating the backward pass (``estimators/natural.py``)
* forward and back: Jᵀ M J, with J v in forward mode
* compiled: two passes back, as ``NPG(compile=True)`` does them

All compute the same product; one thread, by turns in one process. At the end the products of matrices that it consists
of, alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.func import functional_call, jvp

from sb3_pgext import NPG
from sb3_pgext.algorithms.distributions import distribution_parameters, fisher_metric, kl_divergence
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.engine.compiled import compiled_fisher
from sb3_pgext.estimators.natural import Metric, Tangents, fisher_vector_product
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.rollouts.acting import unvalidated_distributions

Product = Callable[[th.Tensor], th.Tensor]


class Outputs(th.nn.Module):
    """The distribution's parameters as a forward(), for functional_call."""

    def __init__(self, policy: ActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor) -> tuple[th.Tensor, ...]:
        """Observations → distribution parameters."""
        return distribution_parameters(self.policy.get_distribution(observations))


def hessian(policy: ActorCriticPolicy, observations: th.Tensor) -> Product:
    """The divergence, differentiated twice."""
    parameters = list(policy_parameters(policy).values())
    distribution = policy.get_distribution(observations)
    new = distribution_parameters(distribution)
    kl = kl_divergence(tuple(z.detach() for z in new), new, distribution, "old_new").mean()
    gradient = th.cat([g.flatten() for g in th.autograd.grad(kl, parameters, create_graph=True)])
    return lambda v: flat_gradient(gradient @ v, parameters)


def two_passes_back(policy: ActorCriticPolicy, observations: th.Tensor) -> Product:
    """Ours."""
    distribution = policy.get_distribution(observations)
    outputs, metric = distribution_parameters(distribution), fisher_metric(distribution)
    return fisher_vector_product(outputs, metric, list(policy_parameters(policy).values()))


def forward_and_back(policy: ActorCriticPolicy, observations: th.Tensor) -> Product:
    """Dual numbers through the network for each product."""
    named = {f"policy.{name}": p for name, p in policy_parameters(policy).items()}
    module, sizes = Outputs(policy), [p.numel() for p in named.values()]
    outputs = module(observations)
    metric = fisher_metric(policy.action_dist)

    def function(*values: th.Tensor) -> tuple[th.Tensor, ...]:
        return functional_call(module, dict(zip(named, values, strict=True)), (observations,))

    def product(v: th.Tensor) -> th.Tensor:
        tangents = tuple(part.view_as(p) for part, p in zip(v.split(sizes), named.values(), strict=True))
        moved = jvp(function, tuple(p.detach() for p in named.values()), tangents)[1]
        gradients = th.autograd.grad(outputs, list(named.values()), metric(moved), retain_graph=True)
        return th.cat([g.flatten() for g in gradients]) / len(observations)

    return product


def compiled(policy: ActorCriticPolicy, observations: th.Tensor) -> Product:
    """Ours, compiled."""

    def geometry(observations: th.Tensor) -> tuple[Tangents, Metric]:
        distribution = policy.get_distribution(observations)
        return distribution_parameters(distribution), fisher_metric(distribution)

    parameters = list(policy_parameters(policy).values())
    product = compiled_fisher(policy, parameters, geometry, (observations,), "exact")
    assert product is not None
    return product


def matrix_products(policy: ActorCriticPolicy, observations: th.Tensor) -> Callable[[th.Tensor], object]:
    """Of linear layers: W dx + dW x on the way forward, Wᵀ u and u xᵀ on the way back; no dx and Wᵀ u at the first."""
    layers = [p.detach() for p in policy_parameters(policy).values() if p.ndim == 2]
    n = len(observations)
    factors = [(W, th.randn_like(W), th.randn(n, W.shape[1]), th.randn(n, W.shape[0])) for W in layers]

    def multiply(_: th.Tensor) -> None:
        for i, (W, dW, x, u) in enumerate(factors):
            (x @ dW.T, u.T @ x)
            if i > 0:
                (x @ W.T, u @ W)

    return multiply


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=100)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    model = NPG("MlpPolicy", arguments.env, seed=0, device="cpu")
    observations = th.randn(arguments.steps, *model.observation_space.shape)  # type: ignore[misc]
    v = th.randn(sum(p.numel() for p in policy_parameters(model.policy).values()))
    with unvalidated_distributions():
        ways = (hessian, two_passes_back, forward_and_back, compiled)
        products = {f.__name__: f(model.policy, observations) for f in ways}
        results = {name: product(v) for name, product in products.items()}
        products["matrix_products"] = matrix_products(model.policy, observations)
        times: dict[str, list[float]] = {name: [] for name in products}
        for _ in range(arguments.repetitions):
            for name, product in products.items():
                start = time.perf_counter()
                product(v)
                times[name].append(1e3 * (time.perf_counter() - start))
    for name, of_name in times.items():
        ratios = sorted(x / y for x, y in zip(of_name, times["two_passes_back"], strict=True))
        line = f"{name:17s} {statistics.median(of_name):6.2f} ms (fastest {min(of_name):.2f}), "
        line += f"{statistics.median(ratios):.2f} of two passes back "
        line += f"(quartiles {ratios[len(ratios) // 4]:.2f} to {ratios[3 * len(ratios) // 4]:.2f})"
        if name in results:
            difference = (results[name] - results["hessian"]).norm() / results["hessian"].norm()
            line += f", relative difference from the Hessian {difference:.0e}"
        print(line)


if __name__ == "__main__":
    main()
