"""Two kinds of data folders, read and written: edits as in PIE-Bench, subjects as in the DreamBooth dataset."""

import ast
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import InputError, atomic_path, check_file_name, read_object, read_text, write_json, write_text
from common.flags import check_prompt
from common.images import list_pictures, load_image
from common.joining import digest_of_data
from common.masks import check_same_size

# PIE-Bench's editing_type_id (Ju et al., PnP Inversion, ICLR 2024)
EDIT_TYPES = {"0": "random", "1": "change object", "2": "add object", "3": "delete object",
              "4": "change attribute content", "5": "change attribute pose", "6": "change attribute color",
              "7": "change attribute material", "8": "change background", "9": "change style"}  # fmt: skip
KEYS = ("image_path", "original_prompt", "editing_prompt", "editing_instruction", "editing_type_id", "blended_word",
        "mask", "picture_size")  # of an entry; the last is this project's  # fmt: skip
PIE_SIZE = (512, 512)  # of every published picture and mask
LIVE_CLASSES = {"cat", "dog"}  # the classes of the DreamBooth dataset that use its live prompts


def _inside(folder: Path, relative: Any, what: str) -> Path:
    """folder / relative; InputError if that would lie outside of the folder, or could be no file."""
    named = isinstance(relative, str) and relative and "\0" not in relative and len(os.fsencode(relative)) <= 4000
    if not named or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise InputError(f"{what} is {str(relative)[:40]!r}; a relative path inside {folder} is needed")
    return folder / relative


def _place(path: Path, folder: Path, name: str) -> str:
    """Path relative to `folder`; a file from elsewhere is first copied in as `name` plus its suffix."""
    if path.resolve().is_relative_to(folder.resolve()):
        return path.resolve().relative_to(folder.resolve()).as_posix()
    copy = _inside(folder, name + path.suffix, "the place of a picture")
    with atomic_path(copy) as temporary:
        shutil.copyfile(path, temporary)
    return name + path.suffix


# -------------------------------------------------------------------------------------------------- PIE-Bench edits


@dataclass(frozen=True)
class EditItem:
    """One entry of a PIE-Bench mapping file. `mask` is decoded when asked for: 700 of them would fill 700 MB."""

    id: str
    image_path: Path
    source_prompt: str  # original_prompt without brackets
    target_prompt: str  # editing_prompt without brackets
    instruction: str
    edit_type: str  # a key of EDIT_TYPES
    blended_words: tuple[str, str] | None  # (word of the source prompt, word of the target prompt)
    mask_runs: tuple[int, ...]  # as encode_mask gives them
    mask_size: tuple[int, int] = PIE_SIZE  # height, width
    border: int = 0  # pixels along all four sides that count as changeable
    extras: dict[str, Any] = field(default_factory=dict)  # every further key; paths relative to the folder

    @property
    def mask(self) -> torch.Tensor:
        """float32 [H,W], 1 where the picture may change, border included."""
        mask = decode_mask(self.mask_runs, self.mask_size)
        if b := self.border:
            mask[:b] = mask[-b:] = mask[:, :b] = mask[:, -b:] = 1
        return mask


def edit_digest(item: EditItem, folder: Path) -> str:
    """Twelve digits of all that an edit of this item of `folder`, and its scores, depend on."""
    told = [item.source_prompt, item.target_prompt, item.edit_type, item.blended_words, item.mask_runs, item.mask_size,
            item.border, item.extras]  # fmt: skip
    named = [folder / place for name, place in item.extras.items() if name.endswith("_path")]
    return digest_of_data(told, [item.image_path, *filter(Path.is_file, named)])


def encode_mask(mask: torch.Tensor | np.ndarray) -> list[int]:
    """Mask [H,W] to PIE-Bench's flat list: start, length, start, length, … over the row-major pixels (not COCO RLE)."""
    flat = np.asarray(mask).reshape(-1) > 0.5
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], axis=1).reshape(-1).tolist()


def decode_mask(runs: Sequence[int], size: tuple[int, int] = PIE_SIZE) -> torch.Tensor:
    """PIE-Bench's start, length, … list to a float32 [H,W] mask. InputError for a run that passes the end: the list is
    of a mask of another size. (The published reader clips it.)"""
    check_runs(runs, size)
    flat = torch.zeros(size[0] * size[1])
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = 1
    return flat.reshape(size)


def check_runs(runs: Sequence[int], size: tuple[int, int]) -> None:
    """Raises InputError for a run that passes the end of a mask of that size."""
    if len(runs) and max(map(sum, zip(runs[::2], runs[1::2], strict=True))) > size[0] * size[1]:
        raise InputError(f"the mask has a run that passes the end of {size[0]}x{size[1]} pixels; a mask of another size"
                         ' needs the key "picture_size": [height, width]')  # fmt: skip


def read_pie_bench(
    folder: str | Path, edit_types: Iterable[str] | None = None, limit: int | None = None, border: int = 1
) -> list[EditItem]:
    """Read folder/mapping_file.json and folder/annotation_images, in the order of the mapping file.

    `edit_types` keeps these ids ("0" to "9"), and `limit` so many items, of each type in turn. `border`: 1 is the
    published rule, made for hand-drawn masks of 512 pixels (of a 64-pixel picture it is 6 %); 0 gives the mask as
    stored. Masks of another size than 512x512 need the further key "picture_size": [H, W]. InputError names the entry
    that is wrong.
    """
    folder = Path(folder)
    mapping = read_object(folder / "mapping_file.json")
    wanted = set(EDIT_TYPES) if edit_types is None else {str(kind) for kind in edit_types}
    if unknown := wanted - set(EDIT_TYPES):
        raise InputError(f"edit types {sorted(unknown)} do not exist; the known ones are 0 to 9")
    items = []
    for key, entry in mapping.items():
        try:
            if (item := _edit_item(folder, key, entry, border)).edit_type in wanted:
                items.append(item)
        except InputError as problem:
            raise InputError(f"{folder / 'mapping_file.json'}, entry {key!r}: {problem}") from None
    if not items:
        raise InputError(f"{folder} holds no item of the edit types {sorted(wanted)}")
    return of_each_kind(items, lambda item: item.edit_type, limit)


def of_each_kind(items: Sequence, kind: Callable[[Any], Hashable], limit: int | None) -> list:
    """`limit` of the items (None: all), the first of every kind, then the second of every kind, …; order is kept."""
    met: Counter = Counter()
    turns = []  # how many of its kind stand before it, and its place
    for place, item in enumerate(items):
        turns.append((met[kind(item)], place))
        met[kind(item)] += 1
    return [items[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def _edit_item(folder: Path, key: str, entry: Any, border: int) -> EditItem:
    check_file_name(key, "the id")
    if not isinstance(entry, dict):
        raise InputError("an object with the keys of PIE-Bench is needed")
    extras = {"editing_instruction": "", "blended_word": "", "picture_size": PIE_SIZE, **entry}
    if missing := [name for name in KEYS if name not in extras]:
        raise InputError(f"the key {missing[0]!r} is missing")
    image_path, source, target, instruction, edit_type, blended, runs, size = (extras.pop(name) for name in KEYS)
    if not all(isinstance(text, str) for text in (source, target, instruction, blended)):
        raise InputError("prompts, instruction and blended_word have to be text")
    if str(edit_type) not in EDIT_TYPES:
        raise InputError(f"editing_type_id is {edit_type!r}; 0 to 9 are known")
    for text in (source, target, blended):
        check_prompt(text, "a prompt")
    words = blended.split()[:2]  # "source target"; further words are ignored, as in the published runs
    if len(words) == 1:
        raise InputError(f"blended_word is {blended!r}; one word of the source and one of the target are needed")
    if not _whole_numbers(runs) or len(runs) % 2:
        raise InputError("the mask is not a flat list of start, length pairs of whole numbers from 0 up")
    if not _whole_numbers(size) or len(size) != 2 or not 0 < min(size) <= max(size) < 2**14:
        raise InputError(f"picture_size is {size!r}; [height, width] in pixels is needed")
    for name, value in extras.items():
        if name.endswith("_path"):
            _inside(folder, value, name)
    check_runs(runs, size)
    path = _inside(folder / "annotation_images", image_path, "image_path")
    if not path.is_file():
        raise InputError(f"image_path names {path}, which is missing")
    check_same_size("the mask (picture_size, 512x512 by default)", size, str(path), load_image(path).size[::-1])
    plain = (text.replace("[", "").replace("]", "") for text in (source, target))  # brackets mark the changed words
    return EditItem(key, path, *plain, instruction, str(edit_type), tuple(words) or None, tuple(runs), tuple(size),
                    border, extras)  # fmt: skip


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(n) is int and n >= 0 for n in values)


def write_pie_bench(folder: str | Path, items: Iterable[EditItem]) -> None:
    """Write a PIE-Bench folder, from which read_pie_bench gives the same items back (their border is not stored).

    Pictures that already lie under folder/annotation_images are referred to, others are copied there as <id>.<suffix>.
    """
    folder = Path(folder)
    mapping = {}
    for item in items:
        told = (_place(item.image_path, folder / "annotation_images", item.id), item.source_prompt, item.target_prompt,
                item.instruction, item.edit_type, " ".join(item.blended_words or ()), item.mask_runs)  # fmt: skip
        size = {} if item.mask_size == PIE_SIZE else {"picture_size": item.mask_size}
        mapping[item.id] = {**item.extras, **dict(zip(KEYS, told, strict=False)), **size}
    write_json(folder / "mapping_file.json", mapping, indent=None)


# ------------------------------------------------------------------------------------- DreamBooth-dataset subjects


@dataclass(frozen=True)
class Subject:
    """A subject of the DreamBooth dataset; a live one takes the live prompts, any other the object prompts."""

    name: str
    class_name: str
    live: bool
    paths: tuple[Path, ...]

    @property
    def prompt_kind(self) -> str:
        """Under which its prompts stand (read_subject_prompts)."""
        return "live" if self.live else "object"


def read_subjects(
    folder: str | Path, names: Iterable[str] | None = None, needed: Iterable[str] | None = None
) -> list[Subject]:
    """Read the subjects that folder/prompts_and_classes.txt lists, each with the pictures of folder/<name>/.

    The published list has the columns "subject_name,class" and nothing on who is alive: cats and dogs are. A third
    column "live" of 0 or 1 says so for other classes. `names` picks some, so that the rest need not be there. needed:
    those whose pictures have to be there (all by default), and whole; the others come without any where they are not.
    """
    folder = Path(folder)
    listed, _ = _read_subject_file(folder)
    wanted = list(dict.fromkeys(listed if names is None else names))
    needed = set(wanted if needed is None else needed)
    if unknown := {*wanted, *needed} - listed.keys():
        raise InputError(f"subjects {sorted(unknown)} are not in {folder}; there are {', '.join(listed)}")
    there = [name for name in wanted if name in needed or (folder / name).is_dir()]
    paths = {name: tuple(list_pictures(folder / name)) for name in there}
    for path in (path for name in needed for path in paths[name]):
        load_image(path)  # a damaged one is told of before anything is trained or written
    return [Subject(name, *listed[name], paths.get(name, ())) for name in wanted]


def read_subject_prompts(folder: str | Path) -> dict[str, list[str]]:
    """The prompt templates of folder/prompts_and_classes.txt, "a {0} {1} in the jungle", under "object" and "live".
    InputError where a kind of the listed subjects has none, or one names neither token nor class."""
    listed, prompts = _read_subject_file(Path(folder))
    path = Path(folder) / "prompts_and_classes.txt"
    for kind in {"live" if live else "object" for _, live in listed.values()}:
        if not prompts[kind]:
            raise InputError(f"{path} has no prompts for {kind} subjects, such as it lists")
    if wrong := [text for of_kind in prompts.values() for text in of_kind if "{0}" not in text or "{1}" not in text]:
        raise InputError(f"{path}: {wrong[0]!r} lacks {{0}} for the subject's token or {{1}} for its class")
    return prompts


def fill_prompt(template: str, token: str, class_name: str) -> str:
    """Put the unique token and the class into a template; with token "" it is the prompt that CLIP-T is scored on."""
    return " ".join(template.replace("{0}", token).replace("{1}", class_name).split())


def _read_subject_file(folder: Path) -> tuple[dict[str, tuple[str, bool]], dict[str, list[str]]]:
    path = folder / "prompts_and_classes.txt"
    try:
        text = "\n".join(line.strip() for line in read_text(path).splitlines())
    except InputError as problem:
        raise InputError(f"cannot read {path}, which lists subjects and prompts: {problem}") from None
    table, _, prompts = text.partition("subject_name,class")[2].partition("\n\n")
    subjects = {}
    for row in table.splitlines()[1:]:  # the first is what is left of the heading
        name, class_name, live = ([part.strip() for part in row.split(",")] + ["", ""])[:3]
        if not class_name or live not in ("", "0", "1"):
            raise InputError(f"{path} has the row {row!r}; a subject's name, a comma and its class are needed")
        if name in subjects:
            raise InputError(f"{path} lists {name!r} twice; remove one of the rows")
        alive = live == "1" if live else is_alive(class_name)
        subjects[check_file_name(name, f"a subject of {path}")] = (class_name, alive)
    if not subjects:
        raise InputError(f"{path} lists no subjects; after a line subject_name,class one line per subject is needed")
    objects, _, live_ones = prompts.partition("Live Subject Prompts")
    return subjects, {"object": _literals(objects), "live": _literals(live_ones)}


def is_alive(class_name: str) -> bool:
    """What the dataset leaves unsaid: of its classes these are, however they are spelt."""
    return class_name.lower() in LIVE_CLASSES


def _literals(text: str) -> list[str]:
    """The quoted text in front of each .format( of a Python list, one a line; nothing is evaluated."""
    try:
        found = [ast.literal_eval(quoted) for quoted in re.findall(r"""^(["'].*["'])\.format\(""", text, re.MULTILINE)]
        if len(found) < len(re.findall(r"""^[bfruBFRU]{0,2}["']""", text, re.MULTILINE)):
            raise ValueError
        return [check_prompt(prompt, "prompts_and_classes.txt") for prompt in found]
    except InputError:
        raise
    except (ValueError, SyntaxError):
        raise InputError("prompts_and_classes.txt holds a prompt with a stray quotation mark or backslash, or that is "
                         "no 'text'.format(…) on a line of its own") from None  # fmt: skip


def write_subjects(folder: str | Path, subjects: Iterable[Subject], prompts: dict[str, list[str]]) -> None:
    """Write a DreamBooth-dataset folder; `prompts` as read_subject_prompts gives them. Pictures are copied in."""
    folder, subjects = Path(folder), list(subjects)
    usual = all(subject.live == is_alive(subject.class_name) for subject in subjects)
    lines = ["Classes", "", "subject_name,class" + ("" if usual else ",live")]
    for subject in subjects:
        for number, path in enumerate(subject.paths):
            _place(path, folder / subject.name, f"{number:02d}")
        lines.append(f"{subject.name},{subject.class_name}" + ("" if usual else f",{int(subject.live)}"))
    lines += ["", "Prompts"]
    for title, kind in (("Object Prompts", "object"), ("Live Subject Prompts", "live")):
        calls = [f"{template!r}.format(unique_token, class_token)" for template in prompts[kind]]
        lines += ["", title, "", "prompt_list = [", ",\n".join(calls), "]"]
    write_text(folder / "prompts_and_classes.txt", "\n".join(lines) + "\n")
