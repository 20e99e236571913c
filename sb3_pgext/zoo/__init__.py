"""The algorithms of sb3-pgext in rl_zoo3: registered when this package is imported, if rl_zoo3 is installed."""

from importlib.util import find_spec

from sb3_pgext.zoo.registration import ALGORITHMS, register

if find_spec("rl_zoo3") is not None:
    register()

__all__ = ["ALGORITHMS", "register"]
