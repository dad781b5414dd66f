"""Names of drawing code and weights: wording leaves them as they are, meaning does not."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.picturebook import hashes
from common.picturebook.hashes import data_hash, drawing_hash, meaning, plain, weights_hash

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
