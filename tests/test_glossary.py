"""The glossary: one word for one thing, the field's own, in names, files, keys and in what a user reads.

Read from source text alone. `python tests/test_glossary.py FOLDER...` lists what is wrong there.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = ("vw2_robot/", "envs/", "pretrain/", "finetune/", "rollouts/", "benchmarks/", "integrations/")

# Words that no name of ours may have as a part, and what they are called instead.
NOT_IN_NAMES = {
    "film films picture pictures": "video; image, frame or figure",
    "words sentence sentences said told say tell": "instruction; overrides or arguments; log or message",
    "look looks": "policy call, observation",
    "watcher watchers": "callback",
    "replan": "n_action_steps",
    "horizon": "chunk_size",
    "arms": "other_robots, embodiment; method",
    "thing things eye eyes lens lenses": "object, camera position, intrinsics",
    "turn turns": "rotation",
    "hand": "end effector, end_effector_pose",
    "own": "predicted codes",
    "teach taught teacher": "labeled with codes; ground-truth codes",
    "blind blank": "code_dropout, null codes",
    "material": "datasets",
    "hint hints": "control video",
    "digit digits": "FSQ dimensions",
    "disturb disturbed disturbance": "encoder augmentation",
    "crew hire dismiss station": "WorkerPool, spawn, dispatch, shutdown, Worker",
    "twin twins": "clone",
    "claim greet": "bind, log_start",
    "race races verdict verdicts stake stakes": "sequential test, decision, bet",
    "piece pieces stretch stretches lane lanes bad": "shard, segment, interleaved reader, skipped",
    "draw draws drawn": "sample; plot",
    "bump bumps mistake mistakes vain": "perturbations, failed attempts, recovery starts",
    "asked choices": "task wrapper, validation of options",
    "health": "diagnostics",
}
# Names that a standard format or a library owns: what, and whose.
OWNED = {
    "turn_on_led": "CALVIN's task", "turn_off_led": "CALVIN's task", "turn_on_lightbulb": "CALVIN's task",
    "turn_off_lightbulb": "CALVIN's task", "eye_in_hand_rgb": "Open-X", "hand_image": "Open-X",
    "get_type_hints": "Python's typing", "ImageDraw": "Pillow", "Draw": "Pillow", "choices": "argparse",
    "break_long_words": "Python's textwrap", "look_at": "viser",
    "eye": "NumPy and PyTorch", "BadZipFile": "Python's zipfile", "tell": "Python's file objects",
    "instruction_words": "words of a language, in a tokenizer",
    "cameraEyePosition": "PyBullet", "panda_hand": "the Panda's URDF",
    "HumanHand": "a person's", "HUMAN_HAND": "a person's", "human_hand": "a person's",
    "film": "FiLM layers (Perez et al. 2018)",
}  # fmt: skip
# Single names with one meaning too many, and keys whose unit is not told.
NOT_AS_NAME = {
    "mark": "write_json", "read_mark": "read_json", "let_go": "release", "hand_out": "dispatch", "z_head": "pre_quant",
    "starting_point": "pretrained_init",
}  # fmt: skip
BRITISH = (
    r"colour|grey|(?<![a-z])(?:cent|met)res?(?![a-z])|(?:label|cancel|travel|model|level|signal)led|labelling|behaviour|neighbour"
    r"|(?:normal|quant|recogn|optim|initial|organ|visual|general|minim|maxim|serial|synchron|summar)is(?:e|ed|er|es|ing|ation)(?![a-z])"
)
NOT_IN_TEXT = re.compile(
    r"(?i)(?<![\w-])(?:films?|pictures?|hints?|twins?|crew|watchers?|lanes?|by heart|from nothing|replan_every"
    r"|blind_share|disturb\w*|verdicts?|z_head|bumps|(?:policy|model)'s own eyes|a look|looks again|in vain)(?![\w-])"
)
_MEANS = {word: instead for words, instead in NOT_IN_NAMES.items() for word in words.split()}
_PART = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def python_files(*folders: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    return [REPO / name for name in listed.split() if name.startswith(folders or PACKAGE)]


def wrong_names(path: Path) -> Iterator[str]:
    """Names in a file that have a word of the left column as a part, an integer called frames or steps, `_s`."""
    text = path.read_text(encoding="utf-8")
    seen: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = token.string
        if token.type != tokenize.NAME or name in seen or name in OWNED:
            continue
        seen.add(name)
        for part in _PART.findall(name):
            if instead := _MEANS.get(part.lower()):
                yield f"{token.start[0]}: {name} ({part.lower()}: {instead})"
                break
        else:
            if name in NOT_AS_NAME:
                yield f"{token.start[0]}: {name} ({NOT_AS_NAME[name]})"
            elif name.endswith("_s"):
                yield f"{token.start[0]}: {name} (_seconds, or a unit in words)"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign) and isinstance(node.annotation, ast.Name):
            target = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
            if node.annotation.id == "int" and target in ("frames", "steps"):
                yield f"{node.lineno}: {target}: int (num_frames; latent_steps, train_steps, env_steps, physics_steps)"


def wrong_text(path: Path) -> Iterator[str]:
    """Lines of a text with a word of the left column, or British spelling."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for found in (NOT_IN_TEXT.search(line), re.search(BRITISH, line, re.IGNORECASE)):
            if found and not any(owned in line for owned in ("an old name", "FiLM", "self.film", "get_type_hints")):
                yield f"{number}: {found.group()!r} in: {line.strip()[:90]}"


def text_files() -> list[Path]:
    command = ["git", "ls-files", "*.py", "*.md", "*.yaml", "*.jinja", "*.cfg", "Makefile"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split()
    skipped = (
        "envs/annotations",
        "envs/tasks",
        "envs/assets",
        "tests/test_glossary.py",
        "tests/golden/before_renaming",
        "ATTRIBUTIONS",
    )
    skipped += ("vw2_robot/aliases.py", "tests/unit/test_aliases.py")  # the old names themselves
    return [REPO / name for name in listed if not name.startswith(skipped)]


@pytest.mark.parametrize("folder", PACKAGE)
def test_names_are_the_words_of_the_glossary(folder: str) -> None:
    wrong = [f"{path.relative_to(REPO)}:{what}" for path in python_files(folder) for what in wrong_names(path)]
    assert not wrong, "\n".join(["", *wrong])


def test_what_a_user_reads_is_in_the_words_of_the_glossary() -> None:
    wrong = [f"{path.relative_to(REPO)}:{what}" for path in text_files() for what in wrong_text(path)]
    assert not wrong, "\n".join(["", *wrong])


if __name__ == "__main__":
    for path in python_files(*sys.argv[1:]):
        for what in wrong_names(path):
            print(f"{path.relative_to(REPO)}:{what}")
    for path in text_files():
        if path.relative_to(REPO).as_posix().startswith(tuple(sys.argv[1:])):
            for what in wrong_text(path):
                print(f"{path.relative_to(REPO)}:{what}")
