"""Wrong inputs to every script: one sentence, exit code 2, no traceback, no model asked for, nothing left behind."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from common import files, model_files, runs

ROOT = files.ROOT
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for top in ("common", "eval", "image_inpaint", "lipschitz_personalize", "pixels", "spdinv", "svdiff")
    for path in (ROOT / top).rglob("*.py")
    if "\n@script\n" in path.read_text(encoding="utf-8")
)
NO_NUMBERS = ("nan", "inf", "-inf", "1e23", "-1e23", "9" * 30, "one", "", "0x10", "1,5")


class Captured(Exception):
    """Carries the parser of a script out of its main()."""


def main_of(script):
    return importlib.import_module(script).main


@pytest.fixture(scope="module")
def parsers():
    """The parser of every script, as it stands when its arguments are parsed."""
    found, before = {}, runs._Parser.parse_args

    def capture(self, args=None, namespace=None):
        raise Captured(self)

    runs._Parser.parse_args = capture
    try:
        for script in SCRIPTS:
            with pytest.raises(Captured) as caught:
                main_of(script)([])
            found[script] = caught.value.args[0]
    finally:
        runs._Parser.parse_args = before
    return found


@pytest.fixture(autouse=True)
def nothing_heavy(tmp_path, monkeypatch):
    """An empty folder to be in, and no model to be had but those that do not exist."""
    find = model_files.find_folder

    def refuse(name, *args, **kwargs):
        if Path(name).exists() or name == "picturebook":
            raise AssertionError(f"the model {name} was asked for before the input was refused")
        return find(name, *args, **kwargs)

    for module in ("common.model_files", "common.pipelines"):
        monkeypatch.setattr(f"{module}.find_folder", refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "here" / "cache"))


def refusal(script, argv, capsys):
    """What is wrong with the way a script refuses its arguments, or None; and the sentence that it says."""
    capsys.readouterr()
    before = sorted(os.listdir("."))
    try:
        main_of(script)([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    except BaseException as problem:
        return f"{type(problem).__name__}: {problem}", ""
    else:
        return "it ran", ""
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("picturebook preset")]
    if code != 2:
        return f"exit code {code}", " ".join(said)
    if len(said) != 1 or not said[0].startswith("error: "):
        return f"it says {said}", " ".join(said)
    if sorted(os.listdir(".")) != before:
        return f"it left {sorted(set(os.listdir('.')) - set(before))}", said[0]
    return None, said[0]


def flags_of(parser):
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def needed_by(parser) -> list[str]:
    """What a script cannot go without."""
    return [word for action in parser._actions if action.required for word in (*action.option_strings, "x")]


def test_every_script_is_found():
    assert len(SCRIPTS) >= 25 and {"spdinv.infer", "svdiff.train", "pixels.eval", "eval.compare"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_out_of_their_bounds(script, parsers, capsys):
    wrong = []
    for action in flags_of(parsers[script]):
        flag = action.option_strings[0]
        if action.type in (int, float):
            if action.choices is None:
                wrong.append(f"{flag} has no bounds: common.flags.number gives them")
            continue
        if not (bounds := getattr(action.type, "bounds", None)):
            continue
        kind, low, high = bounds
        assert np.isfinite(high), flag
        outside = [str(high + 1)] + ([str(low - 1)] if np.isfinite(low) else []) + (["1.5"] if kind is int else [])
        for value in (*NO_NUMBERS, *outside):
            count = action.nargs if isinstance(action.nargs, int) else 1
            words = [f"{flag}={value}"] if count == 1 else [flag, *[value] * count]
            problem, said = refusal(script, words, capsys)
            if problem or flag not in said and not said.startswith("error: argument"):
                wrong.append(f"{' '.join(words)}: {problem or said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_do_not_exist(script, parsers, capsys):
    flag = flags_of(parsers[script])[0].option_strings[0]
    needed = needed_by(parsers[script])
    problem, said = refusal(script, [*needed, flag + "x", "1"], capsys)
    assert problem is None and f"did you mean {flag}?" in said
    problem, said = refusal(script, [*needed, "--zzzzzz"], capsys)
    assert problem is None and "unknown argument --zzzzzz" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_output_folders_that_cannot_be(script, parsers, capsys, tmp_path):
    if not any("--output_dir" in action.option_strings for action in flags_of(parsers[script])):
        pytest.skip("writes no folder")
    (tmp_path / "file").write_text("mine")
    needed = needed_by(parsers[script])
    for place in (tmp_path / "file", tmp_path / "file" / "inside", "/proc/none/such", "a\0b", "x" * 300, ""):
        problem, said = refusal(script, [*needed, f"--output_dir={place}"], capsys)
        assert problem is None and "--output_dir" in said, (place, problem, said)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("script", SCRIPTS)
def test_devices_that_are_not_there(script, parsers, capsys):
    if not any("--device" in action.option_strings for action in flags_of(parsers[script])):
        pytest.skip("has no device")
    for device in ("abacus", "cuda:99", "meta", *(() if torch.cuda.is_available() else ("cuda",))):
        problem, said = refusal(script, [*needed_by(parsers[script]), "--device", device], capsys)
        assert problem is None and ("device" in said), (device, problem, said)


@pytest.mark.parametrize("script", SCRIPTS)
def test_prompts_that_are_not_all_text(script, parsers, capsys):
    """Bytes of another encoding on the command line, which Python hands on as halves of characters."""
    if needed := needed_by(parsers[script]):
        pytest.skip(f"{needed[0]} is asked for first")
    for action in flags_of(parsers[script]):
        if "prompt" in action.dest and action.nargs != 0 and action.type is None and not action.choices:
            problem, said = refusal(script, [action.option_strings[0], "a \udcff"], capsys)
            assert problem is None and "not all text" in said, (action.dest, problem, said)


# Flags that name what is read. What they name is not there.
READS = ("_path", "_dir", "_file", "dataset", "trained_dir", "lora", "adapter", "pretrained_model_name_or_path",
         "spectral_shifts", "concepts_list", "triples", "maps", "answers", "encoders")  # fmt: skip
WRITES = ("output_dir", "basis_dir", "class_data_dir")


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_that_are_not_there(script, parsers, capsys):
    wrong = []
    for action in flags_of(parsers[script]):
        if action.type is not None or action.choices or action.nargs == 0 or action.dest in WRITES:
            continue
        if action.dest.endswith(READS):
            words = [action.option_strings[0], "./no/such/place.png"]
            problem, said = refusal(script, words, capsys)
            if problem:
                wrong.append(f"{' '.join(words)}: {problem}")
    assert not wrong, "\n".join(wrong)


# Files that are there, and hold something else than they should: what is written, the script with its arguments, and
# what the refusal names.
TRAINED = {"parameter_space": "full", "backbone": "sd", "instance_prompt": "a sks cat", "class_prompt": None,
           "resolution": 64, "pretrained_model_name_or_path": "sd"}  # fmt: skip
LIPSCHITZ = ("lipschitz_personalize.infer", "--trained_dir", "run")
WRONG_FILES = [
    ({"run/config.json": TRAINED | wrong}, LIPSCHITZ, "another script")
    for wrong in ({"backbone": []}, {"instance_prompt": 5}, {"class_prompt": 5}, {"resolution": "x"},
                  {"resolution": -64}, {"pretrained_model_name_or_path": None})
]  # fmt: skip
WITH_PRIOR = ("svdiff.train", "--image_path", "c.png", "--instance_prompt", "a", "--with_prior_preservation")
WRONG_FILES.append(({"c.png": b""}, WITH_PRIOR, "is learned without prior"))
NOT_YET = ("lipschitz_personalize.train", "--instance_data_dir", "d", "--instance_prompt", "a", "--class_data_dir",
           "c/", "--output_dir", "c")  # fmt: skip
WRONG_FILES.append(({"d/a.png": b""}, NOT_YET, "is where --class_data_dir"))
ONE = {"instance_data_dir": "one", "instance_prompt": "a sks cat", "class_prompt": "a cat"}
OTHER = {"instance_data_dir": "two", "instance_prompt": "a qwe dog", "class_prompt": "a dog"}
WRONG_FILES += [
    ({"one/a.png": b"", "two/a.png": b"", "list.json": [ONE, OTHER | {"class_data_dir": folder}]},
     ("svdiff.train", "--concepts_list", "list.json", "--output_dir", output), said)
    for folder, output, said in ((None, "./two", "is where --instance_data_dir two"), ("two/", "out", "is an instance"),
                                 ("one/../one", "out", "is an instance"), ("c", "c", "is where --class_data_dir c"))
]  # fmt: skip


def write_files(files):
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.mark.parametrize("files, words, said", WRONG_FILES)
def test_files_that_hold_something_else(files, words, said, capsys):
    write_files(files)
    problem, sentence = refusal(words[0], words[1:], capsys)
    assert problem is None and said in sentence, (problem, sentence)


# What is read lies where a run writes its own pictures: it would be replaced, or taken for what was read.
OWN_PICTURE = {"mine/a.png": b"a", "mine/b.png": b"b", "d/c.png": b"c"}
IN_OUTPUT = [
    ("spdinv.infer", "--image_path mine/a.png --source_prompt a --target_prompt b"),
    ("spdinv.infer", "--image_path d/c.png --source_prompt a --target_prompt b --engine masactrl "
                     "--source_mask mine/b.png --target_mask d/c.png"),
    ("pixels.infer", "--image_path d/c.png --exemplar_path ./mine/../mine/b.png --edit_map_path d/c.png"),
    ("pixels.infer", "--image_path d/c.png --exemplar_path d/c.png --edit_map_path mine/b.png"),
    ("image_inpaint.infer", "--image_path d/c.png --mask_path mine/b.png --reference_path d/c.png"),
    ("svdiff.infer", "--image_path mine/a.png --prompt a --spectral_shifts d"),
    ("svdiff.train", "--image_path mine/a.png --instance_prompt a"),
    ("svdiff.train", "--instance_data_dir mine --instance_prompt a --class_prompt b"),
    ("lipschitz_personalize.train", "--instance_data_dir d --instance_prompt a --class_data_dir mine/"),
    ("image_inpaint.train", "--instance_data_dir ./mine"),
    ("eval.personalize", "--subjects_dir mine"), ("eval.personalize", "--subjects_dir ."),
    ("image_inpaint.eval", "--subjects mine --scenes d"), ("image_inpaint.eval", "--subjects d --scenes mine"),
    ("image_inpaint.train", "--stage pretrain --train_data_dir ./"),
]  # fmt: skip


@pytest.mark.parametrize("script, words", IN_OUTPUT)
def test_what_is_read_does_not_lie_where_pictures_are_written(script, words, capsys):
    write_files(OWN_PICTURE)
    problem, sentence = refusal(script, [*words.split(), "--output_dir", "mine"], capsys)
    assert problem is None and "--output_dir mine is where --" in sentence, (problem, sentence)
    assert {name: Path(name).read_bytes() for name in OWN_PICTURE} == OWN_PICTURE


@pytest.mark.parametrize("script", [one for one in SCRIPTS if one.endswith(".infer")])
def test_a_trainings_config_is_not_replaced(script, capsys):
    write_files({"run/config.json": TRAINED | {"training": "0123456789ab"}})
    problem, sentence = refusal(script, ["--output_dir", "run"], capsys)
    assert problem is None and "--output_dir run holds a training" in sentence, (problem, sentence)


SUBJECT = "--instance_data_dir d --instance_prompt a_<new1> --class_prompt b"
UNHEEDED = [  # script, flags, what is said of which of them
    ("svdiff.train", f"{SUBJECT} --rank 8", "--rank does nothing with --parameter_space svdiff"),
    ("svdiff.train", f"{SUBJECT} --rank 8 --parameter_space lora", None),
    ("svdiff.train", f"{SUBJECT} --cut_mix_unmix_prob 0.5", "--cut_mix_unmix_prob does nothing without --concepts"),
    ("svdiff.train", f"{SUBJECT} --no-with_prior_preservation --class_data_dir c", "--class_data_dir does nothing wit"),
    ("svdiff.train", f"{SUBJECT} --class_data_dir c", None),
    ("lipschitz_personalize.train", f"{SUBJECT} --class_data_dir=c", "without --with_prior_preservation"),
    ("lipschitz_personalize.train", f"{SUBJECT} --class_data_dir=c --with_prior_preservation", None),
    ("lipschitz_personalize.train", f"{SUBJECT} --no-augment", "--augment does nothing with --parameter_space full"),
    ("lipschitz_personalize.train", f"{SUBJECT} --no-augment --parameter_space custom_diffusion", None),
    ("lipschitz_personalize.train", f"{SUBJECT} --l2_weight 0 --l2_lipschitz", "--l2_lipschitz does nothing without"),
    ("image_inpaint.train", "--instance_data_dir d --tuning full --rank 4", "--rank does nothing with --tuning full"),
    ("image_inpaint.train", "--instance_data_dir d --boxes whole --labels cat", "--labels does nothing with --boxes"),
    ("image_inpaint.train", "--instance_data_dir d --lr_warmup_steps 9 --lr_scheduler constant", "--lr_warmup_steps"),
    ("image_inpaint.train", "--instance_data_dir d --lr_warmup_steps 9 --lr_scheduler linear", None),
    ("eval.compare", "--pictures d --seed 3", "--seed does nothing with --pictures d"),
    ("eval.compare", "--seeds 3", "--seeds does nothing without --pictures"), ("eval.compare", "--seed 3", None),
    ("spdinv.infer", "--image_path d/a.png --source_prompt a --target_prompt b --engine none", "--target_prompt does"),
    ("spdinv.infer", "--image_path d/a.png --source_prompt a --target_prompt b", None),
    ("spdinv.infer", "--elite_clip d", "--elite_clip does nothing without --elite"),
    ("spdinv.eval", "--batch_size 2", "without --experiment"), ("spdinv.eval", "--full --split test", None),
    ("spdinv.eval", "--presets npi --preset npi", None), ("spdinv.eval", "--presets npi --preset as_released", "does"),
    ("pixels.eval", "--pair_count 3", "--pair_count does nothing without --pairs"), ("pixels.eval", "--full", None),
    ("svdiff.eval", "--prompts 3", "--prompts does nothing without --figure"), ("svdiff.eval", "--table 1", None),
    ("svdiff.infer", "--spectral_shifts d --export_merged m --seed 1", "--seed does nothing with --export_merged m"),
    ("image_inpaint.eval", "--labels bed", "--labels does nothing without --subjects"),
]  # fmt: skip


@pytest.mark.parametrize("script, words, said", UNHEEDED)
def test_a_flag_that_is_not_heeded_is_told(script, words, said, capsys):
    module = importlib.import_module({"svdiff.train": "svdiff.train"}.get(script, script.replace("train", "options")))
    write_files({"d/a.png": b""})
    parse = getattr(module, "parse_train", None) or module.parse
    parse([*words.split(), "--output_dir", "out"])
    told = [line for line in capsys.readouterr().err.splitlines() if "does nothing" in line]
    assert len(told) == (said is not None) and (said or "") in "".join(told)
