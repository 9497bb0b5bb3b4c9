import math

from benchmarks.speed.cache_opening import PER_SHARD, growth, speed_rows


def test_a_simulated_cache_is_opened_and_compared() -> None:
    json_lines, parquet = speed_rows(0, episodes=4 * PER_SHARD)
    assert json_lines.ours > 0
    assert json_lines.ratio > 0
    assert parquet.ratio > 0 or math.isnan(parquet.ratio)
    assert list(growth((2,))) == [100]
