"""Drawn folders: once, never half, drawn anew when a file is gone, one for all processes."""

import pytest

from common.picturebook import benchmarks
from common.picturebook.drawn import cache_folder, write_folder


def test_a_folder_is_drawn_once_and_never_half(tmp_path):
    calls = []

    def whole(folder):
        calls.append(1)
        (folder / "deep").mkdir()
        (folder / "deep" / "whole").write_text("picture")

    def broken(folder):
        whole(folder)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_folder(tmp_path / "x", broken)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    for _ in range(2):
        folder = write_folder(tmp_path / "x", whole)
    assert len(calls) == 2 and [path.name for path in folder.iterdir() if path.name[0] != "."] == ["deep"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("p")])
def test_a_folder_that_is_no_longer_whole_is_drawn_anew(tmp_path, damage):
    for text in ("first", "second"):
        folder = write_folder(tmp_path / "x", lambda folder, text=text: (folder / "picture").write_text(text))
        assert (folder / "picture").read_text() == text
        damage(folder / "picture")


def test_data_of_other_code_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "picturebook"
    folders = []
    for name in ("one", "two"):
        monkeypatch.setattr(benchmarks, "data_hash", lambda name=name: name)
        folders.append(benchmarks.drawn_once("x", lambda folder: (folder / "picture").write_text("")))
    assert folders == [tmp_path / "picturebook" / f"x-{name}" for name in ("one", "two")]
