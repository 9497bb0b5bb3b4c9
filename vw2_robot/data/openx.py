"""The Open-X data sets as a table: which picture, which words, how many frames a second.

One row per data set, no code with `if name ==`. `image_key` and `wrist_key` are names inside a step's `observation`
(some contain slashes: they are names, not paths); `language_key` is the path from the step to the instruction. `hz`
follows one public conversion project's table. Weights are those of the two published mixtures ("soups") and multiply
the size of a data set; 0 means not used there. Interfaces specification: section 9.5.

A row states what is commonly found; `rlds.read_rlds` checks it against the features of the copy at hand. Only pixels,
words and rates matter here: actions of foreign robots never enter fine-tuning. Nothing is downloaded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vw2_robot.errors import InputError

STEP_TEXT = ("language_instruction",)
OBSERVATION_TEXT = ("observation", "natural_language_instruction")
_EXTERNAL = "_converted_externally_to_rlds"


@dataclass(frozen=True)
class OpenXSource:
    """One data set. `hz` is None where each episode carries its own rate."""

    name: str
    image_key: str
    hz: float | None
    language_key: tuple[str, ...] = STEP_TEXT
    wrist_key: str | None = None
    octo_weight: float = 0.0
    openvla_weight: float = 0.0
    aliases: tuple[str, ...] = ()
    note: str = ""


def _observed(
    name: str,
    image_key: str,
    hz: float,
    octo: float,
    openvla: float,
    *,
    wrist: str | None = None,
    aliases: tuple[str, ...] = (),
    note: str = "",
) -> OpenXSource:
    """Make a row whose instruction lies in the observation."""
    return OpenXSource(name, image_key, hz, OBSERVATION_TEXT, wrist, octo, openvla, aliases, note)


def _external(
    name: str, image_key: str, hz: float, octo: float, openvla: float, *, wrist: str | None = None, note: str = ""
) -> OpenXSource:
    """Make a row of a set that its authors converted: the long name has the usual ending, the short one is an alias."""
    return OpenXSource(name + _EXTERNAL, image_key, hz, STEP_TEXT, wrist, octo, openvla, (name,), note)


def _stepped(
    name: str,
    image_key: str,
    hz: float | None,
    octo: float,
    openvla: float,
    *,
    wrist: str | None = None,
    aliases: tuple[str, ...] = (),
    note: str = "",
) -> OpenXSource:
    """Make a row whose instruction lies on the step, with an ordinary name."""
    return OpenXSource(name, image_key, hz, STEP_TEXT, wrist, octo, openvla, aliases, note)


SOURCES: tuple[OpenXSource, ...] = (
    # The sets of the two published mixtures.
    _observed("fractal20220817_data", "image", 3, 0.54087122203, 0.54087122203, aliases=("rt_1", "fractal")),
    _observed(
        "kuka", "image", 10, 0.8341046294, 0.8341046294, note="state and gripper are zlib-packed in the old copy"
    ),
    _observed(
        "bridge", "image", 5, 1, 1, aliases=("bridge_oxe", "bridge_data_v2"), note="first step has a zero action"
    ),
    _stepped(
        "bridge_dataset", "image_0", 5, 1, 1, aliases=("bridge_orig",), note="project-site conversion, image_0..image_3"
    ),
    _observed("taco_play", "rgb_static", 15, 2, 2, wrist="rgb_gripper"),
    _observed("jaco_play", "image", 10, 1, 1, wrist="image_wrist"),
    _observed("berkeley_cable_routing", "image", 10, 1, 1, wrist="wrist45_image"),
    _observed("roboturk", "front_rgb", 10, 2, 2),
    _observed(
        "nyu_door_opening_surprising_effectiveness", "image", 3, 1, 0, wrist="image", note="the only view is the wrist"
    ),
    _observed("viola", "agentview_rgb", 20, 2, 2, wrist="eye_in_hand_rgb"),
    _observed("berkeley_autolab_ur5", "image", 5, 2, 2, wrist="hand_image"),
    _observed("toto", "image", 30, 1, 1),
    OpenXSource(
        "language_table",
        "rgb",
        10,
        ("observation", "instruction"),
        octo_weight=0.1,
        openvla_weight=0.1,
        note="the instruction is int32[512], UTF-8 code points padded with zeros",
    ),
    _external("stanford_hydra_dataset", "image", 10, 2, 2, wrist="wrist_image"),
    _external("austin_buds_dataset", "image", 20, 1, 1, wrist="wrist_image"),
    _external("nyu_franka_play_dataset", "image", 3, 3, 3, note="image_additional_view is a second outside view"),
    _external("furniture_bench_dataset", "image", 10, 0.1, 0.1, wrist="wrist_image"),
    _external("ucsd_kitchen_dataset", "image", 2, 2, 2),
    _external("austin_sailor_dataset", "image", 20, 1, 1, wrist="wrist_image"),
    _external("austin_sirius_dataset", "image", 20, 1, 1, wrist="wrist_image"),
    _observed("bc_z", "image", 10, 0.2, 0.2, note="only version 0.1.0 is sound"),
    _external("dlr_edan_shared_control", "image", 5, 1, 1),
    _external("iamlab_cmu_pickup_insert", "image", 20, 1, 1, wrist="wrist_image"),
    _stepped("utaustin_mutex", "image", 20, 1, 1, wrist="wrist_image"),
    _stepped("berkeley_fanuc_manipulation", "image", 10, 2, 2, wrist="wrist_image"),
    _stepped("cmu_stretch", "image", 10, 1, 1),
    _stepped("fmb", "image_side_1", 10, 0, 1, wrist="image_wrist_1", aliases=("fmb_dataset",)),
    _stepped(
        "dobbe",
        "wrist_image",
        3.75,
        0,
        0.2,
        wrist="wrist_image",
        aliases=("dobb_e",),
        note="the only view is the wrist",
    ),
    _stepped("droid", "exterior_image_1_left", 15, 0, 0.06, wrist="wrist_image_left", note="holds idle stretches"),
    # Further sets with known picture and rate, in neither mixture.
    _stepped("cmu_play_fusion", "image", 5, 0, 0),
    _external("maniskill_dataset", "image", 20, 0, 0, wrist="wrist_image", note="simulated"),
    _external("stanford_robocook", "image_1", 5, 0, 0),
    _external("utokyo_xarm_pick_and_place", "image", 10, 0, 0),
    _observed("columbia_cairlab_pusht_real", "image", 10, 0, 0, wrist="wrist_image"),
    _external("nyu_rot_dataset", "image", 3, 0, 0),
    _external("asu_table_top", "image", 12.5, 0, 0),
    _external("kaist_nonprehensile", "image", 10, 0, 0),
    _external("tokyo_u_lsmo", "image", 10, 0, 0),
    _external("ucsd_pick_and_place_dataset", "image", 3, 0, 0),
    _stepped("imperialcollege_sawyer_wrist_cam", "image", 10, 0, 0, wrist="wrist_image"),
    _stepped("berkeley_gnm_recon", "image", 3, 0, 0, wrist="image", note="a driving robot's camera"),
    _stepped("berkeley_gnm_cory_hall", "image", 5, 0, 0, wrist="image", note="a driving robot's camera"),
    _stepped("berkeley_gnm_sac_son", "image", 10, 0, 0, wrist="image", note="a driving robot's camera"),
    _external("berkeley_mvp", "hand_image", 5, 0, 0, wrist="hand_image", note="the only view is the wrist"),
    _external("berkeley_rpt", "hand_image", 30, 0, 0, wrist="hand_image", note="the only view is the wrist"),
    # Written by `rlds_writer.write_rlds`; every episode carries its rate.
    _stepped("vw2_kuka", "image", None, 0, 0, aliases=("vw2_calvin",), note="recorded in simulation by this package"),
)

_BY_NAME = {name: source for source in SOURCES for name in (source.name, *source.aliases)}


def find_source(name: str) -> OpenXSource:
    """Return the row of a data set, by name or alias.

    Raises:
        InputError: the name is unknown; lists the nearest ones.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    nearest = difflib.get_close_matches(name.lower(), _BY_NAME, n=4, cutoff=0.5)
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(source.name for source in SOURCES)}"
    raise InputError(
        f"{name!r} is not in the table of Open-X sources ({hint}); give image_key and hz for a data set of your own"
    )


def known_source(name: str) -> OpenXSource | None:
    """Return the row of a data set, or None for a data set of one's own."""
    return _BY_NAME.get(name)
