"""Arguments, configurations and studies at random: whether each is refused by name, or works.

usage: python benchmarks/bad_input.py [--examples 10000] [--seed 0]

Three fifths are constructors of the algorithms, of which every second one that is made also learns; one fifth each
are configurations of the zoo and study files. Exits with 1 if an example ends in anything else.
"""

import argparse
import collections
import sys
import time
import traceback
import warnings

import torch as th
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.inputs import OUTCOMES, Example

SHARES = {"constructor": 0.6, "configuration": 0.2, "study": 0.2}


def outcomes(kind: str, n_examples: int, first_seed: int) -> collections.Counter[str]:
    """
    :param kind: one of :data:`OUTCOMES`
    :param n_examples: how many
    :param first_seed: of the first thousand; the next thousand has the next one
    :return: what came of them; failures are printed
    """
    found: collections.Counter[str] = collections.Counter()
    examples, outcome = OUTCOMES[kind]
    begin = time.perf_counter()

    def check(example: Example) -> None:
        if found.total() == n_examples:
            return
        try:
            found[outcome(example, found.total())] += 1
        except Exception:
            found["FAILED"] += 1
            print(f"\n{example}\n{traceback.format_exc()}", flush=True)
        if found.total() % 100 == 0:
            print(f"\r{kind}: {found.total()} in {time.perf_counter() - begin:.0f} s", end="", flush=True)

    while found.total() < n_examples:
        drawing = settings(
            max_examples=1000,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(first_seed)(drawing(given(examples)(check)))()
        first_seed += 1
    print(f"\r{kind}: {dict(found)} in {time.perf_counter() - begin:.0f} s", flush=True)
    return found


def main() -> None:
    """Draw, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    warnings.simplefilter("ignore")

    total: collections.Counter[str] = collections.Counter()
    for kind, share in SHARES.items():
        total += outcomes(kind, round(share * arguments.examples), arguments.seed)
    print(f"{total.total()} examples: {dict(total)}")
    sys.exit(1 if total["FAILED"] else 0)


if __name__ == "__main__":
    main()
