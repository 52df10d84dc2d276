# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The habits of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEADER = ("# Copyright 2026 The clipn-hf authors", "# SPDX-License-Identifier: Apache-2.0")
CACHES = {"__pycache__", ".cache", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".transformers"}
GENERATED = CACHES | {".git", ".venv", ".tools", "site", "dist", "build", "runs"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".cff", ".csv", ""}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def list_files() -> list[Path]:
    """Files of the repository: what git tracks or would track, or, outside of a clone, what no tool has generated."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in output.split("\0") if name]
    else:
        paths = []
        for folder, subfolders, names in os.walk(ROOT):
            subfolders[:] = set(subfolders) - GENERATED
            paths += [Path(folder, name) for name in names]
    return sorted(path for path in paths if path.is_file())


FILES = list_files()
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]
TEXT_FILES = [path for path in FILES if path.suffix in TEXT_SUFFIXES]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_project() -> dict[str, list[Requirement]]:
    """Requirements in pyproject.toml: under "" the core ones, under its name those of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def read_constraints() -> dict[str, list[Requirement]]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            constraint = Requirement(line)
            constraints.setdefault(canonicalize_name(constraint.name), []).append(constraint)
    return constraints


def test_repository_is_listed() -> None:
    assert {"pyproject.toml", "tests/test_repository.py"} <= {relative(path) for path in FILES}
    assert len(PYTHON_FILES) > 10


def test_source_files_start_with_copyright_and_license() -> None:
    without = [
        relative(path) for path in PYTHON_FILES if tuple(path.read_text(encoding="utf-8").split("\n")[:2]) != HEADER
    ]
    assert not without, f"these files must start with the two lines {HEADER}: {without}"


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.-])/(?:home|root|Users|work|mnt)/\w|[A-Z]:\\Users"),
        (
            "the address of a package index",
            r"https?://[^\s\"')]*/simple\b|https?://registry\.|https?://(?:\w+\.)?pypi\.",
        ),
        ("a package file host", r"files\.pythonhosted|download\.pytorch\.org|registry\.npmjs"),
        ("an index option", r"--(?:extra-)?index-url|--default-index|UV_INDEX|UV_DEFAULT_INDEX"),
    ],
)
def test_nothing_names_a_machine_or_a_package_index(what: str, pattern: str) -> None:
    found = []
    for path in TEXT_FILES:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := re.search(pattern, line):
                found.append(f"{relative(path)}:{number}: {match[0]}")
    assert not found, f"{what} in {found}"


def test_no_lock_file() -> None:
    assert not [relative(path) for path in FILES if path.name == "uv.lock"], "constraints.txt is what is committed"


def test_torchvision_is_never_imported() -> None:
    pattern = re.compile(r"^\s*(?:import|from) torchvision\b", flags=re.MULTILINE)
    importing = [relative(path) for path in PYTHON_FILES if pattern.search(path.read_text(encoding="utf-8"))]
    assert not importing


# What each part of the package may import of the others. `TYPE_CHECKING` blocks count, too.
IMPORTS: dict[str, set[str]] = {
    "files": set(),
    "prompts": set(),
    "dtypes": set(),
    "images": set(),
    "scores": set(),
    "evaluation.metrics": set(),
    "calibration": {"evaluation.metrics"},
    "evaluation.suite": {"negative_settings", "prompts", "script_arguments"},
    "evaluation.sets": {"evaluation.suite", "images", "negative_settings"},
    "evaluation.results": {"detector_results", "evaluation.metrics", "evaluation.sets", "files"},
    "wordnet": set(),
    "negative_settings": set(),
    "verdicts": set(),
    "evaluation.image_hashes": set(),
    "label_senses": {"wordnet"},
    "evaluation.findings": set(),
    "evaluation.label_examination": {
        "encoders",
        "evaluation.findings",
        "label_senses",
        "prompts",
        "wordnet",
    },
    "evaluation.image_examination": {
        "evaluation.findings",
        "evaluation.image_hashes",
        "evaluation.label_examination",
        "evaluation.metrics",
        "images",
    },
    "evaluation.doctor": {"evaluation.findings", "evaluation.image_examination", "evaluation.label_examination"},
    "evaluation.published": set(),
    "evaluation.tables": {"evaluation.published"},
    "evaluation.figures": {"evaluation.metrics", "evaluation.results", "evaluation.tables"},
    "evaluation.report": {
        "evaluation.contact_sheet",
        "evaluation.figures",
        "evaluation.published",
        "evaluation.results",
        "evaluation.tables",
        "files",
        "images",
        "methods",
        "verdicts",
    },
    "evaluation.cards": {"evaluation.tables", "files"},
    "evaluation.comparison": {"evaluation.results", "evaluation.tables"},
    "evaluation.adversarial": {"detector_checks", "encoders", "images"},
    "evaluation.adversarial_pictures": {"evaluation.adversarial", "evaluation.figures"},
    "evaluation.defences": set(),
    "evaluation.provenance": {"encoders"},
    "evaluation.robustness_report": {
        "evaluation.adversarial",
        "evaluation.defences",
        "evaluation.metrics",
        "evaluation.results",
        "evaluation.tables",
    },
    "evaluation.robustness": {
        "detector",
        "detector_checks",
        "detector_images",
        "digests",
        "encoders",
        "evaluation.adversarial",
        "evaluation.defences",
        "evaluation.metrics",
        "evaluation.provenance",
        "evaluation.robustness_report",
        "features",
        "images",
    },
    "evaluation.benchmark": {
        "detector",
        "detector_checks",
        "encoders",
        "evaluation.doctor",
        "evaluation.output",
        "evaluation.provenance",
        "evaluation.results",
        "evaluation.sets",
        "evaluation.suite",
        "evaluation.tables",
        "features",
        "methods",
        "negative_settings",
        "negatives",
    },
    "evaluation.output": {
        "evaluation.cards",
        "evaluation.figures",
        "evaluation.findings",
        "evaluation.report",
        "evaluation.results",
        "evaluation.suite",
        "evaluation.tables",
        "files",
    },
    "hub_names": set(),
    "probing": {"digests", "files", "hub_names", "scores"},
    "methods": {"negative_settings", "probing", "scores"},
    "modeling": {"dtypes", "families", "files", "hub_names", "prompts"},
    "detector_files": {"digests", "files", "modeling"},
    "detector_card": {"files", "hub_names", "methods"},
    "families": {"prompts"},
    "image_inputs": set(),
    "precomputed": {"prompts"},
    "local_features": {"families"},
    "similarity_maps": {"detector_checks", "encoders", "images", "local_features", "scores"},
    "heat_maps": {"similarity_maps", "verdicts"},
    "detector_explanations": {
        "detector_checks",
        "detector_results",
        "detector_state",
        "encoders",
        "heat_maps",
        "similarity_maps",
    },
    "loading": {"detector_files", "families", "hub_names", "modeling"},
    "encoders": {
        "digests",
        "dtypes",
        "families",
        "image_inputs",
        "images",
        "loading",
        "local_features",
        "modeling",
        "precomputed",
        "prompts",
    },
    "digests": {"families", "images", "modeling"},
    "feature_cache": {"files"},
    "features": {"digests", "encoders", "feature_cache", "image_inputs", "images", "prompts"},
    "negatives": {
        "digests",
        "encoders",
        "feature_cache",
        "features",
        "files",
        "label_senses",
        "negative_settings",
        "prompts",
        "wordnet",
    },
    "detector_saving": {"detector_card", "detector_files", "encoders", "modeling"},
    "detector_results": set(),
    "detector_checks": {"encoders", "features", "methods", "modeling", "prompts"},
    "detector_negatives": {"detector_results", "encoders", "methods", "negatives", "scores", "negative_settings"},
    "detector_state": {
        "calibration",
        "detector_checks",
        "detector_negatives",
        "digests",
        "encoders",
        "features",
        "local_features",
        "methods",
        "negatives",
    },
    "detector_images": {"detector_checks", "detector_state", "encoders", "features", "images"},
    "detector_probe": {
        "detector_checks",
        "detector_images",
        "detector_state",
        "digests",
        "features",
        "methods",
        "probing",
    },
    "training.outliers": {"scores"},
    "detector": {
        "calibration",
        "detector_checks",
        "detector_explanations",
        "detector_images",
        "detector_negatives",
        "detector_probe",
        "detector_results",
        "detector_saving",
        "detector_state",
        "digests",
        "encoders",
        "features",
        "methods",
        "modeling",
        "negatives",
        "prompts",
        "similarity_maps",
    },
    "pipeline": {
        "detector",
        "detector_checks",
        "detector_explanations",
        "detector_files",
        "encoders",
        "images",
        "methods",
        "prompts",
        "similarity_maps",
    },
}
TENSOR_LIBRARIES = {"torch", "numpy", "sklearn", "faiss"}


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that a file of the package imports anywhere in it."""
    inside = path.relative_to(ROOT / "src").with_suffix("").parts
    package = ".".join(inside[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from . import name` and `from clipn_hf import name` may name modules.
            found |= {f"{module}.{alias.name}" for alias in node.names} if "." not in module else {module}
    return found


@pytest.mark.parametrize("part", IMPORTS)
def test_imports_point_one_way(part: str) -> None:
    base = ROOT / "src" / "clipn_hf" / part.replace(".", "/")
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    assert files
    allowed = {f"clipn_hf.{name}" for name in (part, *IMPORTS[part])}
    for file in files:
        for module in imported_modules(file):
            if module.startswith("clipn_hf"):
                assert any(f"{module}.".startswith(f"{name}.") for name in allowed), (
                    f"{relative(file)} imports {module}"
                )
            elif part in ("scores", "evaluation.metrics"):
                root = module.split(".")[0]
                assert root in TENSOR_LIBRARIES | set(sys.stdlib_module_names), f"{relative(file)} imports {module}"


def constant(file: str, name: str) -> tuple[str, ...]:
    """A tuple of texts that a script assigns to a name."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return tuple(ast.literal_eval(node.value))
    raise AssertionError(f"{file} has no {name}")


def test_scripts_agree_on_the_emoji() -> None:
    """Scripts stand alone, so that these facts are written in several of them."""
    recipe = yaml.safe_load((ROOT / "training/recipes/clipn-tiny.yaml").read_text(encoding="utf-8"))
    templates, styles = (constant("training/emoji/pretrain.py", name) for name in ("TEMPLATES", "TRAIN_STYLES"))
    assert templates == tuple(recipe["templates"]) == tuple(recipe["caption_templates"])
    assert templates == constant("benchmarks/emoji.py", "TEMPLATES")
    assert [f"style={','.join(styles[:6])}", f"style={','.join(styles[6:])}"] == recipe["filter"]
    assert not set(styles) & set(constant("benchmarks/emoji.py", "TEST_STYLES"))
    categories = constant("benchmarks/emoji.py", "ID_CATEGORIES")
    assert categories == constant("training/emoji/package.py", "ID_CATEGORIES")


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^]]+)\]", changelog, flags=re.MULTILINE)
    assert citation["version"] == VERSION
    assert newest is not None and newest[1] == VERSION
    assert importlib.metadata.version("clipn-hf") == VERSION


def test_constraints_are_names_and_public_versions() -> None:
    for constraints in read_constraints().values():
        for constraint in constraints:
            assert re.fullmatch(r"==[\w.]+", str(constraint.specifier)), f"not one public version: {constraint}"
            assert constraint.url is None and not constraint.extras


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13"])
def test_constraints_cover_the_dependencies(python_version: str) -> None:
    """Every requirement has exactly one version, within its bounds, on Linux with each supported Python."""
    environment = {
        "python_full_version": f"{python_version}.0",
        "python_version": python_version,
        "sys_platform": "linux",
    }
    constraints = read_constraints()
    for requirement in (requirement for group in read_project().values() for requirement in group):
        chosen = [
            constraint
            for constraint in constraints.get(canonicalize_name(requirement.name), [])
            if constraint.marker is None or constraint.marker.evaluate(environment)
        ]
        assert len(chosen) == 1, f"{requirement} has {len(chosen)} versions in constraints.txt: run `make constraints`"
        version = next(iter(chosen[0].specifier)).version
        assert requirement.specifier.contains(version), f"{chosen[0]} does not satisfy {requirement}"


def test_installed_closure_is_constrained() -> None:
    """What the core requirements pull in, as installed here, is pinned as well."""
    constraints = read_constraints()
    pending = [canonicalize_name(requirement.name) for requirement in read_project()[""]]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(canonicalize_name(requirement.name))
    assert seen <= constraints.keys(), f"not in constraints.txt: {sorted(seen - constraints.keys())}"


def test_citation_names_the_four_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    papers = {reference["identifiers"][0]["value"] for reference in citation["references"]}
    assert papers == {f"arXiv:{number}" for number in ("2308.12213", "2403.20078", "2303.05828", "2404.00323")}
    for reference in citation["references"]:
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])
        assert reference["url"] == f"https://arxiv.org/abs/{reference['identifiers'][0]['value'].split(':')[1]}"


@pytest.mark.parametrize(
    ("target", "stamp", "command"),
    [("demo", "core", "clipn-hf demo"), ("test", "dev", "-m pytest"), ("lint", "dev", "ruff check")],
)
def test_second_set_up_does_nothing(tmp_path: Path, target: str, stamp: str, command: str) -> None:
    """`make TARGET` installs when the stamp is missing or older than a requirement, and only then."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not on this machine")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1000, 1000))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def dry_run() -> str:
        arguments = [make, "--dry-run", target, f"UV={sys.executable}"]
        return subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    first = dry_run()
    assert "pip install" in first and command in first

    (tmp_path / ".venv").mkdir()
    (tmp_path / f".venv/.stamp-{stamp}").touch()
    second = dry_run()
    assert "pip install" not in second
    assert command in second

    os.utime(tmp_path / f".venv/.stamp-{stamp}", (2000, 2000))
    os.utime(tmp_path / "constraints.txt", (3000, 3000))
    assert "pip install" in dry_run()
