"""Every number of README's claims, computed again from the archive of rollouts."""

import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks are not part of the package

from benchmarks.results.archive import read_archive

REPO = Path(__file__).resolve().parents[2]
ARCHIVE = read_archive(REPO / "benchmarks" / "results" / "archive")
STUDENT_T = {2: 12.7062, 3: 4.3027}  # by number of seeds
COUNTS = {1: "one", 2: "two", 3: "three", 5: "five"}


METHODS = {
    "no pre-training": "oracle",
    "no pre-training, longer schedule": "oracle_longer",
    "LAPA method": "lapa",
    "VideoWorld 1 method": "videoworld",
    "dLDM codes, video of the same scene": "vw2",
    "dLDM codes, video of other robots": "vw2_cross",
    "A, B, C → D: no pre-training": "oracle_abc",
    "A, B, C → D: dLDM codes": "vw2_abc",
}
"""in README's table -> in the archive, without the label fraction"""


def sections():
    """The sections with claims: results, without the rows of the table, and what is not claimed; on one line."""
    (text,) = re.findall(
        r"^## Results$(.*?)^## Your own data$", (REPO / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]], text


def claims():
    """The text on one line, as a reader sees it."""
    text = "\n".join(line for line in sections()[1].splitlines() if not line.startswith("|"))
    return " ".join(text.replace("**", "").split())


def named(method, labels):
    """The method of a row of the table, as the archive calls it."""
    name, fraction = METHODS[method], labels.removesuffix(" %")
    if name.endswith("_abc"):
        assert fraction == "100"
        return name
    return f"oracle_{fraction}_longer" if name == "oracle_longer" else f"{name}_{fraction}"


def over_seeds(values, *, top, digits):
    """Mean and t interval, cut to what is possible."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} [{max(0, mean - half):.{digits}f}, {min(top, mean + half):.{digits}f}]"


def solved(job):
    return [row["solved"] for row in ARCHIVE.rollouts[job]]


def by_seed(kind, method):
    """Seed -> subtasks solved, rollout by rollout."""
    prefix = f"{kind}/{method}/"
    return {job.removeprefix(prefix): solved(job) for job in sorted(ARCHIVE.rollouts) if job.startswith(prefix)}


def job(name):
    return ARCHIVE.jobs[name]


def percents(method):
    return [100 * statistics.mean(values) for values in by_seed("single", method).values()]


def percent(method):
    return f"{statistics.mean(percents(method)):.0f}"


def seeds(method):
    return COUNTS[len(percents(method))]


def difference(first, second):
    """Mean over seeds with its t interval; every start is in both rows, so rows differ as their pairs do."""
    values = [a - b for a, b in zip(percents(first), percents(second), strict=True)]
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), statistics.mean(values) - half, statistics.mean(values) + half


def core_minutes(method, pretraining):
    """Pre-training and fine-tuning of a seed, on the one core that each was given, on average."""
    names = [f"finetune/{method}/{seed}" for seed in by_seed("single", method)]
    names += [f"pretrain/{pretraining}/{seed}" for seed in by_seed("single", method)] if pretraining else []
    assert {job(name)["settings"]["hardware.threads"] for name in names} == {1}
    return f"{sum(job(name)['seconds'] for name in names) / 60 / len(percents(method)):.0f}"


def r2(features, target):
    reports = [report["probe"]["in_scene"]["probe"] for report in ARCHIVE.probes.values()]
    tables = [report["moved"][features]["mlp"][target]["r2"] for report in reports]
    return f"{statistics.mean(tables):.2f}"


def stated():
    """What README must say, word for word, with numbers from the archive."""
    chains = solved("package/chains")
    ten, low, high = difference("vw2_10", "oracle_10")
    (rollouts,) = {len(rows) for name, rows in ARCHIVE.rollouts.items() if name.startswith("single/")}
    a_seed = sorted({len(rows) for name, rows in ARCHIVE.rollouts.items() if name.startswith("chains/")})
    other = ARCHIVE.rollouts["package/avx2"]
    usual = ARCHIVE.rollouts["package/chains"]
    changed = sum(row not in usual for row in other)
    ratio = statistics.mean(float(number) for number in re.search(LOGGED_RATIOS, log()).groups())
    yield f"{rollouts} single tasks and {a_seed[0]} or {a_seed[1]} chains of five a seed."
    yield f"with 10 % of the labels, pre-training on codes of the same scene solves {ten:.0f} points"
    yield f"[{low:.0f}, {high:.0f}] more single tasks."
    with_and_without = core_minutes("vw2_10", "vw2"), core_minutes("oracle_10", None)
    yield "It takes {} core-minutes per seed instead of {}.".format(*with_and_without)
    yield f"{core_minutes('oracle_10_longer', None)} core-minutes, solves {percent('oracle_10_longer')} %"
    yield f"({seeds('oracle_10_longer')} seed)."
    yield f"solves {statistics.mean(chains):.1f} of five instructions in a row over the protocol's {len(chains)} chains"
    yield f"(shuffle ratio {ratio:.2f})"
    yield f"R² is {r2('pixels_equal', 'translation')} against {r2('code_values', 'translation')} of translation,"
    yield f"{r2('pixels_equal', 'rotation')} against {r2('code_values', 'rotation')} of rotation,"
    yield f"{r2('pixels_equal', 'opening')} against {r2('code_values', 'opening')} of the gripper"
    yield f"another instruction set, it changed {changed} of {len(other)}."


LOGGED_RATIOS = r"In all three runs of `vw2` the shuffle ratio ends at 1\.00 \((\d\.\d+), (\d\.\d+), (\d\.\d+);"
NOT_MEASURED = ("95 % intervals over seeds", "VideoWorld 1")


def log():
    return " ".join((REPO / "docs" / "lab_log.md").read_text().split())


def test_every_row_of_the_table_is_what_the_archive_says():
    table, _ = sections()
    assert len(table) == 11
    for method, labels, single, length, count in table:
        name = named(method, labels)
        chains = [statistics.mean(values) for values in by_seed("chains", name).values()]
        expected = over_seeds(percents(name), top=100, digits=1), over_seeds(chains, top=5, digits=2)
        assert (single, length) == expected, (method, labels)
        assert int(count) == len(percents(name)) == len(chains)


def test_the_video_at_the_top_is_of_a_chain_as_common_as_the_page_says():
    text = " ".join((REPO / "README.md").read_text().split())
    assert "Three in ten of its chains end like this one" in text
    assert round(10 * statistics.mean(count == 5 for count in solved("package/chains"))) == 3


def test_every_number_of_the_claims_is_what_the_archive_says():
    left = claims()
    for text in stated():
        assert text in left, text
        left = left.replace(text, "", 1)
    for text in NOT_MEASURED:
        left = left.replace(text, "")
    assert not re.findall(r"\S*\d\S*", left), "a number that no rollout stands behind"


def test_the_policy_of_the_package_took_less_than_two_hours_on_two_cores():
    assert "in less than two hours on two cores" in claims()
    names = ("data/D", "images/D", "reference/pretrain", "reference/finetune")
    assert sum(job(name)["seconds"] for name in names) < 2 * 3600


def test_only_one_comparison_has_an_interval_without_zero_over_three_seeds():
    assert "No other difference is shown." in claims()
    pairs = (("vw2_10", "videoworld_10"), ("vw2_100", "oracle_100"), ("vw2_cross_100", "oracle_100"))
    for first, second in pairs:
        _, low, high = difference(first, second)
        assert low < 0 < high, (first, second)
    assert difference("vw2_10", "oracle_10")[1] > 0


def test_no_policy_of_the_archive_decodes_codes_in_control():
    assert "no latent token is decoded in control (`acting=none`)" in claims()
    notes = [note for name, note in ARCHIVE.jobs.items() if "finetune" in name]
    assert len(notes) == 27
    assert {(note["settings"]["acting"], note["settings"]["aids.pose_weight"]) for note in notes} == {("none", 1.0)}


def test_the_ratios_on_the_page_of_results_are_those_of_the_log():
    page = " ".join((REPO / "docs" / "results.md").read_text().split())
    first, second, third = re.search(LOGGED_RATIOS, log()).groups()
    assert f"the codes of another clip was {first}, {second} and {third} times that with the right ones" in page
    assert "shuffle ratio 1.04 with and 1.06 without control video over A, B and C; 1.04, 1.01, 1.02 and" in log()
    assert "Over other robots' video it was 1.01, 1.02 and 1.04, over video of A, B and C 1.04" in page
