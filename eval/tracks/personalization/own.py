"""A user's own subjects as a DreamBooth-dataset folder: pictures, classes, prompts.

A folder for each subject, named after it, the class word last ("rex_dog" is a dog); or subjects.csv with the columns
subject,class for other names. prompts.txt: a prompt a line, {0} for the subject's word and {1} for its class; without
it the ten prompts that DreamBench asks of animals and things alike.
"""

import csv
import io
from collections import Counter
from pathlib import Path

from common.data import Subject, is_alive, read_subject_prompts, write_subjects
from common.files import atomic_path, check_file_name, read_text
from common.images import list_pictures
from common.picturebook.benchmarks import ensure_subjects
from common.runs import InputError, digest_of
from common.training import picture_hashes

PROMPTS = [
    "a {0} {1} in the jungle", "a {0} {1} in the snow", "a {0} {1} on the beach",
    "a {0} {1} on a cobblestone street", "a {0} {1} on top of pink fabric", "a {0} {1} on top of a wooden floor",
    "a {0} {1} with a city in the background", "a {0} {1} with a mountain in the background",
    "a {0} {1} with a blue house in the background", "a {0} {1} on top of a purple rug in a forest",
]  # fmt: skip


def write_own(source: Path, folder: Path, on_picturebook: bool = False) -> Path:
    """The subjects of `source` as a dataset inside `folder`, under a name of its content's own, with prompts that the
    model knows words for. InputError where a name, a class or a picture is missing."""
    classes = read_classes(source / "subjects.csv")
    subjects = []
    for place in sorted(path for path in source.iterdir() if path.is_dir() and path.name[0] != "."):
        class_name = classes.get(place.name) or place.name.replace("_", " ").replace("-", " ").rpartition(" ")[2]
        name = check_file_name(place.name, f"a folder of {source}")
        if not class_name or name != name.strip() or set(name + class_name) & set(",\n"):
            raise InputError(f"{place} is no subject's name and class, such as rex_dog, without a comma; rename the "
                             "folder, or say its class in subjects.csv")  # fmt: skip
        subjects.append(Subject(place.name, class_name, is_alive(class_name), tuple(list_pictures(place))))
    if not subjects:
        raise InputError(f"{source} holds no folders; put each subject's pictures into a folder of its own")
    if unknown := classes.keys() - {subject.name for subject in subjects}:
        raise InputError(f"{source / 'subjects.csv'} names {min(unknown)!r}, and there is no such folder beside it")
    prompts = read_prompts(source / "prompts.txt")
    if not prompts:
        prompts = read_subject_prompts(ensure_subjects("validation"))["object"] if on_picturebook else PROMPTS
    print("subjects: " + ", ".join(f"{one.name} ({one.class_name})" for one in subjects))
    content = [[one.name, one.class_name, picture_hashes(one.paths)] for one in subjects]
    digest = digest_of([content, prompts])
    if not (folder / digest).is_dir():
        with atomic_path(folder / digest) as temporary:
            temporary.mkdir()
            write_subjects(temporary, subjects, {"object": prompts, "live": prompts})
    return folder / digest


def read_classes(path: Path) -> dict[str, str]:
    """subject -> class of subjects.csv; {} without the file."""
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True))
    except csv.Error as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    if not rows or any(not row.get("subject") or not row.get("class") for row in rows):
        raise InputError(f"{path} needs the heading subject,class and both in every line")
    if twice := [name for name, count in Counter(row["subject"] for row in rows).items() if count > 1]:
        raise InputError(f"{path} tells the class of {twice[0]!r} twice; remove one of the lines")
    return {row["subject"]: row["class"].strip() for row in rows}


def read_prompts(path: Path) -> list[str]:
    """The templates of prompts.txt; [] without the file."""
    if not path.is_file():
        return []
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if wrong := [line for line in lines if "{0}" not in line or "{1}" not in line]:
        raise InputError(f"{path}: {wrong[0]!r} lacks {{0}} for the subject's word or {{1}} for its class")
    if not lines:
        raise InputError(f"{path} holds no prompt; write one a line, such as 'a {{0}} {{1}} in the snow'")
    return lines
