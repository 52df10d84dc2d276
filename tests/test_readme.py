# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The README's examples: those with output are run, the others, which need the Hub, at least use what exists."""

import ast
import doctest
import re
from pathlib import Path

import pytest

import clipn_hf

README = Path(__file__).parents[1] / "README.md"


def test_examples_print_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # An example saves a detector.
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 3
    assert result.failed == 0


def test_other_examples_import_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    imported = [
        alias.name
        for block in blocks
        if not block.startswith(">>>")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "clipn_hf"
        for alias in node.names
    ]
    assert imported
    assert [name for name in imported if not hasattr(clipn_hf, name)] == []


def test_pictures_and_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []
