"""Recognising user code: what a graph of a policy would not see."""

import functools
from collections.abc import Hashable
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch as th

__all__ = [
    "SCALARS",
    "appearance_of",
    "distributions_of",
    "foreign_part",
    "has_own_methods",
    "has_sb3s",
    "modules_of",
    "parameters_of",
    "replaced_methods",
    "structure_of",
]

_LIBRARIES = ("torch", "stable_baselines3", "sb3_contrib", "sb3_pgext", "abc", "typing", "builtins")
"""Packages whose modules are known to compute from their parameters, their attributes and their input alone."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def foreign_part(policy: th.nn.Module) -> str | None:
    """
    Find a part of a policy that is not torch's or SB3's, or no longer as they made it.

    :param policy: any network
    :return: the part and the reason, for a message; None if there is none
    """
    parts = [("the policy", policy), *((name, m) for name, m in policy.named_modules() if name)]
    parts.extend(("action_dist", distribution) for distribution in distributions_of(policy))
    for name, part in parts:
        if (foreign := _foreign_class(type(part))) is not None:  # type: ignore[arg-type]
            return f"{name} is a {foreign}, which is neither torch's nor SB3's"
        if any(getattr(part, hooks, None) for hooks in _HOOKS):
            return f"{name} has a hook"
        if has_own_methods(part):
            return f"{name} has a method that has been replaced"
    return None


def modules_of(network: th.nn.Module) -> list[th.nn.Module]:
    """A network and all that is in it, each once, in a fifth of the time of its own ``modules()``."""
    modules: dict[th.nn.Module, None] = {}
    left: list[th.nn.Module | None] = [network]
    while left:
        module = left.pop()
        if module is not None and module not in modules:
            modules[module] = None
            left += module._modules.values()
    return [*modules]


def parameters_of(network: th.nn.Module) -> list[th.nn.Parameter]:
    """The parameters of :func:`modules_of`, each once; in another order than its own ``parameters()``."""
    found = (p for m in modules_of(network) for p in m._parameters.values() if p is not None)
    return [*dict.fromkeys(found)]


def distributions_of(policy: th.nn.Module) -> list[Any]:
    """SB3's distributions in a policy, which are no modules: its own, or its actor's."""
    held = (getattr(module, "action_dist", None) for module in (policy, getattr(policy, "actor", None)))
    return [distribution for distribution in held if distribution is not None]


def replaced_methods(instance: Any, package: str) -> set[str]:
    """
    The methods of a package's classes that a user's subclass, or the instance itself, replaces.

    :param instance: of a class of the package, or of a subclass of the user's
    :param package: its name
    :return: names, without those in double underscores
    """
    classes = type(instance).__mro__
    of_package = [c for c in classes if c.__module__.partition(".")[0] == package]
    ours = of_package[0]
    theirs = (instance, *classes[: classes.index(ours)])
    replaced = [(name, value) for scope in theirs for name, value in vars(scope).items() if name[:2] != "__"]
    kinds = (FunctionType, MethodType, property, classmethod, staticmethod)
    own = {name for name, value in replaced if isinstance(value, kinds) or callable(getattr(ours, name, None))}
    return {name for name in own if any(name in vars(c) for c in of_package)}


def has_own_methods(instance: Any) -> bool:
    """True if a method of its class has been replaced in an instance."""
    return not _methods(type(instance)).isdisjoint(vars(instance))  # type: ignore[arg-type]


@functools.cache
def _methods(cls: type) -> frozenset[str]:
    return frozenset(name for name in dir(cls) if callable(getattr(cls, name, None)))


@functools.cache
def _foreign_class(cls: type) -> str | None:
    """The name of the first class that is of no known package."""
    return next((c.__name__ for c in cls.__mro__ if c.__module__.partition(".")[0] not in _LIBRARIES), None)


def has_sb3s(policy: Any, sb3s: type, *methods: str) -> bool:
    """
    True if a policy has methods as SB3's class defines them, replaced neither by its class nor in it.

    :param policy: any; one that torch has compiled as a whole is of a class of torch's
    :param sb3s: the class of SB3's
    :param methods: names
    :return: whether all of them are
    """
    return isinstance(policy, sb3s) and not any(
        name in vars(policy) or getattr(type(policy), name) is not getattr(sb3s, name) for name in methods
    )


def structure_of(policy: th.nn.Module) -> Hashable:
    """
    The part of a policy that a graph takes for constant.

    :param policy: without a foreign part
    :return: classes of all modules with their numbers, strings and switches, and the forms of all parameters
    """
    modules = tuple((type(part), _constants(part)) for part in (*policy.modules(), *distributions_of(policy)))
    parameters = tuple((name, p.shape, p.stride(), p.dtype) for name, p in policy.named_parameters())
    return modules, parameters


def _constants(part: Any) -> Hashable:
    return tuple((name, value) for name, value in vars(part).items() if isinstance(value, SCALARS))


SCALARS = (bool, int, float, str, tuple, th.dtype, np.number)


def appearance_of(policy: th.nn.Module) -> tuple[Hashable, list[Any]]:
    """
    Tell whether a policy has changed in a tenth of the time of looking what it is.

    :param policy: any network
    :return: what is another thing after each change that a graph would not see; and the attributes of the modules,
        which it knows by their addresses: as long as it is kept, these must not become others'
    """
    modules = modules_of(policy)
    values = [x for m in modules for x in vars(m).values()]
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    of_parameters = [
        (id(p), p.shape, p.stride(), p.dtype, bool(p._backward_hooks or p._post_accumulate_grad_hooks))
        for p in parameters
    ]
    of_distributions = [(type(d), *vars(d), _constants(d)) for d in distributions_of(policy)]
    hooks = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules]
    hindered = any(hooks) or any(m._buffers for m in modules)
    return (*map(type, modules), *map(id, values), *of_parameters, *of_distributions, hindered), values
