"""Places and surroundings that cannot be: links in a circle, homes of nobody, an environment that says nonsense."""

import json
import os
from pathlib import Path

import pytest

from common import files, runs
from common.flags import as_flags, weights_of
from eval.tuning.tuner import left_out
from tests.refusing import refuses
from tests.test_hostile_inputs import main_of, nothing_heavy, refusal  # noqa: F401  (a fixture that every test has)

CIRCLE = "circle.png"  # a link to itself
NOWHERE = [  # script, flags, what the refusal names
    ("spdinv.infer", f"--image_path {CIRCLE} --source_prompt a --target_prompt b", "image_path"),
    ("spdinv.infer", "--image_path pipe.png --source_prompt a --target_prompt b", "image_path"),
    ("spdinv.infer", f"--adapter {CIRCLE}", "--adapter"), ("spdinv.infer", "--adapter ~nobody-here/x", "--adapter"),
    ("svdiff.train", f"--instance_data_dir {CIRCLE} --instance_prompt a", "instance_data_dir"),
    ("svdiff.train", f"--concepts_list {CIRCLE}", CIRCLE), ("svdiff.infer", f"--spectral_shifts {CIRCLE}", CIRCLE),
    ("svdiff.infer", "--spectral_shifts ~nobody-here/x", "~nobody-here/x"),
    ("image_inpaint.infer", f"--image_path a.png --mask_path {CIRCLE} --reference_path a.png", "--mask_path"),
    ("pixels.infer", f"--image_path a.png --exemplar_path a.png --edit_map_path {CIRCLE}", "--edit_map_path"),
    ("image_inpaint.eval", f"--subjects {CIRCLE} --scenes d", "--subjects"),
    ("image_inpaint.train", f"--stage pretrain --train_data_dir {CIRCLE}", "--train_data_dir"),
    ("eval.personalize", f"--subjects_dir {CIRCLE}", "--subjects_dir"),
    ("eval.compare", "--pictures pipe.png", "pipe.png"), ("pixels.eval", f"--dataset {CIRCLE}", "--dataset"),
]  # fmt: skip


@pytest.mark.parametrize("script, words, said", NOWHERE)
def test_places_that_lead_nowhere(script, words, said, capsys):
    os.symlink(CIRCLE, CIRCLE)
    os.mkfifo("pipe.png")
    Path("a.png").write_bytes(b"")
    problem, sentence = refusal(script, [*words.split(), "--output_dir", "out"], capsys)
    assert problem is None and said in sentence, (problem, sentence)


SURROUNDINGS = [  # variables, script, flags, what the refusal names
    ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "spdinv.eval", "", "RANK is 'x'"),
    ({"RANK": "7", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "lipschitz_personalize.eval", "", "RANK=7"),
    ({"WORLD_SIZE": ""}, "svdiff.train", "--instance_data_dir d --instance_prompt a --class_prompt b", "IZE is"),
    ({"WORLD_SIZE": "x"}, "image_inpaint.train", "--instance_data_dir d", "WORLD_SIZE is 'x'"),
    ({files.CACHE_VARIABLE: "~nobody-here/c"}, "svdiff.infer", "--spectral_shifts none", "none is missing"),
]  # fmt: skip


@pytest.mark.parametrize("variables, script, words, said", SURROUNDINGS)
def test_surroundings_that_cannot_be(variables, script, words, said, capsys, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path("d").mkdir()
    problem, sentence = refusal(script, [*words.split(), "--output_dir", "out"], capsys)
    assert problem is None and said in sentence, (problem, sentence)


@pytest.mark.parametrize("value", ["-a dog", "-1e-05", "--x", "-", "a=b", "", "plain", -1e-5, -3])
def test_what_begins_with_a_dash_comes_through_as_it_was(value):
    parser = runs.make_parser("test")
    parser.add_argument("--prompt", type=type(value))
    assert parser.parse_args(as_flags({"prompt": value})).prompt == value


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "../adapter"])
def test_rows_of_a_model_that_was_replaced_in_its_folder_are_not_joined(part):
    def write(place, content):
        Path("model", place).mkdir(parents=True, exist_ok=True)
        Path("model", place, "model.safetensors").write_bytes(content)

    Path("model").mkdir()
    for place in ("unet", "vae", "text_encoder", "../adapter"):
        write(place, b"one")
    assert weights_of("model") is None and weights_of("owner/model") is None  # without an index it is no model
    Path("model/model_index.json").write_text("{}")
    Path("out").mkdir()
    Path("out/config.json").write_text(json.dumps({"weights": weights_of("model", "adapter")}))
    Path("out/rows.jsonl").write_text('{"method": "ddim", "item": "dog"}\n')
    runs.joined_config("out", {"weights": weights_of("model", "adapter")}, ["weights"])
    write(part, b"two")
    refuses("other weights", runs.joined_config, "out", {"weights": weights_of("model", "adapter")}, ["weights"])
    Path("out/config.json").write_text('{"weights": null}')  # of a time when they were not told
    assert runs.joined_config("out", {"weights": "0a"}, ["weights"]) == {"weights": "0a"}


@pytest.mark.parametrize("problem, goes_on", [
    (files.InputError("the loss is nan"), True), (files.WriteError(Path("x"), "the disk is full"), False),
    (MemoryError(), False), (OSError(28, "No space"), False), (SystemExit(2), True), (KeyboardInterrupt(), False),
])  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_what_the_machine_lacks_is_not_taken_for_a_method_that_fails(problem, goes_on, inside):
    """inside: of a script that the evaluation runs."""

    def main(argv=None):
        raise problem

    reached = False
    try:
        with left_out("no row of a cat"):
            (runs.script(main) if inside else main)()
        reached = True
    except BaseException as stop:
        assert isinstance(stop, SystemExit if inside else type(problem))
    assert reached == goes_on
