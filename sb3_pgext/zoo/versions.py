"""The versions that results depend on."""

from importlib.metadata import version

import sb3_pgext

VERSIONS = {"sb3-pgext": sb3_pgext.__version__} | {
    package: version(package) for package in ("stable-baselines3", "sb3-contrib", "torch", "gymnasium")
}
"""Versions that a run's result depends on most; in a study they are part of the name of its folder."""
