"""The study file: which runs there are, each with its full settings."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from rl_zoo3 import ALGOS

from sb3_pgext.arguments import require, require_bool, require_count, require_number
from sb3_pgext.zoo import configs
from sb3_pgext.zoo.names import check_environment, check_name, import_environments, slug
from sb3_pgext.zoo.shipped import configs_folder
from sb3_pgext.zoo.versions import VERSIONS

MAX_SEEDS = 10_000
"""The most seeds that may be given as a number."""


@dataclass(frozen=True)
class Evaluation:
    """
    Frequency and kind of the evaluations during training.

    :param frequency: environment steps from one evaluation to the next
    :param episodes: episodes per evaluation
    :param deterministic: whether the policy's mode acts, not a sample
    """

    frequency: int
    episodes: int = 10
    deterministic: bool = True


@dataclass(frozen=True)
class Run:
    """
    Training run: an algorithm on an environment with a seed.

    :param label: the study's name of the algorithm with its parameters
    :param algo: zoo key of the algorithm
    :param environment: id of the environment
    :param seed: seed of the run
    :param n_timesteps: environment steps that the run may take
    :param evaluation: how it is evaluated
    :param config: its hyperparameters as rl_zoo3 reads them, ``n_timesteps`` included
    :param gym_packages: modules that register its environment → digest of their code
    """

    label: str
    algo: str
    environment: str
    seed: int
    n_timesteps: int
    evaluation: Evaluation
    config: Mapping[str, Any]
    gym_packages: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def folder_name(self) -> str:
        """The run's folder: label, environment, seed, and a hash of all settings and versions."""
        settings = json.dumps([asdict(self), VERSIONS], sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{slug(f'{self.label}_{self.environment}')}_{self.seed}_{digest}"


@dataclass(frozen=True)
class Study:
    """
    A study: every run, and the returns that count as solving the environments.

    :param name: name of the study
    :param runs: its runs; all labels of one environment and seed stand together
    :param thresholds: for some environments, the mean return to be reached
    :param baseline: label that the others are compared with; None for the first
    :param notes: on configurations that are not of the environment that they are used for
    """

    name: str
    runs: tuple[Run, ...]
    thresholds: Mapping[str, float]
    baseline: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def environments(self) -> list[str]:
        """The environments, in the order of the file."""
        return list(dict.fromkeys(run.environment for run in self.runs))

    @property
    def labels(self) -> list[str]:
        """The labels of the runs, in the order of the file."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the file."""
        return list(dict.fromkeys(run.seed for run in self.runs))


def find_study(name: str) -> Path:
    """
    Find a study file.

    :param name: path of the file, or name of a ready one in ``zoo_configs/studies``
    :return: the file's path
    :raises ValueError: there is neither
    """
    if Path(name).is_file():
        return Path(name)
    ready = {path.stem: path for path in (configs_folder() / "studies").glob("*.yml")}
    if name not in ready and (Path(name).suffix in (".yml", ".yaml") or Path(name).is_dir()):
        raise ValueError(f"there is no study file {name!r}")
    return ready[check_name("study", name, ready)]


def read_study(path: Path) -> Study:
    """
    Read a study file and check all that can be checked before anything is trained.

    :param path: the YAML file
    :return: the study
    :raises ValueError: a key, algorithm, environment or parameter is unknown, or a value is out of its range
    """
    try:
        return _parse(path.stem, yaml.load(path.read_text(), _Loader))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML without a key that stands twice in a mapping, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key {twice[0]!r} stands there twice (line {node.start_mark.line + 1} and after)")
        return super().construct_mapping(node, deep)


def quick_study(
    environments: list[str],
    algorithms: list[str],
    seeds: int | None = None,
    n_timesteps: int | None = None,
    gym_packages: list[str] | None = None,
) -> Study:
    """
    Make a study without a file: algorithms with their configurations of the zoo.

    :param environments: ids
    :param algorithms: zoo keys; the first is what the others are compared with
    :param seeds: how many; None for the default of a study file
    :param n_timesteps: environment steps of each run; None for what the configurations say
    :param gym_packages: modules that register environments
    :return: the study, named by environments and algorithms
    :raises ValueError: as for :func:`read_study`
    """
    runs = {algo: {"algo": algo} for algo in _distinct("algos", algorithms)}
    optional = {"seeds": seeds, "n_timesteps": n_timesteps, "gym_packages": gym_packages}
    content: dict[str, Any] = {"environments": environments, "runs": runs}
    content |= {key: value for key, value in optional.items() if value is not None}
    return _parse(slug(f"{'+'.join(environments)}_{'+'.join(algorithms)}"), content)


def _parse(name: str, content: object) -> Study:
    keys = {"environments", "seeds", "n_timesteps", "evaluation", "threshold", "baseline", "gym_packages", "runs"}
    content = _mapping("a study", content, keys, required=("environments", "runs"))
    packages = map(str, _list("gym_packages", content.get("gym_packages", [])))
    gym_packages = {package: _digest(module) for package, module in import_environments(packages).items()}
    environments = [check_environment(env_id) for env_id in _distinct("environments", content["environments"])]
    labels = _labels(content["runs"], environments)
    runs, thresholds = [], {}
    for env_id in environments:
        threshold = _by_environment(content, "threshold", env_id, environments)
        if threshold is not None:
            require_number("threshold", threshold, "a return")
            thresholds[env_id] = threshold
        here = {label: entry for label, entry in labels.items() if env_id in entry.get("environments", environments)}
        settings = {label: _settings(label, entry, env_id, content) for label, entry in here.items()}
        of_study = _seeds("seeds", _by_environment(content, "seeds", env_id, environments, 3))
        seeds_of = {
            label: _seeds(f"runs: {label}: seeds", _by_environment(entry, "seeds", env_id, environments, of_study))
            for label, entry in here.items()
        }
        runs += [
            Run(seed=seed, gym_packages=gym_packages, **shared)
            for seed in dict.fromkeys([*of_study, *(seed for of_label in seeds_of.values() for seed in of_label)])
            for label, shared in settings.items()
            if seed in seeds_of[label]
        ]
    if (baseline := content.get("baseline")) is not None:
        check_name("label of baseline", baseline, labels)
    notes = configs.configuration_notes((run.label, run.algo, run.environment) for run in runs)
    return Study(name, tuple(runs), thresholds, baseline, notes)


def _digest(module: ModuleType) -> str:
    """Hash the code of a module: a run in an environment that has been changed since is another run."""
    file = getattr(module, "__file__", None)
    paths = [Path(file)] if file else []
    for folder in getattr(module, "__path__", []):
        paths += sorted(Path(folder).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


def _labels(runs: object, environments: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
    """Return the labels of a study with what stands under them, unless one is wrong."""
    runs = _mapping("runs", runs)
    if not runs:
        raise ValueError("runs: there is none")
    for label, entry in runs.items():
        if not isinstance(label, str) or not label.isprintable() or label.startswith("_") or not label.strip():
            raise ValueError(f"runs: a label must be a text of one line that does not begin with _, not {label!r}")
        where = f"runs: {label}"
        entry = _mapping(where, entry, {"algo", "params", "environments", "seeds"}, required=("algo",))
        for env_id in _distinct(f"{where}: environments", entry.get("environments", environments)):
            check_name(f"environment of {where}", env_id, environments)
    return runs


def _settings(label: str, entry: Mapping[str, Any], env_id: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the runs of a label on an environment share: the zoo's configuration with the study's parameters."""
    where = f"runs: {label}"
    algo = check_name("algorithm", entry["algo"], ALGOS)
    params = entry.get("params")
    params = _mapping(f"{where}: params", {} if params is None else params)
    configs.check_keys(algo, params, where)
    if "n_timesteps" in params:
        raise ValueError(f"{where}: params: n_timesteps={params['n_timesteps']!r} is a key of the study, for all runs")
    config = configs.merge(configs.read_config(algo, env_id), params)
    configs.check_complete(algo, env_id, config, where)
    environments = content["environments"]
    n_timesteps = _by_environment(content, "n_timesteps", env_id, environments, config["n_timesteps"])
    n_timesteps = _positive("n_timesteps", n_timesteps)
    evaluation = _evaluation(content.get("evaluation", {}), n_timesteps, env_id, environments)
    shared = {"n_timesteps": n_timesteps, "evaluation": evaluation, "config": {**config, "n_timesteps": n_timesteps}}
    return {"label": label, "algo": algo, "environment": env_id, **shared}


def _evaluation(content: object, n_timesteps: int, env_id: str, environments: Collection[str]) -> Evaluation:
    content = _mapping("evaluation", content, {"frequency", "episodes", "deterministic"})
    require_bool("evaluation: deterministic", content.get("deterministic", True))
    counts = {"frequency": max(n_timesteps // 10, min(n_timesteps, 1000)), "episodes": 10}
    for key, default in counts.items():
        counts[key] = _positive(f"evaluation: {key}", _by_environment(content, key, env_id, environments, default))
    return Evaluation(**counts, deterministic=content.get("deterministic", True))


def _seeds(what: str, seeds: object) -> list[int]:
    """Take a list as it is; a count of seeds means 0, 1, …"""
    if not isinstance(seeds, list):
        n_seeds = _positive(what, seeds)
        require(n_seeds <= MAX_SEEDS, what, n_seeds, f"at most {MAX_SEEDS}, or a list")
        return list(range(n_seeds))
    for seed in _distinct(what, seeds):
        require_count(f"{what}: a seed", seed, at_least=0)
    return seeds


def _by_environment(
    content: Mapping[str, Any], key: str, env_id: str, environments: Collection[str], default: Any = None
) -> Any:
    """Look up a value that holds for all environments, or that a mapping has for this one."""
    value = content.get(key)
    if isinstance(value, Mapping):
        for name in value:
            check_name(f"environment of {key}", name, environments)
        value = value.get(env_id)
    return default if value is None else value


def _mapping(
    what: str, content: object, keys: Collection[str] | None = None, required: Collection[str] = ()
) -> Mapping[Any, Any]:
    """Refuse what is not a mapping with these keys."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must be a mapping, not {content!r}")
    for key in content if keys is not None else ():
        check_name(f"key of {what}", key, keys or ())
    for key in required:
        if key not in content:
            raise ValueError(f"{what}: the key {key!r} is missing")
    return content


def _list(what: str, content: object) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{what} must be a list, not {content!r}")
    return content


def _distinct(what: str, content: object) -> list[Any]:
    """Refuse what is not a list of one or more different entries."""
    entries = _list(what, content)
    if not entries or len({str(entry) for entry in entries}) < len(entries):
        raise ValueError(f"{what} must be a list of one or more different entries, not {content!r}")
    return entries


def _positive(what: str, value: object) -> int:
    """Refuse what is not a whole number of at least 1."""
    if not configs.is_whole(value, 1, configs.MAX_TIMESTEPS):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d+", value):
            hint = " (YAML takes it for text: write it out, or with a point and a sign, as 1.0e+6)"
        raise ValueError(f"{what} must be a whole number of at least 1, not {value!r}{hint}")
    return int(value)  # type: ignore[call-overload]
