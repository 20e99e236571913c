"""Functions of a policy as graphs: the networks are tiny, and the time goes into calling their parts."""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.engine.packages import package_of
from sb3_pgext.engine.plain import (
    SCALARS,
    appearance_of,
    distributions_of,
    foreign_part,
    parameters_of,
    structure_of,
)

__all__ = ["Examined", "Graph", "examine", "graph_of", "warn_once"]

Graph = Callable[[list[th.Tensor]], Any]

MAX_GRAPHS = 8
"""Graphs of one function: a coefficient that changes with each update would be compiled in each."""

_graphs: "WeakKeyDictionary[th.nn.Module, dict[tuple[str, Hashable], Graph | None]]" = WeakKeyDictionary()
"""Policy → its graphs; None where tracing failed. They hold no reference to the policy."""

_tracing = threading.Lock()

_causes: "WeakKeyDictionary[th.nn.Module, set[str]]" = WeakKeyDictionary()
"""Policy → the causes that a warning has named already."""


def graph_of(
    policy: th.nn.Module,
    key: Hashable,
    function: Callable[..., Any],
    arguments: Sequence[th.Tensor],
    what: str,
    draws: bool = False,
    n_first: int = 0,
    examined: "Examined | None" = None,
) -> Graph | None:
    """
    A function as one compiled graph for arguments of these shapes, traced at the first call for a key.

    Where many calls share their first arguments, it is a function of these to a graph for the others: what depends on
    the first ones alone is computed once, uncompiled.

    It draws the same random numbers as the function, and leaves the generators alone while it is compiled.

    :param policy: the network that the function evaluates
    :param key: what else the graph depends on
    :param function: of tensors alone, the policy's parameters among them, to tensors, nested in any way
    :param arguments: examples, which stay as they are
    :param what: the function in words, for the warning
    :param draws: whether it may draw random numbers
    :param n_first: how many of the arguments are such first ones; then it may not draw
    :param examined: the policy as it is now, where that is known
    :return: the graph, a function of the list of arguments, or None where there is none; a warning says why, once
    """
    graphs = _graphs.setdefault(policy, {})
    structure, cause, _ = examined or examine(policy)  # each time: a user may have changed the policy since
    full_key = what, (key, structure, *[(x.shape, x.stride(), x.dtype, x.device) for x in arguments])
    if cause is None and full_key not in graphs:
        if sum(name == what for name, _ in graphs) >= MAX_GRAPHS:
            cause = f"It has been compiled for {MAX_GRAPHS} values of the numbers that it depends on"
        else:
            try:
                graphs[full_key] = _graph(policy, function, arguments, draws, n_first)
            except Exception as error:  # whatever the tracer or a C++ compiler may raise: there is an eager way
                first_line = str(error).strip().partition("\n")[0]
                cause = first_line if isinstance(error, _Untraceable) else f"{type(error).__name__}: {first_line}"
                graphs[full_key] = None
    if cause is not None:
        warn_once(policy, what, cause)
        return None
    return graphs[full_key]


def warn_once(policy: th.nn.Module, what: str, cause: str) -> None:
    """
    Say that something runs uncompiled, once for each cause.

    :param policy: the network
    :param what: which function
    :param cause: the reason: what keeps one function from being compiled may well keep the next one
    """
    causes = _causes.setdefault(policy, set())
    if cause not in causes:
        causes.add(cause)
        warnings.warn(f"compile=True: {what} runs uncompiled, with the same results. {cause}", stacklevel=2)


class _Untraceable(Exception):
    """Its graph would not be the function."""


class Examined(NamedTuple):
    """
    A policy as a graph sees it.

    :param structure: stands for all that the graph takes for constant, and is the same for the same
    :param cause: the reason why there is no graph of it; None if there may be one
    :param parameters: of :func:`~sb3_pgext.engine.plain.parameters_of`
    """

    structure: object
    cause: str | None
    parameters: list[th.nn.Parameter]


_structures: dict[Hashable, object] = {}
"""Structure → what stands for it: a structure is long, and would be hashed with each key."""

_known: "WeakKeyDictionary[th.nn.Module, dict[Hashable, tuple[Examined, list[Any]]]]" = WeakKeyDictionary()


def examine(policy: th.nn.Module) -> Examined:
    """
    Examine a policy; one that looks as before is as it was then.

    :param policy: any network
    :return: what a graph of it depends on
    """
    known = _known.setdefault(policy, {})
    appearance, values = appearance_of(policy)
    found = known.get(appearance)
    if found is None:
        if len(known) >= MAX_GRAPHS:
            known.clear()
        structure = _structures.setdefault(structure_of(policy), object())
        examined = Examined(structure, _hindrance(policy), parameters_of(policy))
        found = known[appearance] = examined, [x for x in values if isinstance(x, SCALARS)]
    return found[0]


def _hindrance(policy: th.nn.Module) -> str | None:
    """Why a graph of this policy would not do what the policy does; None if it may."""
    modules = list(policy.modules())
    # Buffers, and whatever else a module may change while it is evaluated.
    stateful = [m for m in modules if any(isinstance(x, th.Tensor) for x in (*m._buffers.values(), *vars(m).values()))]
    if stateful:
        return f"{type(stateful[0]).__name__} keeps tensors that are no parameters, such as running statistics"
    of_modules = [id(p) for m in modules for p in m._parameters.values() if p is not None]
    if len(of_modules) > len(set(of_modules)):
        return "two modules of the policy share a parameter"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters()):
        return "a parameter of the policy has hooks"
    return foreign_part(policy)


def _graph(
    policy: th.nn.Module, function: Callable[..., Any], arguments: Sequence[th.Tensor], draws: bool, n_first: int
) -> Graph:
    # The tracer tells arguments apart by what they are, and two numbers that are equal now may be one tensor.
    # It also changes what the function changes in place.
    arguments = [th.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x) for x in arguments]
    rebuild: Callable[[Iterator[th.Tensor]], Any]
    first: th.fx.GraphModule | None = None

    def flat_function(*tensors: th.Tensor) -> list[th.Tensor]:
        nonlocal rebuild
        results = function(*tensors)
        rebuild = rebuilding(results)
        return leaves(results)

    arguments = [x.detach() for x in arguments]
    try:
        with th.random.fork_rng(devices=[x.device for x in arguments[:1] if x.is_cuda]):
            with _TraceableOneHot():
                traced = _trace(flat_function, arguments, _decompositions(policy))
            if not draws and any(map(_draws, traced.graph.nodes)):
                raise _Untraceable("the policy draws random numbers, such as dropout does")
            if any(_is_constant(traced, node) for node in traced.graph.nodes):
                raise _Untraceable("it looks at tensors that are no parameters of the policy")
            if n_first:
                first, traced = _split(traced, arguments, n_first)
                arguments = [*first(*arguments[:n_first]), *arguments[n_first:]]
            graph = _compile(traced, arguments)
            graph(list(arguments))
    finally:
        for distribution in distributions_of(policy):  # what the tracing has left in it stands for no observation
            distribution.distribution = None

    def call(tensors: list[th.Tensor]) -> Any:
        return rebuild(iter(graph(tensors)))

    if first is None:
        return call

    def call_with(tensors: list[th.Tensor]) -> Graph:
        known = first(*tensors)
        return lambda others: call([*known, *others])

    return call_with


def _trace(
    function: Callable[..., Any], arguments: Sequence[th.Tensor], decompositions: dict[Any, Any] | None = None
) -> th.fx.GraphModule:
    """One at a time: meanwhile torch replaces methods of all modules, and two threads would put back each other's."""
    with _tracing:
        return make_fx(function, decomposition_table=decompositions)(*arguments)


def _split(
    traced: th.fx.GraphModule, arguments: Sequence[th.Tensor], n_first: int
) -> tuple[th.fx.GraphModule, th.fx.GraphModule]:
    """
    :param traced: arguments → results
    :param arguments: examples
    :param n_first: number of first arguments
    :return: first arguments → all that depends on them alone and is needed further; that and the others → results
    """
    # Nothing may change in place what is computed once. (Tracing anew takes all of its memory again.)
    if any(map(_changes_in_place, traced.graph.nodes)):
        traced = _trace(functionalize(traced), arguments)
    traced.graph.eliminate_dead_code()
    nodes = list(traced.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    late = {*placeholders[n_first:], nodes[-1]}  # the last one is the output
    for node in nodes:  # each comes after those that it depends on
        if late.intersection(node.all_input_nodes):
            late.add(node)
    between = [node for node in nodes if node not in late and late.intersection(node.users)]

    first, second = th.fx.Graph(), th.fx.Graph()
    in_first: dict[th.fx.Node, th.fx.Node] = {}
    in_second = {node: second.placeholder(node.name) for node in between}
    for node in nodes:
        graph, copies = (second, in_second) if node in late else (first, in_first)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    first.output([in_first[node] for node in between])
    return th.fx.GraphModule(traced, first), th.fx.GraphModule(traced, second)


def _compile(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]) -> Graph:
    """
    By torch's compiler for graphs, without the one for Python before it, whose checks at each call take as long as a
    tiny network. What calls the kernels is compiled, too; on CUDA it is one CUDA graph, as in torch's mode
    "reduce-overhead".
    """
    if all(x.device.type == "cpu" for x in arguments):
        return package_of(traced, arguments)

    import torch._inductor  # here, because it takes a second and 50 MiB that nobody else needs

    # Kernels are tried out at the first call; while compiling it would be on random numbers, which are no indices.
    patches = {"fallback_random": True, "triton.cudagraphs": True, "triton.autotune_at_compile_time": False}
    graph = torch._inductor.standalone_compile(
        traced, list(arguments), dynamic_shapes="from_example_inputs", options={"config_patches": patches}
    )
    # What a CUDA graph returns is overwritten at its next call.
    return lambda tensors: [y.clone() for y in graph(*tensors)]


def _multinomial(
    probabilities: th.Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None
) -> th.Tensor:
    """torch's own way of drawing one sample, without its checks of the probabilities: the same numbers."""
    if num_samples != 1:
        return NotImplemented
    return (probabilities / th.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)


def _bernoulli(probabilities: th.Tensor, *, generator: Any = None) -> th.Tensor:
    """Draw as torch does: the compiler draws other numbers on a GPU, and the same ones on the CPU."""
    if not probabilities.is_cuda:
        return NotImplemented
    return th.empty_like(probabilities, memory_format=th.contiguous_format).bernoulli_(probabilities)


def _tanh(x: th.Tensor) -> th.Tensor:
    """
    In two fifths of the time of the compiler's: much of a tiny network's is its activations. Off by 1.6e-7 of the
    result at most, where torch's own is by 6e-8.
    """
    e = th.expm1(-2 * x.abs())
    return -x.sign() * e / (e + 2)


def _mm(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    """
    The gradient of a layer with more outputs than inputs, as the transpose of what the CPU's libraries take several
    times as long for.
    """
    of_gradient = a.t().is_contiguous() and not a.is_contiguous()  # which a single column is, too
    return (b.t() @ a.t()).t() if a.device.type == "cpu" and of_gradient and b.shape[1] < a.shape[0] else NotImplemented


def _decompositions(policy: th.nn.Module) -> dict[Any, Callable[..., Any]]:
    """Operations that are traced as others; the density of a squashed action hangs on the last bit of its tanh."""
    squashes = getattr(policy, "squash_output", False)
    squashes = squashes or any(isinstance(d, SquashedDiagGaussianDistribution) for d in distributions_of(policy))
    aten: Any = th.ops.aten
    own: dict[Any, Callable[..., Any]] = {
        aten.multinomial.default: _multinomial,
        aten.bernoulli.default: _bernoulli,
        aten.mm.default: _mm,
    }
    return own if squashes else own | {aten.tanh.default: _tanh}


def _is_constant(traced: th.fx.GraphModule, node: th.fx.Node) -> bool:
    """True for a tensor from elsewhere, which would always be as it was while it was traced."""
    if node.op != "get_attr" or not getattr(traced, str(node.target)).is_floating_point():
        return False
    literals = (th.ops.aten.lift_fresh.default, th.ops.aten.lift_fresh_copy.default)  # made in the function itself
    return any(user.target not in literals for user in node.users)


def _draws(node: th.fx.Node) -> bool:
    return th.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _changes_in_place(node: th.fx.Node) -> bool:
    return isinstance(node.target, th._ops.OpOverload) and node.target._schema.is_mutable


class _TraceableOneHot(TorchFunctionMode):
    """torch's one-hot encoding, which SB3 gives Discrete observations, looks at the data to check it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.one_hot:
            return func(*args, **kwargs)
        return _one_hot(*args, **kwargs)


def _one_hot(tensor: th.Tensor, num_classes: int) -> th.Tensor:
    return (tensor.unsqueeze(-1) == th.arange(num_classes, device=tensor.device)).long()
