"""Functions of a policy as functions of tensors, its parameters among them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch.func import functional_call

from sb3_pgext.engine.nested import rebuilding

__all__ = ["FunctionOfPolicy", "call_with", "names_of", "of_tensors"]


class FunctionOfPolicy(th.nn.Module):
    """A function as a module that contains the policy, for ``functional_call``."""

    def __init__(self, policy: th.nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.policy = policy
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)


def call_with(module: th.nn.Module, parameters: dict[str, th.Tensor], *arguments: Any) -> Any:
    """
    Call a module with other parameters.

    A module that has several names, such as SB3's shared features extractor, has its parameters under the first of
    them; where ``functional_call`` looks for the others too, it leaves tensors in their place.

    :param module: any
    :param parameters: by their names
    :param arguments: of the module
    :return: its result
    """
    return functional_call(module, parameters, arguments, tie_weights=False)


def of_tensors(
    module: th.nn.Module, parameters: Sequence[th.nn.Parameter], arguments: tuple[Any, ...]
) -> Callable[..., Any]:
    """
    Make a module a function of tensors.

    :param module: any
    :param parameters: all of its parameters, in any order
    :param arguments: examples
    :return: values of the parameters, leaves of arguments like these → the module's result
    """
    rebuild = rebuilding(arguments)

    def function(*tensors: th.Tensor) -> Any:
        names = names_of(module, parameters)  # here, as it takes long, and a graph that is there needs none
        own = dict(zip(names, tensors, strict=False))
        return call_with(module, own, *rebuild(iter(tensors[len(names) :])))

    return function


def names_of(module: th.nn.Module, parameters: Sequence[th.nn.Parameter]) -> list[str]:
    """
    The names of parameters.

    :param module: which they belong to
    :param parameters: some of its parameters
    :return: their names in it
    """
    name_of = {id(p): name for name, p in module.named_parameters()}
    return [name_of[id(p)] for p in parameters]
