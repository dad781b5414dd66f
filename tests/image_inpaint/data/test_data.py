"""LSUN's database and folders, boxes, the picturebook's items, scores against naive loops."""

import io
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.runs import InputError
from image_inpaint import eval as script
from image_inpaint.data import benchmark, boxes, examples
from image_inpaint.masks import box_of
from image_inpaint.reproduction import scoring
from tests import small_data
from tests.refusing import refuses


def noise(seed: int, size=(30, 20)) -> Image.Image:
    return small_data.noise(size, seed)


def test_an_lsun_database_is_read(tmp_path):
    """In LSUN's layout: bedroom_train_lmdb/ with webp files under keys of hexadecimal digits."""
    import lmdb

    place = tmp_path / "lsun" / "bedroom_train_lmdb"
    place.mkdir(parents=True)
    with lmdb.open(str(place), map_size=1 << 24) as store, store.begin(write=True) as writer:
        for number in range(5):
            file = io.BytesIO()
            noise(number).save(file, "WEBP", lossless=True)
            writer.put(f"{number:040x}".encode(), file.getvalue())
        writer.put(b"f" * 40, b"not a picture")
        file, turned = io.BytesIO(), Image.Exif()
        turned[0x0112] = 6  # a quarter to the right
        noise(9).convert("RGBA").save(file, "WEBP", lossless=True, exif=turned)
        writer.put(b"e" * 40, file.getvalue())
    store = examples.open_pictures(place.parent)
    assert len(store.names) == 7 and store.names[3] == f"{3:040x}"
    assert np.array_equal(np.asarray(store.read(store.names[3])), np.asarray(noise(3)))
    assert np.array_equal(np.asarray(store.read("e" * 40)), np.rot90(np.asarray(noise(9)), -1))  # as in a folder
    refuses("f" * 40 + " cannot be read as a picture", store.read, "f" * 40)


def test_folders_may_be_nested_and_samples_repeat(tmp_path):
    for number in range(6):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        noise(number).save(tmp_path / str(number % 2) / f"{number}.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    store = examples.open_pictures(tmp_path)
    assert store.size() > 0
    assert store.names == ["0/0.png", "0/2.png", "0/4.png", "1/1.png", "1/3.png", "1/5.png"]
    first = examples.random_sample(store.names, 4, 0)
    assert first == examples.random_sample(store.names, 4, 0) != examples.random_sample(store.names, 4, 1)
    assert len(set(first)) == 4 and len(examples.random_sample(store.names, 99, 0)) == 6
    (tmp_path / "empty").mkdir()
    refuses("holds no picture", examples.open_pictures, tmp_path / "empty")


def test_a_detectors_best_box_of_a_wanted_label(tmp_path):
    """A small random DETR in the published file format: whatever it answers comes back as boxes inside the picture."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        backbone_config=backbone, d_model=16, num_queries=6, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        id2label={0: "N/A", 1: "chair", 2: "bed"}, label2id={"N/A": 0, "chair": 1, "bed": 2},
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    torch.nn.init.zeros_(model.class_labels_classifier.weight)
    with torch.no_grad():
        model.class_labels_classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))  # a chair everywhere
    model.save_pretrained(tmp_path)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(tmp_path)

    def asked(label, threshold=0.7):
        return Namespace(detector=str(tmp_path), device="cpu", labels=[label], detector_threshold=threshold)

    found = boxes.Detector(asked("chair")).find(noise(0, (60, 40)))
    assert found and all(label == "chair" and score > 0.9 for score, label, _ in found)
    for _, _, (left, top, right, bottom) in found:
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
    assert boxes.Detector(asked("bed")).find(noise(0)) == []
    assert boxes.Detector(asked("chair", 1.0)).find(noise(0)) == []  # none is as sure as that
    refuses("knows no 'sofa'", boxes.Detector, asked("sofa"))
    refuses("sees no bed", boxes.find_boxes, "detr", [tmp_path / "0.png"], [noise(0)], detection=asked("bed"))


def test_boxes_come_from_the_file_beside_then_from_scenes(tmp_path):
    path = tmp_path / "a.png"
    noise(0).save(path)
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [1, 2, 10, 12]}))
    assert boxes.find_boxes("auto", [path], [noise(0)]) == [(1, 2, 10, 12)]
    assert boxes.find_boxes("whole", [path], [noise(0)]) == [(0, 0, 30, 20)]
    assert boxes.find_boxes("file", [path], [noise(0)]) == [(1, 2, 10, 12)]


def domain(tmp_path, **given):
    return Namespace(**{"train_data_dir": str(tmp_path / "lsun"), "num_pictures": 9, "seed": 0, "boxes": "auto",
                        "boxes_file": None, "output_dir": str(tmp_path / "out"), "detector": "d", "labels": ["bed"],
                        "detector_threshold": 0.7, "device": "cpu", **given})  # fmt: skip


def write_domain(tmp_path, pictures: int) -> None:
    small_data.write_noise(tmp_path / "lsun", [(30, 20)] * pictures)


def test_processes_share_the_detectors_work_out_and_a_killed_one_goes_on(tmp_path, monkeypatch):
    write_domain(tmp_path, 5)
    (tmp_path / "lsun" / "5.png").write_bytes(b"damaged")
    seen = []

    def find(self, picture):
        seen.append(picture)
        return [(0.9, "bed", (2, 3, 20, 15)), (0.8, "bed", (0, 0, 2, 2))]  # the second is under 2 % of the picture

    monkeypatch.setattr(examples, "Detector", lambda args: type("Eye", (), {"find": find})())
    other = lambda: examples.domain_examples(domain(tmp_path), 1, 2)  # noqa: E731
    found = examples.domain_examples(domain(tmp_path), 0, 2, wait=other)  # which does its share meanwhile
    assert found.count == len(seen) == 5 and found.get(3, torch.Generator())[1] == (2, 3, 20, 15)
    files = sorted((tmp_path / "out").glob("boxes_*.json"))
    assert [len(json.loads(file.read_text())) for file in files] == [3, 3]
    kept = json.loads(files[0].read_text())
    del kept[max(name for name in kept if kept[name])]
    files[0].write_text(json.dumps(kept))
    for change, pictures in (({}, 6), ({"labels": ["chair"]}, 11), ({"detector_threshold": 0.5}, 16)):
        assert examples.domain_examples(domain(tmp_path, **change)).count == 5 and len(seen) == pictures
    for content, message in (("{", "not a JSON file"), ("[1]", "is damaged")):
        files[0].write_text(content)
        refuses(f"{files[0].name}.*{message}", examples.domain_examples, domain(tmp_path))


@pytest.mark.parametrize("way", ["whole", "file"])
def test_a_damaged_picture_is_named_and_the_next_one_taken(tmp_path, capsys, way):
    write_domain(tmp_path, 3)
    (tmp_path / "lsun" / "1.png").write_bytes(b"damaged")
    (tmp_path / "boxes").write_text(json.dumps({f"{number}.png": [7, 5, 23, 15] for number in range(3)}))
    file = str(tmp_path / "boxes") if way == "file" else None
    found = examples.domain_examples(domain(tmp_path, boxes=way, boxes_file=file))
    assert capsys.readouterr().out == ""  # no picture is opened before it is asked for
    shown = [found.get(index, torch.Generator()) for index in range(found.count)]
    assert found.count == 3 and {box for _, box in shown} == {(7, 5, 23, 15)}
    assert "1.png" in capsys.readouterr().out
    index = examples.random_sample([f"{number}.png" for number in range(3)], 9, 0).index("1.png")
    assert torch.equal(shown[index][0], shown[(index + 1) % 3][0])
    for number in (0, 2):
        (tmp_path / "lsun" / f"{number}.png").write_bytes(b"damaged")
    refuses("none of the 3 pictures", found.get, 0, torch.Generator())


@pytest.mark.parametrize("content, message", [
    ("no json", "not a JSON file"), ("[1]", "is damaged"), ('{"0.png": 5}', "left, top"),
    ('{"0.png": [900, 0, 950, 9]}', "nothing of it"), ('{"1.png": [1, 2, 8, 9]}', "has a box"),
])  # fmt: skip
def test_a_file_of_boxes_of_a_domain_is_checked(tmp_path, content, message):
    write_domain(tmp_path, 1)
    (tmp_path / "boxes").write_text(content)
    with pytest.raises(InputError, match=message):
        examples.domain_examples(domain(tmp_path, boxes_file=str(tmp_path / "boxes"))).get(0, torch.Generator())
    for good in ([1, 2, 8, 9], [[1.2, 2, 8, 9]]):
        (tmp_path / "boxes").write_text(json.dumps({"0.png": good}))
        found = examples.domain_examples(domain(tmp_path, boxes_file=str(tmp_path / "boxes")))
        assert found.get(0, torch.Generator())[1] == (1, 2, 8, 9)


def test_items_are_scenes_without_and_with_the_subject():
    subjects = benchmark.picturebook_subjects("validation", 2)
    items = benchmark.picturebook_items(subjects, 8, "validation")
    assert len(items) == 16 and len({item.id for item in items}) == 16
    assert {item.condition for item in items} > {"as photographed", "light"}
    for item in items:
        source, truth = (np.asarray(picture, int) for picture in (item.source, item.truth))
        changed = (np.abs(source - truth).sum(2) > 30) & (item.region.numpy() > 0)
        assert changed.sum() > 0.3 * float(item.region.sum())  # the subject is not in the source
        left, top, right, bottom = box_of(item.region)
        hole = item.fill[top:bottom, left:right]
        assert hole.mean() > 0.9 and float(item.fill.sum()) > (right - left) * (bottom - top)
        subject = next(one for one in subjects if one.name == item.subject)
        photographed = item.reference in subject.crops  # other facings and poses are shown by the reference alone
        assert photographed == (item.condition in ("as photographed", "light"))
    again = benchmark.picturebook_items(subjects, 8, "validation")
    assert all(a.source == b.source and torch.equal(a.fill, b.fill) for a, b in zip(items, again, strict=True))


@pytest.mark.parametrize("items, expected", [(12, (2, 6)), (48, (8, 6)), (72, (12, 6)), (240, (12, 20)), (1, (1, 1))])
def test_how_many_subjects_and_scenes_so_many_items_are(items, expected):
    assert benchmark.choose(12, 20, items) == expected


def test_few_scenes_have_all_conditions_and_more_items_only_add():
    from common.picturebook.subjects import condition_of

    for count, wanted in ((4, 1), (8, 2), (12, 3), (16, 4)):
        conditions = [condition_of(number, "cat") for number in benchmark.scene_numbers(count)]
        assert all(conditions.count(condition) == wanted for condition in benchmark.CONDITIONS)
    for start in (0, 8):  # each condition once alone, once beside another thing
        eight = benchmark.scene_numbers(16)[start : start + 8]
        assert len({(condition_of(number, "cat"), number % 2) for number in eight}) == 8
    assert benchmark.scene_numbers(6) == [0, 3, 4, 7, 1, 2]
    assert sorted(benchmark.scene_numbers(20)) == list(range(20)) and len(benchmark.scene_numbers(30)) == 30
    before: set = set()
    for items in range(1, 241):
        subjects, scenes = benchmark.choose(12, 20, items)
        now = {(subject, number) for subject in range(subjects) for number in benchmark.scene_numbers(scenes)}
        assert before <= now and len(now) >= items
        before = now


def test_scores_of_the_hole_against_loops():
    generator = torch.Generator().manual_seed(0)
    picture, truth, empty = torch.rand(3, 1, 3, 6, 7, generator=generator)
    fill, thing = torch.zeros(2, 1, 1, 6, 7)
    fill[..., 2:5, 1:6], thing[..., 3:5, 2:4] = 1, 1
    inside, own = ([(y, x) for y in range(6) for x in range(7) if mask[0, 0, y, x]] for mask in (fill, thing))

    def apart(image, y, x, v, u):
        return float((picture[0, :, y, x] - image[0, :, v, u]).square().sum())

    nearer = [min(apart(truth, *at, *to) for to in own)
              < min(apart(empty, *at, v, u) for v in range(6) for u in range(7)) for at in inside]  # fmt: skip
    assert scoring.thing_share(picture, truth, empty, thing, fill) == pytest.approx(np.mean(nearer))
    steps = [(picture[0, :, y, x] - picture[0, :, v, u]).abs().mean().item()
             for y in range(6) for x in range(7) for v, u in ((y + 1, x), (y, x + 1))
             if v < 6 and u < 7 and fill[0, 0, y, x] != fill[0, 0, v, u]]  # fmt: skip
    assert scoring.step_across(picture, fill) == pytest.approx(np.mean(steps), rel=1e-5)


def test_a_background_painted_anew_is_no_thing_and_a_larger_thing_is():
    flat = lambda *colour: torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 16, 16).clone()  # noqa: E731
    empty, fill, thing = flat(0.2, 0.7, 0.3), torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    fill[..., 2:14, 2:14], thing[..., 5:11, 5:11] = 1, 1
    red = flat(0.9, 0.1, 0.1)
    truth = torch.where(thing > 0, red, empty)
    shares = [scoring.thing_share(picture, truth, empty, thing, fill)
              for picture in (empty, torch.where(fill > 0, flat(0.3, 0.6, 0.3), empty), truth,
                              torch.where(fill > 0, red, empty))]  # fmt: skip
    assert shares == [0, 0, pytest.approx(36 / 144), 1]


def test_kernel_distance_against_a_loop_and_of_the_same_set():
    a, b = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(5) for j in range(5) if i != j]) for s in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert scoring.kernel_distance(a, b) == pytest.approx(within[0] + within[1] - 2 * across, rel=1e-9)


def test_the_true_picture_wins_every_score_and_neither_the_empty_scene_nor_the_twin_does():
    eyes = scoring.load_eyes("picturebook", "cpu")
    subjects = benchmark.picturebook_subjects("validation", 3)
    items = benchmark.picturebook_items(subjects, 4, "validation")
    found: dict[str, list] = {"truth": [], "twin": [], "source": []}
    for subject in subjects:
        own = [item for item in items if item.subject == subject.name]
        scale = scoring.anchors(subject, items, eyes)
        for name, rows in found.items():
            rows += [scoring.item_scores(item, subject, getattr(item, name), eyes, scale) for item in own]
    for truth, empty, item in zip(found["truth"], found["source"], items, strict=True):
        assert truth["filled_excess"] == 0 > empty["filled_excess"]
        assert truth["psnr_thing"] == empty["psnr_kept"] == float("inf")
        assert ("DINO/unseen (picturebook)" in truth) == (item.condition != "as photographed")

    def mean(name, key):
        return np.mean([one[key] for one in found[name] if key in one])

    for name, gap in (("DINO/region", 0.2), ("CLIP-I/region", 0.05), ("thing_seen", 0.5)):
        key = f"{name} (picturebook)"
        assert mean("truth", key) > mean("source", key) + gap
    identity = "likeness (picturebook)"
    assert mean("truth", identity) == pytest.approx(1) and mean("twin", identity) == pytest.approx(0, abs=1e-6)
    assert mean("source", identity) < 0  # nothing there is further from the subject than its twin
    key = "lpips_thing (picturebook)"
    assert mean("truth", key) == 0 < mean("twin", key) < mean("source", key)
    sets = scoring.set_scores([item.truth for item in items], [item.source for item in items[1:]], eyes)
    fid, kid = sets["FID (picturebook)"], sets["KID (picturebook)"]
    assert (fid["n"], fid["n_real"]) == (kid["n"], kid["n_real"]) == (11, 12) and kid["mean"] > -1


def test_sets_are_compared_with_each_real_picture_once(tmp_path, monkeypatch):
    rooms, fill = [noise(0, (64, 64)), noise(1, (64, 64))], torch.ones(64, 64)
    items = [benchmark.Item(f"{subject}/{k}", subject, "as photographed", room, fill, room)
             for subject in ("chair", "sofa", "bed") for k, room in enumerate(rooms)]  # fmt: skip
    for item in items:
        path = script.picture_path(tmp_path, item.id, "untuned")
        path.parent.mkdir(parents=True)
        item.source.save(path)
    shown = []
    monkeypatch.setattr(scoring, "load_eyes", lambda *any: None)
    monkeypatch.setattr(scoring, "set_scores", lambda real, made, eyes: shown.append((real, made)) or {})
    args = Namespace(metric_encoders="picturebook", device="cpu", output_dir=tmp_path, methods=["untuned"])
    script.sets_of(args, items)
    ((real, made),) = shown
    assert real == rooms and len(made) == 6


@pytest.mark.parametrize("content", [[1], *({"a/0.png": scene} for scene in (
    None, 3, {}, {"things": []}, {"things": [{"kind": "cat"}]}, {"things": [{"kind": "x", "color": "y"}]}))],
)  # fmt: skip
def test_scenes_of_a_stranger_are_checked(tmp_path, content):
    (tmp_path / "scenes.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="scenes.json" if content == [1] else "no scene of the picturebook"):
        boxes.from_scenes(tmp_path / "scenes.json", ["a/0.png"])
