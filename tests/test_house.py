"""The house keeps its own rules: who may import whom, what is installed, what the pages promise.

Reads source text only (syntax trees, setup.cfg, yaml); nothing of ours is imported here, so it runs in a second.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
MOST_FILES = 20
SISTERS = ("envs", "pretrain", "finetune", "rollouts")

# Packages that are slow to import or optional, and the files that wrap them. Nobody else names them, not even lazily.
WRAPPED = {
    "tensorflow": {"data/sources/rlds_builder.py", "data/rlds_writer.py"},
    "tensorflow_datasets": {
        "data/sources/rlds_builder.py",
        "data/rlds_writer.py",
        "envs/recording/record.py",
    },  # record: asks early
    "rlds": {"data/replay/rlds_transformations.py"},
    "triton": {"data/sources/rlds_builder.py"},
    "reverb": {"data/replay/reverb_tables.py"},
    "pybullet": {"envs/physics.py"},
    "pybullet_data": {"envs/asset_tools/make_assets.py", "envs/physics.py"},
    "diffusers": {"models/video/cosmos.py", "models/video/wan.py"},
    "peft": {"models/video/cosmos.py"},
    "transformers": {
        "models/policy/backbone.py",
        "models/policy/last_layer.py",
        "models/policy/pretrained.py",
        "models/policy/kv_cache.py",
        "models/judge.py",
    },
    "tokenizers": {"models/policy/pretrained.py"},
    "hydra": {"command_line", "rollouts/config.py"},  # rollouts: opens the benchmark that a yaml file names
    "matplotlib": {"rollouts/report/curves.py"},
    "umap": {"pretrain/probing/latent_map.py"},
    "jinja2": {"rollouts/report/report.py", "doctor/data_report.py"},
    "imageio_ffmpeg": {
        "storage/mp4.py",
        "rollouts/__main__.py",
        "envs/recording/record.py",
        "envs/video_recorder.py",
    },  # all but mp4: ask early
    "av": {"data/sources/video_files.py"},
    "msgpack": {"serving/wire.py"},
    "websockets": {"serving/server.py", "serving/client.py"},
    "pyarrow": {"data/sources/lerobot_dataset.py", "conversion/lerobot_shards.py"},
    "lerobot": set[str](),  # the plugin is a distribution of its own
    "wandb": {"storage/tracking.py", "command_line/preflight.py"},
    "gymnasium": {"envs"},
    "mujoco": {"envs/meta_world"},
    "metaworld": {"envs/meta_world"},
    "vla_eval": {"serving/vla_eval_server.py"},
    "rclpy": {"serving/ros2_node.py"},
    "viser": {"rollouts/live/page.py"},
    "trimesh": {"rollouts/live/meshes.py"},
}
# envs/__init__.py asks for these by their extra, before any other file of that folder is read.
ASKED_FOR_BY_ENVS = {"gymnasium", "omegaconf"}
# Asked for by its extra in the line above, since a class there derives from one of it.
ASKED_FOR_AT_THE_START = {("vw2_robot.serving.vla_eval_server", "vla_eval")}
# Come with the stack whose adapter names them, and not from an index.
OF_THE_STACK = {"lerobot", "rclpy", "geometry_msgs", "sensor_msgs", "std_msgs"}
# What is imported under another name than it is installed.
DISTRIBUTION = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "hydra": "hydra-core",
    "huggingface_hub": "huggingface-hub",
    "reverb": "dm-reverb",
    "tensorflow_datasets": "tensorflow-datasets",
    "pybullet_data": "pybullet",
    "umap": "umap-learn",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "triton": "torch",  # comes with its CUDA builds
}

# Distributions of their own, and what they import beside the library and its core.
PLUGINS = {"integrations/lerobot/lerobot_policy_vw2": {"lerobot", "draccus", "gymnasium"}}


class Import(NamedTuple):
    """One import: `who` (dotted module name) names `what` (dotted, absolute) in line `line`."""

    who: str
    what: str
    line: int
    level: int  # leading dots of a relative import
    at_start: bool  # runs when `who` is imported


def folder_of(package: str) -> Path:
    """vw2_robot.envs -> envs/, vw2_robot.models -> vw2_robot/models/."""
    parts = package.split(".")[1:]
    return REPO.joinpath(*parts) if parts and parts[0] in (*SISTERS, "configs") else REPO.joinpath("vw2_robot", *parts)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(REPO).with_suffix("").parts)
    parts = parts if parts[0] == "vw2_robot" else ["vw2_robot", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module that is installed, by its dotted name."""
    tops = [REPO / name for name in ("vw2_robot", *SISTERS, "configs")]
    return {module_name(path): path for top in tops for path in sorted(top.rglob("*.py"))}


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    return [REPO / name for name in listed.splitlines()]


def imports_of(name: str, path: Path) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {inner for node in ast.walk(tree) if _is_late(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, 0, node not in late)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{parent}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(name, inner if inner in modules() else base, node.lineno, node.level, node not in late)
        elif isinstance(node, ast.Call) and _called(node) in {"require", "import_module", "__import__"} and node.args:
            target = getattr(node.args[0], "value", None)
            yield from [Import(name, target, node.lineno, 0, node not in late)] if isinstance(target, str) else []


def _is_late(node: ast.AST) -> bool:
    """Whether the inside of `node` does not run at import time: a function, or `if TYPE_CHECKING`."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in imports_of(name, path))


def place_of(module: str) -> str:
    """Where a module of ours stands: floor1, a part of the library, a program in it, a sister folder, configs."""
    parts = module.split(".")
    if len(parts) == 1:
        return "root"
    if parts[1] in {
        "models",
        "data",
        "agent",
        "hub",
        "doctor",
        "conversion",
        "replay_programs",
        "serving",
        "configs",
        *SISTERS,
    }:
        return parts[1]
    return "floor1"


LIBRARY = {"root", "floor1", "models", "data", "agent"}
MAY_IMPORT = {
    "root": {"root", "floor1", "agent"},  # the agent is fetched on first use
    "floor1": {"root", "floor1"},
    "models": {"root", "floor1", "models"},
    "data": {"root", "floor1", "data"},
    "hub": {"root", "floor1", "data", "hub"},
    "agent": LIBRARY | {"hub"},
    "doctor": {"root", "floor1", "data", "doctor"},
    "replay_programs": {"root", "floor1", "data", "replay_programs"},
    "conversion": {"root", "floor1", "models", "data", "conversion"},
    "serving": {"root", "floor1", "agent", "hub", "serving"},
    "configs": set[str](),
    **{sister: LIBRARY | {sister} for sister in SISTERS},
}


def test_there_are_modules_to_look_at() -> None:
    assert {"vw2_robot", "vw2_robot.contracts", "vw2_robot.models.dldm.dldm", "vw2_robot.envs.calvin"} <= set(modules())
    assert any(found.what == "torch" for found in all_imports())


def test_every_place_imports_only_what_the_table_allows() -> None:
    broken = [
        f"{found.who}:{found.line} imports {found.what}"
        for found in all_imports()
        if found.what.split(".")[0] == "vw2_robot" and place_of(found.what) not in MAY_IMPORT[place_of(found.who)]
    ]
    assert not broken, "\n".join(["", *broken])


def test_no_import_leaves_its_top_folder_by_dots_or_names_a_sister_folder_as_a_package() -> None:
    """One `..` leads from a shelf to its top folder; `import envs` makes a second copy of every class in a checkout."""
    broken = [
        f"{found.who}:{found.line} imports {found.what}"
        for found in all_imports()
        if found.level > 2
        or (found.level == 2 and place_of(found.what) != place_of(found.who))
        or found.what.split(".")[0] in (*SISTERS, "configs")
    ]
    assert not broken, "\n".join(["", *broken])


def test_no_folder_is_too_full_to_be_read_at_a_glance() -> None:
    full = {
        folder.relative_to(REPO).as_posix(): count
        for folder, count in Counter(path.parent for path in python_files()).items()
        if count > MOST_FILES
    }
    assert not full


def test_no_two_modules_and_no_two_shelves_import_one_another() -> None:
    """A shelf may use what lies beside it in its top folder and the other way round; between two shelves, one way."""
    arrows = {
        (found.who, found.what)
        for found in all_imports()
        if found.what in modules() and found.who != found.what and found.who != "vw2_robot"  # fetches the agent late
    }
    shelves = {(shelf_of(who), shelf_of(what)) for who, what in arrows if shelf_of(who) and shelf_of(what)}
    assert circle_in(arrows) is None
    assert circle_in({(a, b) for a, b in shelves if a != b}) is None


def shelf_of(module: str) -> str:
    """vw2_robot.models.dldm.fsq -> vw2_robot.models.dldm; "" for what lies on no shelf of a top folder."""
    folder = modules()[module].parent
    name = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    return name if folder_of(name) == folder and name.count(".") > 1 and "." in name[len("vw2_robot.") :] else ""


def circle_in(arrows: set[tuple[str, str]]) -> list[str] | None:
    """Nodes that reach one another, or None."""
    targets: dict[str, set[str]] = {}
    for who, what in arrows:
        targets.setdefault(who, set()).add(what)
    left = set(targets)
    while done := {node for node in left if not targets[node] & left}:
        left -= done
    return sorted(left) or None


def test_a_class_name_is_used_once() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_inside_a_folder_imports_are_relative() -> None:
    """Also what lets mypy see a sister folder under one name."""
    broken = [
        f"{found.who}:{found.line} imports {found.what}"
        for found in all_imports()
        if found.level == 0
        and place_of(found.who) not in {"floor1", "root"}
        and found.what.startswith(f"vw2_robot.{place_of(found.who)}.")
    ]
    assert not broken, "\n".join(["", *broken])


def test_nothing_touches_the_import_path() -> None:
    broken = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", "") == "sys"
    ]
    assert not broken, "\n".join(["", *broken])


def test_a_heavy_package_is_named_only_in_the_file_that_wraps_it() -> None:
    broken = []
    for found in all_imports():
        wrapped = WRAPPED.get(found.what.split(".")[0])
        where = modules()[found.who].relative_to(REPO).as_posix().removeprefix("vw2_robot/")
        if wrapped is not None and not any(where == file or where.startswith(f"{file}/") for file in wrapped):
            broken.append(f"{found.who}:{found.line} imports {found.what}, which belongs in {sorted(wrapped)}")
    assert not broken, "\n".join(["", *broken])


def test_an_optional_package_is_never_imported_at_the_start_of_a_module() -> None:
    """Else `import vw2_robot...` ends in an ImportError that does not name the extra."""
    setup = read_setup()
    extras = {
        name: rows(lines) for name, lines in setup["options.extras_require"].items() if name not in {"dev", "all"}
    }
    optional = {requirement_name(line) for lines in extras.values() for line in lines}
    optional -= {requirement_name(line) for line in rows(setup["options"]["install_requires"])}
    broken = [
        f"{found.who}:{found.line} imports {found.what}"
        for found in all_imports()
        if found.at_start
        and distribution_of(found.what) in optional
        and not (place_of(found.who) == "envs" and found.what.split(".")[0] in ASKED_FOR_BY_ENVS)
        and (found.who, found.what.split(".")[0]) not in ASKED_FOR_AT_THE_START
    ]
    assert not broken, "\n".join(["", *broken])


def test_every_third_party_import_is_declared() -> None:
    setup = read_setup()
    declared = {requirement_name(line) for line in rows(setup["options"]["install_requires"])}
    for extra, lines in setup["options.extras_require"].items():
        declared |= {requirement_name(line) for line in rows(lines)} if extra != "dev" else set()
    broken = [
        f"{found.who}:{found.line} imports {found.what}"
        for found in all_imports()
        if found.what.split(".")[0] not in {"vw2_robot", *OF_THE_STACK, *sys.stdlib_module_names}
        and distribution_of(found.what) not in declared
    ]
    assert not broken, "\n".join(["", *broken])


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plugin_imports_its_stack_and_the_core_and_nothing_of_ours_imports_the_plugin(folder: str) -> None:
    core = {requirement_name(line) for line in rows(read_setup()["options"]["install_requires"])}
    name = Path(folder).name
    found = [one for path in sorted((REPO / folder).glob("*.py")) for one in imports_of(f"{name}.{path.stem}", path)]
    tops = {one.what.split(".")[0] for one in found if one.level == 0} - sys.stdlib_module_names - {"vw2_robot"}
    assert {"lerobot"} <= tops
    assert {top for top in tops - PLUGINS[folder] if distribution_of(top) not in core} == set()
    assert all(one.what.split(".")[0] != name for one in all_imports())
    assert f'name = "{name}"' in (REPO / folder).with_name("pyproject.toml").read_text(encoding="utf-8")


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg", encoding="utf-8")
    return setup


def rows(value: str) -> list[str]:
    return [row.strip() for row in value.splitlines() if row.strip()]


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def distribution_of(module: str) -> str:
    top = module.split(".")[0]
    return DISTRIBUTION.get(top, top).lower().replace("_", "-")


def test_setup_lists_exactly_the_folders_that_are_packages() -> None:
    on_disk = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(rows(read_setup()["options"]["packages"])) == on_disk


def test_every_folder_with_modules_is_a_package() -> None:
    assert [str(path) for path in modules().values() if not (path.parent / "__init__.py").is_file()] == []


def test_every_data_file_of_a_package_is_installed() -> None:
    globs = {package: rows(value.replace(",", "\n")) for package, value in read_setup()["options.package_data"].items()}
    installed = {
        path for package, patterns in globs.items() for glob in patterns for path in folder_of(package).glob(glob)
    }
    tops = [REPO / name for name in ("vw2_robot", *SISTERS, "configs")]
    lying = [path for path in tracked_files() if path.suffix != ".py" and any(top in path.parents for top in tops)]
    assert lying
    assert [str(path.relative_to(REPO)) for path in lying if path not in installed] == []


@pytest.mark.parametrize("script", rows(read_setup()["options.entry_points"]["console_scripts"]))
def test_console_script_names_a_function_that_exists(script: str) -> None:
    _, target = (part.strip() for part in script.split("="))
    module, function = target.split(":")
    assert module in modules(), f"{target}: no such module"
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    defined |= {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    assert function in defined


def test_every_program_is_a_console_script() -> None:
    """Only the entry points make programs, so that none is reachable by `python -m` alone."""
    makers = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _called(node) in ("program", "Program")
    }
    assert makers == {"vw2_robot.command_line.entry_points"}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "shared"}
    assert [name for name in modules() if set(name.split(".")) & drawers] == []


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files of the repository: those git knows or would add."""
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := REPO / name).is_file())


def text_files() -> list[tuple[str, str]]:
    kinds = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".txt", ".jinja", ".json", ".urdf", ""}
    files = [path for path in tracked_files() if path.suffix in kinds]
    return [(path.relative_to(REPO).as_posix(), path.read_bytes().decode("utf-8")) for path in files]


def test_text_files_have_clean_white_space() -> None:
    broken = [
        name
        for name, text in text_files()
        if "LICENSE" not in name  # verbatim
        and ("\r" in text or re.search(r"[ \t]+$", text, re.MULTILINE) or (text and not text.endswith("\n")))
    ]
    assert broken == []


def test_no_file_but_a_policy_is_larger_than_two_megabytes() -> None:
    large = [path for path in tracked_files() if path.stat().st_size > 2_000_000]
    assert [str(path) for path in large if "checkpoints" not in path.parts] == []
    assert sum(path.stat().st_size for path in large) < 8_000_000


def test_yaml_files_parse() -> None:
    files = [path for path in tracked_files() if path.suffix in {".yaml", ".yml"}]
    assert files
    for path in files:
        yaml.safe_load(path.read_text(encoding="utf-8"))


def test_no_file_names_a_folder_of_one_machine() -> None:
    private = re.compile("|".join(["/" + name + "/" for name in ("work", "root", "home", "opt")]))
    found = {name: match[0] for name, text in text_files() if name != "LICENSE" and (match := private.search(text))}
    assert found == {}


def markdown() -> list[tuple[Path, str]]:
    return [(path, path.read_text(encoding="utf-8")) for path in tracked_files() if path.suffix == ".md"]


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path, text in markdown():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = target.partition("#")
            if "://" in target:
                continue
            aim = path.parent / file if file else path
            if not aim.exists() or (anchor and anchor not in anchors(aim.read_text(encoding="utf-8"))):
                broken.append(f"{path.relative_to(REPO)}: {target}")
    assert not broken, "\n".join(["", *broken])


def anchors(page: str) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)  # comments in code are no headings
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_name_only_commands_files_and_targets_that_exist() -> None:
    scripts = {row.split("=")[0].strip() for row in rows(read_setup()["options.entry_points"]["console_scripts"])}
    targets = set(re.findall(r"^([a-z0-9.-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    broken = []
    for path, text in markdown():
        named = re.findall(r"`([^`\n]+)`", text) + re.findall(
            r"^    ([^\n]+)$|^([a-z][^\n]*)$", code_blocks(text), re.MULTILINE
        )
        for words in (words if isinstance(words, str) else "".join(words) for words in named):
            first, *rest = words.split() or [""]
            wrong = (
                (
                    first.startswith(("vw2-", "pretrain-on-"))
                    and not first.startswith("vw2-robot")
                    and first not in scripts
                )
                or (first == "make" and rest and "=" not in rest[0] and rest[0] not in targets)
                or (re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9]+)+\.(py|yaml|md)", first) and not known_path(first))
            )
            if wrong:
                broken.append(f"{path.relative_to(REPO)}: {words}")
    assert not broken, "\n".join(["", *broken])


def test_no_page_or_message_installs_the_package_from_an_index() -> None:
    """It is on none: a command names a checkout (`.`), or where the copy came from (`@ file:///...`)."""
    command = ["git", "ls-files", "*.py", "*.md", "*.yaml", "Makefile", "*.sbatch"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split()
    broken = [
        f"{name}: {found.group()}"
        for name in listed
        if not name.startswith("tests/")
        for found in re.finditer(r"pip install [^\n`]*vw2[-_]robot[^\n`]*", (REPO / name).read_text(encoding="utf-8"))
        if "@ " not in found.group()
    ]
    assert not broken


def code_blocks(text: str) -> str:
    return "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def known_path(name: str) -> bool:
    return (REPO / name).exists() or (REPO / "vw2_robot" / name).exists()


def test_the_table_where_is_what_names_what_is_there() -> None:
    page = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\|[^|]+\| \[([\w/.]+)\]\(\1\) \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(table) >= 10
    for file, name in table:
        tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} defines no {name}"


def test_the_tree_of_the_contributing_page_is_the_tree_of_the_repository() -> None:
    page = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| (`[\w/]+/`(?:, `[\w/]+/`)*) \|", page, re.MULTILINE))
    folders = {folder.rstrip("/") for row in named for folder in re.findall(r"`([\w/]+)`", row)}
    assert all((REPO / folder).is_dir() for folder in folders)
    packages = {path.parent for path in modules().values()} - {REPO / "vw2_robot" / "models"}
    plugins = {Path(folder).parent.as_posix() for folder in PLUGINS}
    assert {path.relative_to(REPO).as_posix() for path in packages} | plugins <= folders


def test_public_functions_of_three_arguments_or_more_describe_each_of_them() -> None:
    lacking = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (node for owner in (tree, *classes) for node in owner.body if isinstance(node, ast.FunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in {"self", "cls"} for argument in arguments)
            if count > 2 and not node.name.startswith("_") and "Args:" not in (ast.get_docstring(node) or ""):
                lacking.append(f"{name}:{node.lineno} {node.name}")
    assert not lacking, "\n".join(["", *lacking])


def test_models_and_pretraining_know_no_benchmark() -> None:
    """What they need to know of a robot is in data sets and checkpoints (docs/integrations/metaworld.md)."""
    folders = (folder_of("vw2_robot.models"), folder_of("vw2_robot.pretrain"))
    named = [
        f"{path.relative_to(REPO)}:{number}"
        for folder in folders
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search("calvin|meta.?world", line, re.IGNORECASE)
    ]
    assert not named, named
