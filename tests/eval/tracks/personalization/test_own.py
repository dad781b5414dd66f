"""A user's own subjects that lack something."""

import pytest
from PIL import Image

from eval.tracks.personalization import own
from tests.refusing import refuses


@pytest.mark.parametrize("files, said", [
    ({}, "holds no folders"),
    ({"subjects.csv": "name,kind\n"}, "needs the heading"),
    ({"rex_dog/0.png": "", "subjects.csv": "subject,class\nmax,dog\n"}, "no such folder"),
    ({"rex_dog/0.png": "", "prompts.txt": "a dog in the snow\n"}, "lacks {0}"),
    ({"rex_dog/0.png": "", "prompts.txt": "\n"}, "holds no prompt"),
    ({"_/0.png": ""}, "no subject's name and class"),
    ({"a,b_dog/0.png": ""}, "no subject's name and class"),
    ({" rex_dog/0.png": ""}, "no subject's name and class"),
    ({"a\nb_dog/0.png": ""}, "cannot hold"),
    ({"rex/0.png": "", "subjects.csv": 'subject,class\nrex,"dog,big"\n'}, "no subject's name and class"),
    ({"rex/0.png": "", "subjects.csv": "subject,class\nrex," + "x" * 200_000}, "cannot be read"),
])  # fmt: skip
def test_own_subjects_that_lack_something(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        if name.endswith("png"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
    refuses(said, own.write_own, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
