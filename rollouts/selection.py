"""Which chains an evaluation runs: the whole list, numbers and ranges of it, or one shard of many.

    sequences=0:100   sequences=[0:50,704,771]   shard=2/8

Numbers are the benchmark's own, so a subset's rows are those of the whole evaluation. Shards are consecutive pieces of
the selected list (not every n-th chain: rows of a batch are by number mod N, and consecutive numbers spread over all).
"""

from __future__ import annotations

from collections.abc import Sequence

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

Spec = str | int
"""A number, or "first:last" without the last, as in Python."""


def select(chains: Sequence[EvalSequence], specs: Sequence[Spec]) -> list[EvalSequence]:
    """The chains with the numbers asked for, in the order of `chains`; all where `specs` is empty.

    Raises:
        InputError: a specification that is none, or a number that no chain has.
    """
    if not specs:
        return list(chains)
    known = {chain.number for chain in chains}
    wanted: set[int] = set()
    for spec in specs:
        numbers = _numbers(spec)
        if strangers := sorted(set(numbers) - known)[:3]:
            raise InputError(
                f"sequences: {spec} asks for chain {strangers[0]}, but there are chains {min(known)} to {max(known)} "
                "(num_sequences says how many of the benchmark's chains to consider)"
            )
        wanted |= set(numbers)
    return [chain for chain in chains if chain.number in wanted]


def _numbers(spec: Spec) -> range:
    first, colon, last = str(spec).partition(":")
    try:
        numbers = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers or numbers[0] < 0:
        raise InputError(f"sequences: {spec!r} is neither a chain number nor a range first:last, such as 704 or 0:100")
    return numbers


def parse_shard(shard: str) -> tuple[int, int]:
    """Number and count: "2/8" is (2, 8), the third of eight shards.

    Raises:
        ValueError: not of this form, or no such shard.
    """
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={shard!r}, expected i/n with 0 <= i < n, such as 0/8")
    return int(number), int(count)


def piece(chains: Sequence[EvalSequence], shard: str | None) -> list[EvalSequence]:
    """The chains of one shard; sizes differ by at most one."""
    if shard is None:
        return list(chains)
    number, count = parse_shard(shard)
    return list(chains[len(chains) * number // count : len(chains) * (number + 1) // count])


def shard_folder(shard: str) -> str:
    """Name of a shard's folder below run_dir."""
    number, count = parse_shard(shard)
    return f"shard_{number:0{len(str(count - 1))}d}_of_{count}"
