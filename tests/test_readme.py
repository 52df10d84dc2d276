# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Examples of README and guides: those with output are run, the others at least import what exists."""

import ast
import doctest
import re
from pathlib import Path

import pytest

import clipn_hf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_examples_print_what_the_page_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # An example saves a detector.
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 3 or ">>>" not in page.read_text(encoding="utf-8")
    assert result.failed == 0


@every_page
def test_other_examples_import_what_exists(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    imported = [
        alias.name
        for block in blocks
        if not block.startswith(">>>")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "clipn_hf"
        for alias in node.names
    ]
    assert imported or not blocks
    assert [name for name in imported if not hasattr(clipn_hf, name)] == []


@every_page
def test_pictures_and_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
