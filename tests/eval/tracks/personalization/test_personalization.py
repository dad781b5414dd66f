"""The arena's protocol, scores, variants and comparison at matched fidelity, against naive readings."""

import math
import random
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data import Subject
from common.picturebook.classifier import Reading
from common.picturebook.scenes import HELD_OUT, KINDS
from common.picturebook.subjects import LIVE_PROMPTS, OBJECT_PROMPTS
from common.runs import bootstrap_interval
from eval.claims import findings
from eval.report.headlines import claim_view
from eval.report.measures import difference, interval, resampling_weights
from eval.tracks.personalization import matched, protocol, scoring, track, variants
from eval.tracks.personalization.methods import METHODS
from eval.tracks.personalization.track import QUICK
from eval.tuning import personalization as tune_personalization
from tests.eval.conftest import make_row
from tests.refusing import refuses
from tests.small_data import MeanColor


def reading(background="room", light="day", style="plain", **first):
    thing = {"kind": "cat", "color": "red", "material": "plain", "hat": False, "pose": "standing", "presence": 0.9}
    others = [{**thing, "kind": "ball", "color": "red", "presence": 0.7}, {**thing, "kind": "dog", "presence": 0.1}]
    return Reading(background, light, style, [thing | first, *others])


def test_every_prompt_of_the_picturebook_asks_for_something_that_the_classifier_names():
    for template in {*OBJECT_PROMPTS, *LIVE_PROMPTS}:
        wanted = protocol.asked(template, "cat")
        named = {"background"} | {key for key, words in {
            "light": "at night", "style": "pencil sketch", "hat": "with a hat", "companion": " and a ",
            "material": "striped", "pose": "lying", "color": "purple {0}",
        }.items() if words in template} | ({"color"} if "green {0}" in template else set())  # fmt: skip
        assert wanted.keys() == named, template
    assert "companion" not in protocol.asked("a {0} {1} and a red ball in a meadow", "ball")


@pytest.mark.parametrize("template, changes, seen", [
    ("a {0} {1} in a room", {}, True),
    ("a {0} {1} in a room at night", {}, False),
    ("a {0} {1} in a meadow", {}, False),
    ("a {0} {1} with a hat in a room", {"hat": True}, True),
    ("a {0} {1} with a hat in a room", {"hat": True, "kind": "house"}, False),  # somebody else's hat
    ("a {0} {1} and a red ball in a room", {}, True),
    ("a {0} {1} and a yellow ball in a room", {}, False),
    ("a purple {0} {1} in a room", {"color": "purple"}, True),
    ("a purple {0} {1} in a room", {}, False),
])  # fmt: skip
def test_context_is_seen_only_whole(template, changes, seen):
    assert protocol.context_seen(protocol.asked(template, "cat"), "cat", reading(**changes)) is seen


def test_identity_is_kind_and_usual_colour_and_nothing_where_the_prompt_changes_it():
    usual = protocol.usual_color("cat", [reading(color="pink"), reading(), reading()])
    plain, purple = (protocol.asked(f"a {color}{{0}} {{1}} in a room", "cat") for color in ("", "purple "))
    assert usual == "red" and protocol.subject_seen(plain, "cat", usual, reading()) is True
    assert protocol.subject_seen(plain, "cat", usual, reading(color="blue")) is False
    assert protocol.subject_seen(plain, "cat", usual, reading(kind="tree")) is False
    assert protocol.subject_seen(purple, "cat", usual, reading()) is None


def test_held_out_prompts_leave_the_subjects_class_out_and_name_only_what_training_has_seen():
    found = protocol.held_out(Subject("cat2", "cat", True, ()), list(KINDS), on_picturebook=True)
    assert [kind for _, kind in found] == [kind for kind in KINDS if kind != "cat"]
    assert not {tuple(prompt.split()[1:3]) for prompt, _ in found} & HELD_OUT
    dogs = protocol.held_out(Subject("dog6", "dog", True, ()), ["cat", "cat", "dog", "vase"], on_picturebook=False)
    assert dogs == [("a photo of a cat", "cat"), ("a photo of a vase", "vase")]


def test_each_picture_has_a_seed_of_its_own_and_a_prompt_with_the_token():
    """And is drawn in parts, rounded to eight bits as files are, and refused where it is none."""
    asked = []

    class Pipe(SimpleNamespace):
        def __call__(self, prompts, generator, output_type, **settings):
            asked.extend(zip(prompts, [one.initial_seed() for one in generator], strict=True))
            assert len(prompts) <= 4 and settings == {"num_inference_steps": 3, "guidance_scale": 7.5}
            return Namespace(images=torch.stack([torch.rand(3, 2, 2, generator=one) for one in generator]) * self.light)

    how = protocol.Sampling(num_inference_steps=3, images_per_prompt=3, batch=4)
    pipe = Pipe(set_progress_bar_config=lambda disable: None, light=1)
    pictures = protocol.sample_subject(pipe, ["a {0} {1}", "a red {0} {1}"], "sks", "cat", 2, how)
    assert [prompt for prompt, _ in asked] == ["a sks cat"] * 3 + ["a red sks cat"] * 3
    assert len({seed for _, seed in asked}) == 6
    raw = torch.stack([torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(seed)) for _, seed in asked])
    assert torch.equal(pictures.flatten(0, 1), (raw * 255).round() / 255) and pictures.shape[:2] == (2, 3)
    pipe.light = math.nan
    refuses("diverged", protocol.sample_subject, pipe, ["a", "b"], "", "cat", 0, how)


class Eye(MeanColor):
    """Of prompts it knows the colour that they name."""

    def embed_text(self, prompts):
        assert prompts in (["a red cat", "a green cat"], ["a red", "a"])  # without the token
        return torch.tensor([[1.0, 0, 0] if "red" in prompt else [0, 1.0, 0] for prompt in prompts])


def test_scores_are_dreambenchs_means_over_all_pairs_and_own_prompts():
    rng = np.random.default_rng(0)
    pictures, references = rng.random((2, 3, 3, 4, 4)), rng.random((2, 3, 4, 4))
    subject = Subject("s", "cat", True, ())
    eyes = scoring.Encoders(*[Eye()] * 4)
    tensors = torch.tensor(pictures).float(), [torch.tensor(r).float()[None] for r in references]
    scores, seen = scoring.subject_scores(tensors[0], ["a red {0} {1}", "a green {0} {1}"], subject, tensors[1], eyes)

    def unit(picture):
        color = picture.mean((1, 2))
        return color / np.sqrt((color**2).sum())

    cosines = [unit(p) @ unit(r) for batch in pictures for p in batch for r in references]
    assert scores["DINO/dreambench (toy)"] == pytest.approx(np.mean(cosines), abs=1e-6)
    own = [np.mean([unit(p)[axis] for p in pictures[axis]]) for axis in (0, 1)]
    assert scores["CLIP-T/dreambench (toy)"] == pytest.approx(np.mean(own), abs=1e-6)
    apart = [((b[i] - b[j]) ** 2).mean() for b in pictures for i in range(3) for j in range(i)]
    assert scores["diversity (toy)"] == pytest.approx(np.mean(apart), abs=1e-6)
    assert seen == [[None] * 3] * 2 and not any("context" in name for name in scores)
    ceiling = scoring.ceiling(tensors[1], eyes)
    assert ceiling["DINO/dreambench (toy)"] == pytest.approx(unit(references[0]) @ unit(references[1]), abs=1e-6)
    one = scoring.subject_scores(tensors[0][:, :1], ["a red {0}", "a {0}"], subject, tensors[1], eyes)[0]
    assert math.isnan(one["diversity (toy)"])


@pytest.mark.parametrize("values, count, independent", [
    ({(str(i), 0): float(i) for i in range(9)}, 9, range(9)),  # one seed: the plain bootstrap
    ({(f"{i}/{scene:02d}", 0): float(i) for i in range(4) for scene in range(30)}, 120, range(4)),  # of one training
    ({(str(i), seed): float(i) for i in range(6) for seed in range(20)}, 120, range(6)),  # not narrower for many seeds
])  # fmt: skip
def test_an_interval_is_as_wide_as_that_over_independent_subjects(values, count, independent):
    found, (mean, low, high) = interval(values), bootstrap_interval(independent)
    assert (found.mean, found.independent) == (mean, len(independent)) and found.n == count
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)
    assert count > len(independent) or (found.low, found.high) == (low, high)


def test_items_are_resampled_first_and_the_differences_of_seeds_are_paired():
    pairs = [("a", 0), ("a", 1), ("b", 0)]
    weights = resampling_weights(tuple(pairs), n=4000)
    picks, naive = random.Random(0), np.zeros(3)
    for _ in range(4000):
        drawn = [picks.choice([[0, 1], [2]]) for _ in range(2)]
        chosen = [picks.choice(members) for members in drawn for _ in members]
        naive += np.bincount(chosen, minlength=3) / len(chosen) / 4000
    assert np.allclose(weights.sum(1), 1) and np.allclose(weights.mean(0), naive, atol=0.02)
    values = (("x", 0, 2.0), ("x", 1, 5.0), ("y", 0, 1.0), ("y", 2, 9.0))
    rows = [make_row(method, "a", {"k": value}, seed=seed) for method, seed, value in values]
    assert difference(rows, "k", "x", "y").n == 1 and difference(rows, "k", "x", "y").mean == 1.0


def curve_rows(name, points, rng, subjects=10, noise=0.01):
    """points: (DINO, context) per factor 1, 2, …; every subject shifts all points of all curves alike."""
    shifts = np.random.default_rng(7).normal(0, 0.05, (subjects, 2))
    return [
        make_row(f"{name}*{factor}", str(s), {"DINO/dreambench (x)": d + shifts[s, 0] + rng.normal(0, noise),
                                              "context (x)": c + shifts[s, 1] + rng.normal(0, noise)},
                 curves={name: factor})
        for factor, (d, c) in enumerate(points, start=1) for s in range(subjects)
    ]  # fmt: skip


def test_the_gap_of_two_straight_lines_is_their_distance():
    ours = np.array([[0.2, 0.8], [0.6, 0.4]])  # context = 1 - DINO
    theirs = np.array([[0.7, 0.2], [0.3, 0.6], [0.5, 0.4]])  # 0.1 below, not in order
    assert matched.gap(ours, theirs) == pytest.approx(0.1)
    assert math.isnan(matched.gap(ours, theirs + [0.5, 0]))


def test_curves_are_compared_where_both_reach_and_by_whole_subjects():
    rng = np.random.default_rng(0)
    better = curve_rows("penalty", [(0.4, 0.8), (0.6, 0.6), (0.8, 0.4)], rng)
    worse = curve_rows("prior", [(0.5, 0.6), (0.7, 0.4)], rng)  # 0.1 below the line of the first
    keys = ("context (x)", "DINO/dreambench (x)", "penalty", "prior")
    found = matched.matched_difference(better + worse, *keys)
    assert found.n == 10 and found.mean == pytest.approx(0.1, abs=0.02) and 0 < found.low < found.mean < found.high
    rows = [row for row in better + worse if (row["method"], row["item"]) != ("prior*2", "3")]
    assert matched.matched_difference(rows, *keys).n == 9  # a subject that lacks a point counts nowhere
    assert matched.matched_difference(better, *keys).n == 0
    apart = curve_rows("prior", [(0.9, 0.3), (0.95, 0.2)], rng)
    assert math.isnan(matched.matched_difference(better + apart, *keys).low)


def test_a_claim_at_matched_fidelity_is_judged_by_the_curves():
    rng = np.random.default_rng(0)
    rows = curve_rows("penalty", [(0.4, 0.8), (0.8, 0.4)], rng) + curve_rows("prior", [(0.4, 0.7), (0.8, 0.3)], rng)
    verdicts = {found.claim["claim"]: found for found in findings("personalization", rows)}
    first = next(found for name, found in verdicts.items() if "than with prior" in name)
    assert first.verdict == "holds" and first.gap.mean == pytest.approx(0.1, abs=0.02)
    assert {found.verdict for found in verdicts.values() if found is not first} == {"inconclusive"}


def test_weights_and_predictions_are_compared_along_the_penaltys_own_curve():
    """Both sides are of one learning rate, and the page shows a claim whose sides are no methods of its tables."""
    rng = np.random.default_rng(0)
    means = {"dreambooth+penalty@l2_reg_weightx10": 0.05, "dreambooth+penalty@l2_reg_weightx0.1": 0.09,
             "dreambooth+penalty": 0.2, "dreambooth": 0.01}  # fmt: skip
    rows = [make_row(name, str(s), {"delta_eps_relative": mean + rng.normal(0, 0.01)})
            for name, mean in means.items() for s in range(10)]  # fmt: skip
    (found,) = [one for one in findings("personalization", rows) if one.claim["score"] == "delta_eps_relative"]
    assert found.verdict == "holds" and found.gap.mean == pytest.approx(-0.04, abs=0.02)
    assert claim_view(found, "claim-1")["verdict"] == "holds"
    settings = {"dreambooth+penalty": {"learning_rate": 1e-4, "l2_reg_weight": 5.0}}
    sides = {one.name: variants.settings_of(one, settings, settings)
             for one in variants.variants(["dreambooth+penalty"], ["penalty"])}  # fmt: skip
    ours, theirs = (sides[found.claim[side]] for side in ("method", "baseline"))
    assert ours["learning_rate"] == theirs["learning_rate"]
    assert (ours["l2_reg_weight"], theirs["l2_reg_weight"]) == (50.0, 0.5)


def test_every_method_has_a_title_of_its_own_and_is_on_the_page():
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles) and set(METHODS) < set(track.METHODS) and set(QUICK) < set(METHODS)
    assert list(track.METHODS)[-1] == "dreambooth+penalty"


def test_a_curve_turns_one_knob_and_shares_what_it_can():
    found = {one.name: one for one in variants.variants(["base"], ["early_stopping", "interpolation"])}
    assert list(found)[:2] == ["base", "dreambooth"] and len(found) == 2 + 2 + 2
    assert found["dreambooth"].curves == dict.fromkeys(("early_stopping", "lower_rate", "interpolation"), 1.0)
    early, half = found["dreambooth@max_train_stepsx0.5"], found["dreambooth@interpolationx0.3"]
    assert half.trained_as == "dreambooth" and half.strength == 0.3 and early.strength == 1
    tuned = {"dreambooth": {"learning_rate": 1e-4}}
    whole = {"dreambooth": {"learning_rate": 1e-4, "max_train_steps": 301}}
    assert variants.settings_of(early, tuned, whole) == {"learning_rate": 1e-4, "max_train_steps": 150}
    assert variants.settings_of(half, tuned, whole) == tuned["dreambooth"]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.script])
def test_every_method_has_a_command_line_that_its_script_takes(name, tmp_path):
    """At the paper's scale and on the picturebook, with the tuned settings."""
    resolved = variants.resolved(name, "stable-diffusion-v1-5/stable-diffusion-v1-5", {})
    assert resolved["max_train_steps"] >= 250 and "output_dir" in resolved
    tuned = variants.resolved(name, "picturebook", variants.tuned_settings().get(name, {}))
    assert tuned["max_train_steps"] < 1000
    if "l2_reg_weight" in resolved:
        assert (resolved["l2_reg_weight"] == 0) == (not name.endswith("+penalty"))
    subject = Subject("dog2", "dog", True, (tmp_path / "dog2" / "00.png",))
    words = METHODS[name].command(subject, tmp_path / "out", "picturebook", {"learning_rate": 0.5}, 3)
    flags = dict(zip(words, words[1:], strict=False))
    assert flags["--learning_rate"] == "0.5" and flags["--seed"] == "3"
    called = METHODS[name].token + " dog" * METHODS[name].names_class
    assert flags["--instance_prompt"] == f"a {called}" and flags["--class_prompt"] == "a dog"  # as its captions say
    words = METHODS[name].command(subject, tmp_path / "out", "owner/sd", {}, 3)
    start = "photo of a" if "custom_diffusion" in name else "a photo of a"  # as their scripts have it
    assert words[words.index("--instance_prompt") + 1] == f"{start} {called}"
    assert ("--with_prior_preservation" in words) == (name == "oft" or name.endswith("+prior"))


def test_every_method_has_the_same_number_of_settings_to_try():
    assert {len(grid) for grid in tune_personalization.GRIDS.values()} == {6}
    assert set(tune_personalization.GRIDS) == {name for name, method in METHODS.items() if method.script}


@pytest.mark.parametrize("metrics, found", [
    ((0.6, 0.5), 0.5), ((0.9, 0.0), 0.0), ((1.2, 1.0), 1.0), ((0.2, 1.0), 0.0), (None, 0.0),
], ids=["half of both", "copies", "more than real", "no likeness", "diverged"])  # fmt: skip
def test_tuning_balances_likeness_and_context(metrics, found):
    def row(dino, context):
        return {"metrics": {"DINO/dreambench (picturebook)": dino, "context (picturebook)": context}}

    own = row(*metrics) if metrics else {"metrics": {}}
    assert tune_personalization.score(own, base=row(0.3, 0.9), real=row(0.9, math.nan)) == pytest.approx(found)
