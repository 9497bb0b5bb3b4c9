"""The laws of label selection: deterministic, nested, exact, proportional."""

from collections import Counter

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vw2_robot.data.labels import label_order, select_labels

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SEEDS = st.integers(0, 5)
FRACTIONS = st.one_of(st.just(0.0), st.floats(0.05, 1.0))


def episodes(sizes: list[int]) -> tuple[list[str], list[str]]:
    strata = [f"task_{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return strata, [f"episode_{number}" for number in range(len(strata))]


@given(SIZES, SEEDS, st.tuples(FRACTIONS, FRACTIONS))
def test_smaller_fractions_are_subsets_and_totals_are_exact(
    sizes: list[int], seed: int, fractions: tuple[float, float]
) -> None:
    strata, ids = episodes(sizes)
    assume(all(fraction == 0.0 or fraction * len(ids) >= 0.5 for fraction in fractions))  # the rest is refused
    small, large = (select_labels(strata, ids, fraction=fraction, seed=seed) for fraction in sorted(fractions))
    assert set(small) <= set(large)
    for chosen, fraction in zip((small, large), sorted(fractions), strict=True):
        assert len(chosen) == len(set(chosen)) == int(fraction * len(ids) + 0.5)
        assert chosen == sorted(chosen)


@given(SIZES, SEEDS)
def test_every_prefix_is_proportional(sizes: list[int], seed: int) -> None:
    """Every budget n, not only those of round fractions: shares g * n / total, compared in whole numbers."""
    strata, ids = episodes(sizes)
    total, held = len(ids), Counter[str]()
    for n, position in enumerate(label_order(strata, ids, seed=seed), start=1):
        held[strata[position]] += 1
        counts = [held[f"task_{number}"] for number in range(len(sizes))]
        shares = [(size * n // total, -(-size * n // total)) for size in sizes]  # rounded down, rounded up
        assert all(count <= up for count, (_, up) in zip(counts, shares, strict=True))
        assert sum(counts) == n
        if n >= len(sizes):
            assert min(counts) >= 1
        if n * min(sizes) >= total:  # every share is at least one: within one of proportional on both sides
            assert all(count >= down for count, (down, _) in zip(counts, shares, strict=True))
        owed = sum(max(0, down - count) for count, (down, _) in zip(counts, shares, strict=True))
        assert owed <= sum(down == 0 for down, _ in shares)  # what "one for everybody" may cost, and no more


@given(SIZES, SEEDS)
def test_below_one_for_everybody_no_stratum_gets_two(sizes: list[int], seed: int) -> None:
    strata, ids = episodes(sizes)
    first = label_order(strata, ids, seed=seed)[: len(sizes)]
    assert len({strata[position] for position in first}) == len(sizes)


@settings(max_examples=50)
@given(SIZES, SEEDS, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_file_order(sizes: list[int], seed: int, random: object) -> None:
    strata, ids = episodes(sizes)
    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    there = label_order([strata[i] for i in shuffled], [ids[i] for i in shuffled], seed=seed)
    assert [ids[shuffled[position]] for position in there] == [
        ids[position] for position in label_order(strata, ids, seed=seed)
    ]


def test_seeds_choose_differently() -> None:
    strata, ids = episodes([50, 50])
    assert select_labels(strata, ids, fraction=0.1, seed=0) != select_labels(strata, ids, fraction=0.1, seed=1)
