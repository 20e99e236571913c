"""Claim: what is taken apart is put together again as it was, whatever order the next dict has."""

from collections import namedtuple

import numpy as np
import pytest
import torch as th

from sb3_pgext.engine.nested import leaves, minibatches, rebuilding, rows

Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "data", [1, {"b": 1, "a": (2, 3)}, (1, {"a": 2}, ()), Pair(1, [2, Pair(3, 4)]), [1, {2: 3, "x": 4}], {}], ids=repr
)
def test_put_together_again(data):
    rebuilt = rebuilding(data)(iter(leaves(data)))
    assert repr(rebuilt) == repr(data), "the order and the types too"


def test_a_dict_in_another_order():
    data = {"b": 1, "a": 2}
    assert leaves(data) == leaves({"a": 2, "b": 1})
    assert rebuilding(data)(iter(leaves({"a": 3, "b": 4}))) == {"a": 3, "b": 4}


def test_minibatches_of_a_size_that_is_a_number_of_numpys():
    data = (th.arange(5), {"a": th.arange(10).reshape(5, 2)})
    found = list(minibatches(rows(data, th.tensor([4, 3, 2, 1, 0])), np.int64(2)))
    assert [x.tolist() for x, _ in found] == [[4, 3], [2, 1], [0]]
    assert [x["a"][:, 0].tolist() for _, x in found] == [[8, 6], [4, 2], [0]]
