"""In the place of the compiler, which takes seconds each time: a graph as it has been traced."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th


def traced_only(traced: th.fx.GraphModule, arguments: Sequence[th.Tensor]) -> Callable[[list[th.Tensor]], Any]:
    """Of compiled code, too, autograd sees nothing."""

    @th.no_grad()
    def run(tensors: list[th.Tensor]) -> Any:
        return traced(*tensors)

    return run
