"""Runs that rl_zoo3 has saved: what stands in their YAML files, read without running any of it."""

import ast
import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_pgext.checkpoints.encoding import CLASSES
from sb3_pgext.zoo.names import check_environment, check_name

__all__ = ["plain_config", "plain_yaml", "read_run"]

_EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
"""Keys of a configuration whose strings rl_zoo3 evaluates."""

_ZOO_WRAPPERS = """
    ActionNoiseWrapper ActionSmoothingWrapper DelayedRewardWrapper FrameSkip HistoryWrapper HistoryWrapperObsDict
    MaskVelocityWrapper TruncatedOnSuccessWrapper YAMLCompatResizeObservation
"""
_GYMNASIUM_WRAPPERS = """
    AtariPreprocessing ClipAction ClipReward DelayObservation DtypeObservation FilterObservation FlattenObservation
    FrameStackObservation GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward RepeatAction
    RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction TimeAwareObservation TimeLimit
"""
_VEC_WRAPPERS = "VecCheckNan VecExtractDictObs VecFrameStack VecTransposeImage"
_HARMLESS: dict[str, list[str]] = {
    "env_wrapper": [
        "sb3_contrib.common.wrappers.TimeFeatureWrapper",
        "stable_baselines3.common.atari_wrappers.AtariWrapper",
        *(f"rl_zoo3.wrappers.{name}" for name in _ZOO_WRAPPERS.split()),
        *(f"gymnasium.wrappers.{name}" for name in _GYMNASIUM_WRAPPERS.split()),
    ],
    "vec_env_wrapper": [f"stable_baselines3.common.vec_env.{name}" for name in _VEC_WRAPPERS.split()],
    "callback": [],
}
"""Keys that name what rl_zoo3 imports and calls → what that may be: nothing that writes where it is told to."""

_KNOWN_PACKAGES = ("stable_baselines3", "sb3_contrib", "sb3_pgext")


def read_run(folder: Path, trust: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Read the configuration of a saved run and the arguments that it was started with.

    :param folder: of the run
    :param trust: whether what is code in them may be run
    :return: both
    :raises ValueError: they are not there, or something in them is code; the message names it
    """
    args_file = next(folder.glob("*/args.yml"), None)
    if args_file is None or not args_file.with_name("config.yml").is_file():
        raise ValueError(f"{folder}: allowed is the folder of a run, with a config.yml and an args.yml in it")
    config_file = args_file.with_name("config.yml")
    if trust:
        config, args = (yaml.unsafe_load(path.read_text()) for path in (config_file, args_file))
    else:
        config, args = plain_config(config_file), plain_yaml(args_file)
    check_name("algorithm", args.get("algo"), ALGOS)
    check_environment(args.get("env"))
    return dict(config), dict(args)


def plain_config(path: Path) -> dict[str, Any]:
    """
    Read a configuration, and turn the strings that rl_zoo3 would evaluate into plain values.

    :param path: the ``config.yml`` of a saved run
    :return: the configuration
    :raises ValueError: something in it is code; the message names it
    """
    config = plain_yaml(path)
    for key in _EVALUATED:
        if isinstance(config.get(key), str):
            config[key] = _plain_value(config[key], f"{path}: {key}")
    for key, allowed in _HARMLESS.items():
        for name in _names_in(config.get(key)):
            if name not in allowed:
                raise ValueError(f"{path}: {key}: {name} would be run: allowed is {', '.join(allowed) or 'none'}")
    if "." in (policy := str(config.get("policy"))):
        _check_policy(policy, f"{path}: policy")
    return config


def plain_yaml(path: Path) -> dict[str, Any]:
    """
    Read a YAML file that rl_zoo3 has saved.

    :param path: the file
    :return: its content
    :raises ValueError: there is something else in it than a mapping of plain values
    """
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: allowed are plain values: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: allowed is a mapping")
    return content


class _Loader(yaml.SafeLoader):
    """YAML with the few kinds of Python values that rl_zoo3 leaves there."""


def _pairs(loader: _Loader, node: yaml.SequenceNode) -> dict[Any, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True) or [[]]
    return dict(pairs)


def _class(loader: _Loader, name: str, node: yaml.Node) -> type:
    if name not in CLASSES:
        raise yaml.constructor.ConstructorError(None, None, f"the name {name!r} is none that is known", node.start_mark)
    return CLASSES[name]


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_constructor_of: Any = _Loader.add_constructor  # the tag says which kind of node the function gets
_constructor_of("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _pairs)
_constructor_of("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _class)


def _plain_value(text: str, where: str) -> Any:
    """Read the Python that rl_zoo3's configurations are written in: ``dict(net_arch=[64], activation_fn=nn.ReLU)``."""
    try:
        return _value_of(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{where}={text!r} is code: allowed are plain values") from error


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        return {str(keyword.arg): _value_of(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value_of(value) for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[arg-type]
    if isinstance(node, ast.List):
        return [_value_of(item) for item in node.elts]
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nn":
        module = getattr(nn, node.attr, None)
        if module in CLASSES.values():
            return module
    return ast.literal_eval(node)


def _names_in(value: Any) -> Iterator[str]:
    """Yield the names in a name, a mapping from a name to its arguments, or a list of those."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _names_in(item)
    elif value is not None:
        yield from map(str, value if isinstance(value, Mapping) else [value])


def _check_policy(name: str, where: str) -> None:
    """Refuse what is no policy of a package that we know."""
    module, _, attribute = name.rpartition(".")
    cls = None
    if module.split(".")[0] in _KNOWN_PACKAGES:
        with contextlib.suppress(ImportError):
            cls = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, BasePolicy)):
        raise ValueError(f"{where}: {name} would be run: allowed is a BasePolicy of {', '.join(_KNOWN_PACKAGES)}")
