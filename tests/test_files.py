# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest

from clipn_hf.files import atomic_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "scores.csv"
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.parent == tmp_path and partial.suffix == ".csv"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["scores.csv"]


def test_file_and_folder_are_replaced(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "b"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with atomic_path(file) as partial:
        partial.write_text("new")
    with atomic_path(folder) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert file.read_text() == "new"
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["a.txt", "b"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_error_leaves_what_was_there(tmp_path: Path, as_folder: bool) -> None:
    target = tmp_path / "target"
    target.mkdir() if as_folder else target.write_text("old")

    def write_half(partial: Path) -> None:
        if as_folder:
            partial.mkdir()
            partial /= "half"
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_path(target) as partial:
        write_half(partial)
    assert names(tmp_path) == ["target"]
    assert (names(target) == []) if as_folder else (target.read_text() == "old")


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_path(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "no such folder" / "file") as partial:
        partial.write_text("text")
    assert names(tmp_path) == []
