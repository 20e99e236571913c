"""Claim: what is encoded is decoded as it was, whatever its keys are called and however its numbers are stored."""

import json

import numpy as np
import pytest
import torch as th

from sb3_pgext.checkpoints.encoding import Decoder, Encoder


def there_and_back(value, trusted=False):
    encoder = Encoder()
    encoded = json.loads(json.dumps(encoder.encode(value, "value")))
    return Decoder(encoder.tensors, encoder.custom if trusted else None).decode(encoded)


class Custom:
    """Needs pickle."""


@pytest.mark.parametrize(
    "keys",
    [[1, "1"], [1, "1", "1 (2)"], ["a/b", "a"], [(1, 2), "(1, 2)"], [None, "None"], ["is", "of"]],
    ids=str,
)
def test_keys_that_are_spelled_alike(keys):
    for make in (lambda i: np.full(2, i), lambda i: th.full((2,), i), lambda i: Custom()):
        values = {key: {"b": make(i)} if key == "a" else make(i) for i, key in enumerate(keys)}
        decoded = there_and_back(values, trusted=True)
        assert list(decoded) == keys
        for key, value in values.items():
            ours, theirs = (value["b"], decoded[key]["b"]) if key == "a" else (value, decoded[key])
            assert ours is theirs if isinstance(ours, Custom) else (ours == theirs).all()


@pytest.mark.parametrize("dtype", [">f8", "<f8", ">i4", ">u2", "f2", "?"])
def test_numbers_of_any_byte_order(dtype):
    array = np.arange(3).astype(dtype)
    for value in (array, array[1], array[::-1]):
        decoded = there_and_back(value)
        assert np.array_equal(decoded, value)
        assert decoded.dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "value", [np.arange(3, dtype=np.longdouble), np.ma.array([1, 2, 3], mask=[0, 1, 0]), np.array([1j])]
)
def test_arrays_that_no_tensor_can_hold_are_pickled(value):
    with pytest.raises(ValueError, match="is pickled"):
        there_and_back(value)
    assert there_and_back(value, trusted=True) is value
