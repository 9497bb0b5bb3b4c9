"""Selection of the chains that an evaluation runs: all of them, numbers and ranges, or one shard of many.

    sequences=0:100   sequences=[0:50,704,771]   shard=2/8

Numbers are the benchmark's own, so a subset has the rows of the whole evaluation. A shard is a run of consecutive
chains of the selected list, not every n-th chain: the row of a chain in a batch is its number mod N, and consecutive
numbers spread over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

Spec = str | int
"""A number, or "first:last" without the last, as in Python."""


def select(chains: Sequence[EvalSequence], specs: Sequence[Spec]) -> list[EvalSequence]:
    """Return the chains with the given numbers, in the order of `chains`; all of them where `specs` is empty.

    Args:
        chains: The chains to choose from.
        specs: Numbers and ranges.

    Raises:
        InputError: An entry is neither a number nor a range, or names a number that no chain has.
    """
    if not specs:
        return list(chains)
    known = {chain.number for chain in chains}
    selected: set[int] = set()
    for spec in specs:
        first, colon, last = str(spec).partition(":")
        try:
            numbers = range(int(first), int(last) if colon else int(first) + 1)
        except ValueError:
            numbers = range(0)
        if not numbers or numbers[0] < 0:
            raise InputError(
                f"sequences: {spec!r} is neither a chain number nor a range first:last, such as 704 or 0:100"
            )
        if unknown := sorted(set(numbers) - known)[:3]:
            raise InputError(
                f"sequences: {spec} asks for chain {unknown[0]}, but there are chains {min(known)} to {max(known)} "
                "(num_sequences says how many of the benchmark's chains to consider)"
            )
        selected |= set(numbers)
    return [chain for chain in chains if chain.number in selected]


def parse_shard(shard: str) -> tuple[int, int]:
    """Return number and count: "2/8" is (2, 8), the third of eight shards.

    Raises:
        ValueError: Not of this form, or no such shard.
    """
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={shard!r}, expected i/n with 0 <= i < n, such as 0/8")
    return int(number), int(count)


def shard_sequences(chains: Sequence[EvalSequence], shard: str | None) -> list[EvalSequence]:
    """Return the chains of one shard; sizes of shards differ by at most one. None: all chains."""
    if shard is None:
        return list(chains)
    number, count = parse_shard(shard)
    return list(chains[len(chains) * number // count : len(chains) * (number + 1) // count])


def shard_folder(shard: str) -> str:
    """Return the name of a shard's folder below run_dir, such as shard_02_of_16."""
    number, count = parse_shard(shard)
    # Leading zeros, so that an alphabetical listing is in the order of shards.
    return f"shard_{number:0{len(str(count - 1))}d}_of_{count}"
