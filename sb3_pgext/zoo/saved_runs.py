"""Runs that rl_zoo3 has saved: what stands in their YAML files, read without running any of it."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3 import ALGOS
from torch import nn

from sb3_pgext.checkpoints.encoding import CLASSES
from sb3_pgext.zoo.names import check_environment, check_name

__all__ = ["plain_config", "plain_yaml", "read_run"]

_EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
"""Keys of a configuration whose strings rl_zoo3 evaluates."""

_WRAPPERS = {
    "stable_baselines3.common.atari_wrappers": "AtariWrapper",
    "stable_baselines3.common.vec_env": "VecCheckNan VecExtractDictObs VecFrameStack VecTransposeImage",
    "sb3_contrib.common.wrappers": "TimeFeatureWrapper",
    "rl_zoo3.wrappers": """
        ActionNoiseWrapper ActionSmoothingWrapper DelayedRewardWrapper FrameSkip HistoryWrapper HistoryWrapperObsDict
        MaskVelocityWrapper TruncatedOnSuccessWrapper YAMLCompatResizeObservation
    """,
    "gymnasium.wrappers": """
        AtariPreprocessing ClipAction ClipReward DelayObservation DtypeObservation FilterObservation FlattenObservation
        FrameStackObservation GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward
        RepeatAction RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction
        TimeAwareObservation TimeLimit
    """,
}
"""Module → wrappers that may stand in a saved run: they write nothing where they are told to."""


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
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        for name in _names_in(config.get(key)):
            module, _, wrapper = name.rpartition(".")
            if wrapper not in _WRAPPERS.get(module, "").split():
                raise ValueError(f"{path}: {key}: {name} would be run: it is none of the wrappers that write no files")
    if "." in str(config.get("policy")):
        raise ValueError(f"{path}: policy: {config['policy']} would be run: allowed is a name without a module")
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
