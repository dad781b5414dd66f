"""Points along one training, likeness as a share of the way, and the lawn from rows to gate and choice."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.data import Subject
from common.picturebook.classifier import Reading
from common.runs import read_rows
from eval.tracks.personalization import lawn, lawn_run, methods, scoring
from tests.refusing import refuses
from tests.small_data import MeanColor, write_noise, write_subject_set


def paint(*colors):
    return torch.stack([torch.tensor(color, dtype=torch.float32).reshape(3, 1, 1).expand(3, 4, 4) for color in colors])


def test_likeness_is_the_share_of_the_way_from_the_unmarked_thing_to_the_true_picture():
    red, green = (1.0, 0, 0), (0, 1.0, 0)
    between = (math.cos(math.pi / 3), math.sin(math.pi / 3), 0)  # cosine 1/2 with red
    truths, references = scoring.Truths(paint(red, red), paint(green, between)), [paint(red)]
    pictures = lambda *colors: paint(*colors).unflatten(0, (2, 1))  # noqa: E731
    likeness = lambda drawn, truths=truths: scoring.likeness(drawn, truths, references, MeanColor())  # noqa: E731
    assert likeness(pictures(red, red)) == pytest.approx(1)
    assert likeness(pictures(green, between)) == pytest.approx(0, abs=1e-6)
    half = likeness(pictures(between, between))
    assert half == pytest.approx((0.5 - 0 + 0) / (1 + 0.5))  # each against the unmarked one of its own prompt
    assert likeness(paint(red)) == pytest.approx(1)
    assert math.isnan(likeness(pictures(red, red), scoring.Truths(paint(red), paint(red))))


def test_points_along_one_run_are_runs_of_their_own(small_model, tmp_path):
    subject = Subject("dog", "dog", True, write_noise(tmp_path / "dog", [(32, 32)]))
    settings = {"learning_rate": 1e-3, "num_inference_steps": 1, "l2_reg_weight": 5.0, "device": "cpu"}
    method, model = methods.METHODS["dreambooth+penalty"], str(small_model)
    found = lawn_run.train_along(method, subject, tmp_path / "along", model, settings, 3, [2, 4])
    assert sorted(found) == [2, 4] and not list((tmp_path / "along").rglob("checkpoint-*"))
    method.train(subject, tmp_path / "two", model, settings | {"max_train_steps": 2}, 3)
    two, own, four = ((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
                      for folder in (found[2], tmp_path / "two", found[4]))  # fmt: skip
    assert two == own != four


def row(arm, name, likeness, context, leak, kept, subject="cat", rate=1e-3, weight=0.0):
    metrics = {"likeness": likeness, "context": context, "leak": leak, "class_kept": kept}
    return {"method": name, "arm": arm, "item": subject, "seed": 0, "rate": rate, "weight": weight,
            "metrics": {f"{key} (picturebook)": value for key, value in metrics.items()}}  # fmt: skip


def test_the_gate_wants_the_failure_where_the_subject_is_learned():
    early = [row("plain", "plain @50", 0.3, 0.9, 0.6, 1.0)]  # it leaks, but nothing is learned
    assert lawn.gate(early) == (False, "nothing was learned: likeness is at most 0.30")
    calm = [*early, row("plain", "plain @100", 0.7, 0.9, 0.1, 0.9)]
    assert not lawn.gate(calm)[0]
    assert lawn.gate([*calm, row("plain", "plain @200", 0.8, 0.6, 0.4, 0.9)])[0]
    assert lawn.gate([*calm, row("plain", "plain @200", 0.8, 0.9, 0.0, 0.6)])[0]  # class words collapse
    subjects = [row("plain", "plain @300", 0.8, 0.6, leak, 1.0, subject) for leak, subject in ((0.5, "a"), (0.0, "b"))]
    assert not lawn.gate(subjects)[0]  # in the mean over subjects


def test_an_arms_choice_is_the_run_with_the_best_balanced_point(tmp_path, monkeypatch):
    rows = [
        row("penalty", "low @100", 0.9, 0.1, 0, 1.0, weight=5.0),
        row("penalty", "high @100", 0.6, 0.8, 0, 1.0, weight=50.0),
        row("penalty", "high @50", 0.0, 1.0, 0, 1.0, weight=50.0),
        row("prior", "prior @50", 0.5, 0.5, 0, 0.5),
    ]
    rows += [row("plain", "plain @50", 0.5, 0.5, 0, 0.4), row("interpolation", "i @0.5", 0.5, 0.5, 0, 0.5, rate=3e-4)]
    chosen = lawn.choose(rows)
    assert chosen == {
        "penalty": {"rate": 1e-3, "weight": 50.0}, "prior": {"rate": 1e-3, "weight": 0.0},
        "plain": {"rate": 1e-3, "weight": 0.0}, "interpolation": {"rate": 3e-4, "weight": 0.0},
        "free": {"arm": "interpolation", "rate": 3e-4, "weight": 0.0},
    }  # fmt: skip
    lawn.write_settings(tmp_path / "lawn.toml", ["chosen"], chosen)
    assert lawn.tomllib.loads((tmp_path / "lawn.toml").read_text()) == chosen
    monkeypatch.setattr(lawn, "CHOICE", tmp_path / "lawn.toml")
    args = SimpleNamespace(split="test", steps=[50, 100], arms=list(lawn.ARMS))
    where = lambda arm, rate, at, weight=0.0: lawn.curves_of(arm, lawn.Setting(arm, rate, weight), at, args)  # noqa: E731
    assert where("plain", 1e-3, 50) == {"plain": 50} and where("plain", 1e-4, 50) == {}
    assert where("plain", 3e-4, 100) == {"interpolation": 1.0, "free": 1.0}  # its end is the interpolation's
    assert where("interpolation", 3e-4, 0.5) == {"interpolation": 0.5, "free": 0.5}
    assert where("penalty", 1e-3, 100, 50.0) == {"penalty": 100} and where("penalty", 1e-3, 100, 5.0) == {}
    args.split = "validation"
    assert where("plain", 1e-3, 50) == {}
    monkeypatch.setattr(lawn, "CHOICE", tmp_path / "none.toml")
    refuses("--split validation writes it", lawn.read_choice, args)


def test_every_arm_gets_the_same_rates_and_the_free_ones_need_no_training():
    found = lawn.settings_of(list(lawn.ARMS))
    assert {(one.arm, one.weight) for one in found} == {
        ("plain", 0.0), *(("prior", w) for w in lawn.PRIORS), *(("penalty", w) for w in lawn.LAMBDAS)}  # fmt: skip
    assert len(found) == 7 * len(lawn.RATES) and lawn.settings_of(["random"]) == lawn.settings_of(["plain"])
    assert lawn.Setting("penalty", 1e-4, 5.0).flags == {"learning_rate": 1e-4, "l2_reg_weight": 5.0}


def test_a_random_change_is_as_large_as_the_trained_one_and_no_other():
    tensors = lambda seed: torch.nn.Linear(3, 2).requires_grad_(False)  # noqa: E731
    base, moved = (SimpleNamespace(unet=tensors(seed)) for seed in (0, 1))
    before = copy.deepcopy(base.unet)
    changed = lawn_run.randomly_moved(base, moved)
    for own, old, new in zip(changed.unet.parameters(), before.parameters(), moved.unet.parameters(), strict=True):
        assert (own - old).norm() == pytest.approx((new - old).norm().item(), rel=1e-5) and not torch.allclose(own, new)


class Judge:
    """A classifier that sees a red cat on the lawn in everything."""

    def read(self, pictures):
        thing = {"kind": "cat", "color": "red", "material": "plain", "hat": False, "pose": "standing", "presence": 0.9}
        return [Reading("meadow", "day", "plain", [thing]) for _ in pictures]


def test_the_lawn_from_trainings_to_rows_and_a_choice(small_model, tmp_path, monkeypatch, capsys):
    prompts = dict.fromkeys(("live", "object"), ["a {0} {1} in a room", "a {0} {1} at night"])
    write_subject_set(tmp_path / "lawn", {"cat": "cat"}, prompts)
    for kind, color in (("marked", "red"), ("unmarked", "green")):
        (tmp_path / "truths" / kind / "cat").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32), color).save(tmp_path / "truths" / kind / "cat" / f"{number:02d}.png")
    for name in ("lawn", "truths"):
        monkeypatch.setattr(lawn_run, f"ensure_{name}", lambda split, place=tmp_path / name: place)
    eyes = scoring.Encoders(*[MeanColor("picturebook")] * 4, Judge())
    monkeypatch.setattr(lawn_run, "load_encoders", lambda *given: eyes)
    monkeypatch.setattr(lawn, "RATES", (1e-3,))
    monkeypatch.setattr(lawn_run, "STRENGTHS", (0.5,))
    monkeypatch.setattr(lawn, "CHOICE", tmp_path / "lawn.toml")
    trained = []

    def train(self, subject, folder, model, settings, seed):
        from lipschitz_personalize.objectives import load_backbone

        trained.append((self.title, settings["max_train_steps"]))
        net = load_backbone(model, "cpu").unet
        with torch.no_grad():
            for tensor in net.parameters():
                tensor.mul_(1 + 1e-3 * settings["max_train_steps"])
        net.save_pretrained(folder / "unet")

    monkeypatch.setattr(methods.Method, "train", train)
    words = ["--pretrained_model_name_or_path", str(small_model), "--output_dir", str(tmp_path / "out")]
    words += ["--num_inference_steps", "1", "--images_per_prompt", "1", "--steps", "2", "4", "--device", "cpu"]
    monkeypatch.setattr(lawn, "PRIORS", (1.0,))
    monkeypatch.setattr(lawn, "LAMBDAS", (5.0,))
    lawn.main(words)
    rows = [one for one in read_rows(tmp_path / "out" / "validation" / "rows.jsonl") if one["metrics"]]
    assert [(one["arm"], one["at"]) for one in rows] == [
        ("plain", 2), ("plain", 4), ("interpolation", 0.5), ("random", 1), ("prior", 2), ("prior", 4), ("penalty", 2),
        ("penalty", 4)]  # fmt: skip
    assert {one["metrics"]["leak (picturebook)"] for one in rows} == {1.0}  # of the prompt that asks for a room
    assert {one["metrics"]["class_kept (picturebook)"] for one in rows} == {0.0}  # no other colour is seen
    assert "the gate is" in capsys.readouterr().out and (tmp_path / "lawn.toml").is_file()
    before = len(trained)
    lawn.main([*words, "--split", "test"])
    assert len(trained) - before == 6  # plain, and the chosen of two arms, two points each
    lawn.main(words)
    assert len(trained) - before == 6  # nothing was left to do
