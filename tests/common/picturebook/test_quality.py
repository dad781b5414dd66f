"""The quality checks: each measure moves when what it measures does, and agrees with the project's metrics."""

from dataclasses import replace

import pytest
import torch

from common.encoders import load_encoders
from common.metrics import frechet_distance, lpips_distance, structure_distance
from common.picturebook import card, checks, quality
from common.picturebook.checks import encoders, realism
from common.picturebook.classifier import load_classifier
from common.picturebook.hashes import weights_hash
from common.picturebook.quality import Result, held_out_scenes, missed
from common.picturebook.scenes import Scene, Thing
from common.picturebook.shipping import MODELS, shipped_dino
from tests.common.picturebook.readings import reading_of


@pytest.mark.parametrize("change, lost", [
    ({}, set()), ({"color": "blue"}, {"pairs"}), ({"material": "spotted"}, {"material"}), ({"hat": True}, {"hat"}),
    ({"pose": "lying"}, {"pose"}), ({"facing": "left"}, {"facing"}),
])  # fmt: skip
def test_everything_means_every_attribute_of_every_thing_that_its_kind_has(change, lost):
    scene, house = Scene((Thing("cup", "red"), Thing("cat", "green"))), Scene((Thing("house", "red"),))
    assert missed(scene, reading_of(scene.with_thing(1, **change))) == lost
    for name, value in (("background", "room"), ("light", "night"), ("style", "sketch")):
        assert missed(scene, reading_of(replace(scene, **{name: value}))) == {name}
    assert not missed(house, reading_of(house.with_thing(0, facing="left", pose="lying")))


def test_the_card_shows_the_rows_that_were_measured_on_the_shipped_weights():
    page, found = (MODELS / "README.md").read_text(encoding="utf-8"), card.kept()
    assert page == card.rendered(page, found["rows"]) and found["weights"] == weights_hash()
    assert {row["check"] for row in found["rows"]} == set(checks.CHECKS)


def test_the_card_keeps_what_was_not_measured_again_until_the_weights_change(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    (tmp_path / "README.md").write_text(f"before\n{card.BEGIN}{card.END}\nafter\n")
    first, second = Result("first", 1, 7, 2, check="a"), Result("second", 3, 7, check="b", note="missed: hats")
    card.keep([second], "ab", tmp_path)
    card.keep([first], "ab", tmp_path)
    card.keep([replace(second, value=4)], "ab", tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert page.index("| first | 1.00 | >= 2 |  | 7 | not reached |") < page.index("| second (missed: hats) | 4.00 |")
    weights.write_bytes(b"other")
    card.keep([second], "ab", tmp_path)
    assert [row["what"] for row in card.kept(tmp_path)["rows"]] == ["second"]


@torch.no_grad()
def test_distances_are_those_of_the_metrics():
    eyes, scenes = load_encoders("picturebook"), held_out_scenes(4, 1)
    a, b = quality.drawn(scenes), quality.drawn([scene.with_thing(0, color="pink") for scene in scenes])
    seen = encoders.perceptual_distance(a, b, load_classifier())
    torch.testing.assert_close(seen, lpips_distance(a, b, eyes.lpips), rtol=1e-4, atol=1e-8)
    structure = encoders.structure_distance(a, b, shipped_dino())
    torch.testing.assert_close(structure, structure_distance(a, b, eyes.dino), rtol=1e-3, atol=1e-8)
    a, b = torch.randn(2, 80, 6, generator=torch.manual_seed(0))
    assert realism.frechet_distance(a, 2 * b + 1) == pytest.approx(frechet_distance(a, 2 * b + 1), rel=1e-6)
    assert abs(realism.frechet_distance(a, a)) < 1e-9
