"""Drawn folders: once, never half. Names of drawing code and weights: wording leaves them, meaning does not."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.picturebook import benchmarks, hashes
from common.picturebook.drawn import cache_folder, write_folder
from common.picturebook.hashes import data_hash, drawing_hash, meaning, plain, weights_hash


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


CODE = '''"""What it is."""
def area(side, corner=None):
    """Of a square."""
    return f"{side * side:.1f}" if corner is None else [1, 2.5]
'''


def test_comments_docstrings_and_line_breaks_mean_nothing():
    told = CODE.replace("square", "field").replace("What it is", "Squares") + "\n# the end\n"
    broken = CODE.replace("(side, corner=None)", "(\n    side,\n    corner=None,\n)")
    assert meaning(CODE) == meaning(told) == meaning(broken)


@pytest.mark.parametrize("old, new", [("side * side", "side + side"), ("2.5", "2.25"), ("None", "0"), (".1f", ".2f")])
def test_every_other_change_means_something(old, new):
    assert meaning(CODE) != meaning(CODE.replace(old, new, 1))


def test_a_tree_is_written_alike_in_every_version_of_python():
    assert plain(ast.parse("def f(a):\n    return None")) == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='a')], kwonlyargs=[], "
        "kw_defaults=[], defaults=[]), body=[Return(value=Constant(value=None))], decorator_list=[])], type_ignores=[])"
    )


def test_scenes_and_data_sets_have_names_of_their_own(monkeypatch):
    assert len({drawing_hash(), data_hash(), drawing_hash(hashes.BENCHMARKS)}) == 3 and len(data_hash()) == 12
    modules = {path.stem for path in Path(hashes.__file__).parent.glob("*.py")}
    assert set(hashes.DRAWING + hashes.BENCHMARKS) <= modules


def test_weights_are_known_by_what_their_files_hold(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        save_file({"weight": torch.ones(3)}, tmp_path / part / "model.safetensors")
    before = {part: weights_hash(part, models=tmp_path) for part in ("unet", "vae", "")}
    assert len(set(before.values())) == 3
    save_file({"weight": torch.zeros(3)}, tmp_path / "vae" / "model.safetensors")
    assert weights_hash("unet", models=tmp_path) == before["unet"]
    assert weights_hash("vae", models=tmp_path) != before["vae"] and weights_hash(models=tmp_path) != before[""]
    with pytest.raises(FileNotFoundError, match="clip"):
        weights_hash("clip", models=tmp_path)
