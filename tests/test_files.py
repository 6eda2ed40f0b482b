"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phoenix_d2.files import atomic_path, publish_folder, staged_folder


def test_a_file_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_processes_do_not_write_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_path(tmp_path / "file.txt") as ours:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_path(tmp_path / "file.txt") as theirs:
            theirs.write_text("theirs")
            assert ours != theirs
        ours.write_text("ours")
    assert (tmp_path / "file.txt").read_text() == "ours"


def test_a_folder_is_published_without_what_a_kill_left(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    with atomic_path(staging / "sub" / "a.png") as killed:
        killed.write_text("half")
        left = killed.rename(killed.with_name(".b.png.1.tmp"))
        killed.write_text("whole")
    assert left.exists()
    publish_folder(staging, tmp_path / "new" / "masks")
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["masks", "sub", "a.png"]


def test_files_appear_when_all_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    with staged_folder(folder) as staging:
        (staging / "a.txt").write_text("new")
        assert not (folder / "a.txt").exists()
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    with pytest.raises(RuntimeError), staged_folder(folder) as staging:
        (staging / "a.txt").write_text("half")
        raise RuntimeError
    assert [path.read_text() for path in folder.iterdir()] == ["new"]
    with staged_folder(folder) as staging:
        (staging / "a.txt").write_text("newer")
    assert (folder / "a.txt").read_text() == "newer"
