"""
Two hosts on one machine, and the time of gloo's all-reduce between them. As root, on Linux with iproute2.

usage: python -m benchmarks.hosts [--rate 100mbit] [-- COMMAND ...]

The hosts are network namespaces with a virtual link, whose bandwidth --rate limits (tc's token bucket); without it the
link is as fast as the kernel. COMMAND runs on both, as ranks 0 and 1 of a group: torch finds it in the environment
(MASTER_ADDR, RANK, WORLD_SIZE). Without a COMMAND, all-reduces of several sizes are timed, and printed as JSON: bytes
and seconds, the quickest of many, as other programs disturb the others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th
import torch.distributed as dist

SIZES = (4, 4_000, 40_000, 400_000, 2_000_000)
"""Bytes of an all-reduce."""

NAMES = ("pgext0", "pgext1")
"""Of the hosts, and of their ends of the link."""


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


@contextmanager
def two_hosts(rate: str | None = None) -> Iterator[list[list[str]]]:
    """
    :param rate: bandwidth of the link, as tc has it (``100mbit``); None for no limit
    :return: context of what stands before a command to run it on either host
    """
    try:
        for name in NAMES:
            _run(f"ip netns add {name}")
        _run(f"ip link add {NAMES[0]} type veth peer name {NAMES[1]}")
        for i, name in enumerate(NAMES):
            _run(f"ip link set {name} netns {name}")
            _run(f"ip -n {name} addr add 10.77.0.{i + 1}/24 dev {name}")
            _run(f"ip -n {name} link set lo up")
            _run(f"ip -n {name} link set {name} up")
            if rate is not None:
                _run(f"ip netns exec {name} tc qdisc add dev {name} root tbf rate {rate} burst 32k latency 50ms")
        yield [["ip", "netns", "exec", name] for name in NAMES]
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def run_ranks(prefixes: Sequence[Sequence[str]], command: Sequence[str], address: str, links: Sequence[str]) -> str:
    """
    Run a command as the ranks of a group.

    :param prefixes: what stands before it, for each rank
    :param command: the command
    :param address: of rank 0
    :param links: the network interface of each rank
    :return: what rank 0 printed
    :raises subprocess.CalledProcessError: a rank failed
    """
    group = {"MASTER_ADDR": address, "MASTER_PORT": "29511", "WORLD_SIZE": str(len(prefixes)), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank, (prefix, link) in enumerate(zip(prefixes, links, strict=True)):
        variables = os.environ | group | {"RANK": str(rank), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": link}
        ranks.append(subprocess.Popen([*prefix, *command], env=variables, stdout=subprocess.PIPE, text=True))
    printed = [rank.communicate()[0] for rank in ranks]
    for rank in ranks:
        if rank.returncode:
            raise subprocess.CalledProcessError(rank.returncode, list(command))
    return printed[0]


def time_all_reduces(repetitions: int = 100) -> dict[int, float]:
    """
    Time all-reduces between the ranks of the group that the environment names.

    :param repetitions: of each size
    :return: bytes → seconds of the quickest
    """
    dist.init_process_group("gloo")
    quickest: dict[int, float] = {}
    for size in SIZES:
        x = th.ones(size // 4)
        times = []
        for _ in range(repetitions if size < 10**6 else repetitions // 5):
            begin = time.perf_counter()
            dist.all_reduce(x)
            times.append(time.perf_counter() - begin)
        quickest[size] = min(times)
    dist.destroy_process_group()
    return quickest


def all_reduce_times(where: str) -> dict[int, float]:
    """
    Time all-reduces of two ranks.

    :param where: ``"one host"``, ``"two hosts"``, or the bandwidth of a link between two hosts (``100mbit``)
    :return: bytes → seconds of the quickest
    """
    command = [sys.executable, "-m", "benchmarks.hosts", "--time"]
    if where == "one host":
        printed = run_ranks([[], []], command, "127.0.0.1", ["lo", "lo"])
    else:
        with two_hosts(None if where == "two hosts" else where) as prefixes:
            printed = run_ranks(prefixes, command, "10.77.0.1", NAMES)
    return {int(size): seconds for size, seconds in json.loads(printed).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate")
    parser.add_argument("--time", action="store_true", help="be one of the ranks")
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    if args.time:
        print(json.dumps(time_all_reduces()))
    elif args.command:
        with two_hosts(args.rate) as prefixes:
            print(run_ranks(prefixes, args.command, "10.77.0.1", NAMES), end="")
    else:
        print(json.dumps(all_reduce_times(args.rate or "two hosts")))


if __name__ == "__main__":
    main()
