from pathlib import Path

import pytest

from vw2_robot.data.sources.mixtures import MIXTURES, mixture_weights, open_mixture
from vw2_robot.data.sources.openx import all_sources, find_source
from vw2_robot.errors import InputError

WRIST = "nyu_door_opening_surprising_effectiveness"


def lay(root: Path, *folders: str) -> None:
    """Mark folders as data sets; a mixture looks at nothing but where they lie."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "dataset_info.json").write_text("{}")


def lay_all(root: Path, mixture: str) -> None:
    lay(root, *(f"{source.name}/{source.version}" for source in mixture_weights(mixture)))


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("mixture", "size"), [("octo", 24), ("openvla", 26)])
def test_a_published_mixture_has_its_weights_and_no_wrist(tmp_path: Path, mixture: str, size: int) -> None:
    lay_all(tmp_path, mixture)
    members = open_mixture(mixture, tmp_path)
    assert len(members) == size  # one set of each has no outside view
    by_name = {member.source.name: member for member in members}
    assert by_name["taco_play"].weight == 2
    assert by_name["fractal20220817_data"].weight == 0.54087122203
    assert by_name["viola"].path == str(tmp_path / "viola" / "0.1.0")
    assert not any(member.source.wrist_only for member in members)


def test_wrist_only_sets_come_when_asked_for() -> None:
    assert find_source(WRIST) in mixture_weights("octo", wrist_only=True)
    assert find_source("dobbe") in mixture_weights("openvla", wrist_only=True)
    assert find_source("dobbe") not in mixture_weights("videoworld2")


def test_videoworld2_is_every_set_with_an_outside_view_once(tmp_path: Path) -> None:
    lay_all(tmp_path, "videoworld2")
    members = open_mixture("videoworld2", tmp_path)
    outside = [s for s in all_sources() if not s.wrist_only and s.left_out is None and s.name != "bridge"]
    assert {member.source for member in members} == set(outside)
    assert {member.weight for member in members} == {1.0}
    assert len(members) >= 48


def test_of_two_conversions_one_is_taken(tmp_path: Path) -> None:
    lay_all(tmp_path, "octo")
    (tmp_path / "bridge_dataset/1.0.0/dataset_info.json").unlink()
    assert "bridge" in {member.source.name for member in open_mixture("octo", tmp_path)}
    (tmp_path / "bridge/0.1.0/dataset_info.json").unlink()
    with pytest.raises(InputError, match="lacks 1 of the 24 data sets of 'octo': bridge;"):
        open_mixture("octo", tmp_path)


def test_what_is_missing_is_answered_with_the_commands(tmp_path: Path) -> None:
    lay(tmp_path, "viola/0.1.0")
    mixture = own(tmp_path, "viola: 1\ntoto: 2.5\nrt_1: 1\n")
    with pytest.raises(InputError) as error:
        open_mixture(mixture, tmp_path)
    lines = str(error.value).splitlines()
    assert "lacks 2 of the 3 data sets" in lines[0]
    assert lines[1:] == [
        f"  mkdir -p {tmp_path}/{name} && gsutil -m cp -r gs://gresearch/robotics/{name}/0.1.0 {tmp_path}/{name}/"
        for name in ("toto", "fractal20220817_data")
    ]


def test_names_of_ones_own_may_be_aliases_and_folders_too(tmp_path: Path) -> None:
    lay(tmp_path, "bridge_orig/1.0.0", "dobb_e/0.0.1", "viola/0.2.0", "viola/0.10.0", "toto/0.1.0", "toto/0.3.0")
    members = open_mixture(own(tmp_path, "bridge_orig: 1\ndobbe: 0.5\nviola: 1\ntoto: 1\n"), tmp_path)
    assert [(member.source.name, member.weight, Path(member.path).relative_to(tmp_path)) for member in members] == [
        ("bridge_dataset", 1.0, Path("bridge_orig/1.0.0")),
        ("dobbe", 0.5, Path("dobb_e/0.0.1")),  # named by hand: the wrist is meant
        ("viola", 1.0, Path("viola/0.10.0")),  # the newest, since the table's version is not there
        ("toto", 1.0, Path("toto/0.1.0")),  # the table's version
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys and values; expected one line for each data set"),
        ("- viola\n", "holds no keys and values"),
        ("{}", "holds no mixture"),
        ("viola: [", "no valid YAML"),
        ("viola: 2001-13-45", "no valid YAML .*month must be in"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nviola: *b\n", "aliases"),
        ("viola: 0\n", "the weight of viola must be a positive number, found 0"),
        ("viola: yes\n", "must be a positive number, found True"),
        ("viola: .inf\n", "must be a positive number, found inf"),
        ("violo: 1\n", "'violo' is not in the table .*nearest: viola"),
        ("fmb: 1\nfmb_dataset: 1\n", "names fmb twice, the second time as fmb_dataset"),
    ],
)
def test_a_bad_mixture_of_ones_own_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_mixture(own(tmp_path, text), tmp_path)


def test_an_unknown_mixture_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"okto is neither a mixture \({', '.join(MIXTURES)}\) nor a yaml file"):
        open_mixture("okto", tmp_path)


def test_a_bucket_is_searched_like_a_folder_and_members_open(shared_dir: Path, tmp_path: Path) -> None:
    """`ram://` stands for a bucket."""
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra openx)")
    mixture = own(tmp_path, "bridge_dataset: 3\n")
    with pytest.raises(InputError, match="ram://mixture lacks 1 of the 1"):
        open_mixture(mixture, "ram://mixture/")
    there = "ram://mixture/bridge_dataset/1.0.0"
    tf.io.gfile.makedirs(there)
    for file in folder.iterdir():
        tf.io.gfile.copy(str(file), f"{there}/{file.name}", overwrite=True)
    for root in ("ram://mixture/", shared_dir / "openx"):
        (member,) = open_mixture(mixture, root)
        data = member.open(splits=("train", "val"))
        assert (member.weight, data.name, data.hz, len(data.parts())) == (3.0, "bridge_dataset", 5.0, 2)
        assert len(list(data.read(1))) == 25
