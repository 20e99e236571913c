"""The arguments of ``sb3-pgext variance``: which gradients are to be sampled."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from sb3_pgext.arguments import require
from sb3_pgext.diagnostics import set_options
from sb3_pgext.zoo import ALGORITHMS
from sb3_pgext.zoo.configs import check_keys, configuration_notes, merge, read_config
from sb3_pgext.zoo.experiments import quiet_model
from sb3_pgext.zoo.names import check_environment, check_name, import_environments

_SIZE_FLAGS = {"n_episodes": "--episodes", "n_steps": "--steps"}
"""The flag for the size of a batch, by what an algorithm collects."""


@dataclass(frozen=True)
class VarianceStudy:
    """
    Study of an option of an algorithm, on an environment.

    :param algo: zoo key of an algorithm of ours
    :param environment: id of the environment
    :param option: the option that is varied
    :param values: the values that it takes
    :param config: the hyperparameters of the training, as rl_zoo3 reads them
    :param at_steps: environment steps of training after which the policy is frozen
    :param n_batches: gradient batches for each value and step count
    :param batch: size of such a batch, by the name of the constructor's argument; empty for the configuration's
    :param seed: of the training; the batches have seeds of their own, the same for all values
    :param reference: the value whose mean gradient the bias of the others is measured against; None for the exact
        gradient, where there is one
    :param common: options that all values share although the configuration says otherwise, because one of the values
        allows nothing else: the estimates are to differ in one ingredient
    :param gym_packages: modules that register the environment
    :param notes: on a configuration that is not of the environment
    """

    algo: str
    environment: str
    option: str
    values: tuple[Any, ...]
    config: Mapping[str, Any]
    at_steps: tuple[int, ...] = (0,)
    n_batches: int = 200
    batch: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    reference: Any = None
    common: Mapping[str, Any] = field(default_factory=dict)
    gym_packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Algorithm and environment, for headings."""
        return f"{self.algo} on {self.environment}"

    @property
    def reference_name(self) -> str:
        """The gradient that the bias is measured against, in words."""
        return "exact gradient" if self.reference is None else f"mean gradient of {self.option}={self.reference}"

    def options(self, value: Any) -> dict[str, Any]:
        """
        The options that gradients are sampled with under a value of the option.

        :param value: one of the values
        :return: option → value
        """
        return {**self.common, **self.batch, self.option: value}


def parse_study(
    algo: str,
    environment: str,
    vary: str,
    at_steps: str = "0",
    n_batches: int = 200,
    n_episodes: int | None = None,
    n_steps: int | None = None,
    seed: int = 0,
    conf_file: str | None = None,
    params: Mapping[str, Any] | None = None,
    reference: str | None = None,
    gym_packages: Sequence[str] = (),
) -> VarianceStudy:
    """
    Read the arguments of a study, and check all of them before anything is trained.

    :param algo: zoo key of an algorithm of ours
    :param environment: id of the environment
    :param vary: ``"option=value,value,…"``, the values as in YAML
    :param at_steps: step counts, separated by commas
    :param n_batches: see :class:`VarianceStudy`
    :param n_episodes: episodes of a batch, for an algorithm that collects episodes; None for the configuration's
    :param n_steps: steps of each sub-environment of a batch, for an algorithm that collects steps; None for the
        configuration's
    :param seed: see :class:`VarianceStudy`
    :param conf_file: configuration file; default: that of the algorithm
    :param params: laid over the configuration; None takes a key out of it
    :param reference: one of the values, see :class:`VarianceStudy`
    :param gym_packages: see :class:`VarianceStudy`
    :return: the study
    :raises ValueError: a name is unknown, or a value not allowed
    """
    check_name("algorithm", algo, ALGORITHMS)
    measurable = [key for key, known in ALGORITHMS.items() if hasattr(known, "estimate_options")]
    allowed = f"{', '.join(measurable)}, whose update is one estimate of the gradient"
    require(algo in measurable, "--algo", algo, allowed)
    algorithm: Any = ALGORITHMS[algo]
    import_environments(gym_packages)
    check_environment(environment)
    option, _, values = vary.partition("=")
    if not values:
        raise ValueError(f"--vary {vary!r}: allowed is OPTION=VALUE,VALUE,…")
    check_name("option to vary", option, algorithm.estimate_options)
    parsed = tuple(parse_value(value) for value in values.split(","))
    if n_batches < 3:
        raise ValueError(f"--batches {n_batches}: allowed is a whole number >= 3")
    counts = at_steps.split(",")
    if not all(count.strip().isdigit() for count in counts):
        raise ValueError(f"--at-steps {at_steps!r}: allowed are whole numbers >= 0, separated by commas")
    if reference is not None and parse_value(reference) not in parsed:
        raise ValueError(f"--reference {reference}: allowed is one of the values of {option}: {values}")
    batch = _batch(algo, algorithm.batch_argument, {"n_episodes": n_episodes, "n_steps": n_steps})
    check_keys(algo, params or {}, "--params")
    config = merge(read_config(algo, environment, conf_file), params or {})
    notes = configuration_notes([(algo, algo, environment)], conf_file)
    steps, value = tuple(sorted(map(int, set(counts)))), None if reference is None else parse_value(reference)
    study = VarianceStudy(
        algo, environment, option, parsed, config, steps, n_batches, batch, seed, value, {}, tuple(gym_packages), notes
    )
    return replace(study, common=_common_options(study))


def _batch(algo: str, needed: str, sizes: Mapping[str, int | None]) -> dict[str, int]:
    """The size of a batch by the constructor's argument, unless it is given by the flag of another argument."""
    given = {name: size for name, size in sizes.items() if size is not None}
    for name in given.keys() - {needed}:
        allowed = f"{_SIZE_FLAGS[needed]} for {algo}, whose batches are set by {needed}"
        raise ValueError(f"{_SIZE_FLAGS[name]} {given[name]}: allowed is {allowed}")
    return given


def parse_value(text: str) -> Any:
    """
    Read a value as in YAML; also ``1e-3`` is a number, which YAML 1.1 takes for text.

    :param text: the value as it was written
    :return: the value
    """
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _common_options(study: VarianceStudy) -> dict[str, Any]:
    """Options that all values have to share; a value that cannot be measured is refused."""
    common: dict[str, Any] = {}
    bootstraps = set()
    with quiet_model(study.algo, study.environment, study.config, study.seed) as model:
        algorithm: Any = type(model)
        # What belongs to single values of the option is no difference beside it.
        shared = [name for name in algorithm.estimate_options if algorithm.suboptions.get(name) != study.option]
        for value in study.values:
            changed = set_options(model, **study.options(value))
            common |= {name: only for name, only in changed.items() if name in shared}
            bootstraps.add(getattr(model, "bootstraps", True))
    # Without being told, only a critic bootstraps, which would be a second difference between the values.
    if len(bootstraps) > 1 and study.option != "truncation" and "truncation" not in study.config:
        common["truncation"] = "terminal"
    return common
