"""What a score means is guarded: frozen inputs give frozen scores, or its number in eval/protocols.toml was raised.

After raising a number:  python -m tests.eval.test_protocols   writes frozen_scores.json anew.
"""

import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eval import freshness

FROZEN = Path(__file__).with_name("frozen_scores.json")


def picture(phase: float, size: int = 64) -> torch.Tensor:
    """[1, 3, size, size] in [0, 1] by formula, so that no version of a random generator matters."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.stack([0.5 + 0.5 * torch.sin(9 * x * (c + 1) + 7 * y + phase + c) for c in range(3)])[None]


def scores(folder: Path) -> dict[str, float]:
    """Every measure that can be had from pictures and small encoders, by the name under which rows have it."""
    from common.encoders import load_encoders
    from common.metrics import clip_image_similarity, dino_similarity, pie_scores
    from eval.tracks.personalization.scoring import Truths, diversity, likeness
    from image_inpaint.reproduction.scoring import kernel_distance, step_across, thing_share
    from lipschitz_personalize.reproduction.drift import weight_drift
    from pixels.reproduction.measures import edit_scores
    from spdinv.reproduction.experiments.noise_gap import noise_gap
    from svdiff.reproduction.scores import seam
    from tests.small_data import write_pie_encoders

    eyes = load_encoders(str(write_pie_encoders(folder)), "cpu")
    source, edited, exemplar, truth = (picture(phase) for phase in (0.0, 0.4, 1.1, 0.5))
    mask = torch.zeros(64, 64)
    mask[16:48, 20:50] = 1
    fill = mask[None, None]
    found = {}
    for protocol in ("pie_official", "pie_corrected"):
        found |= pie_scores(source, edited, mask, "a cat", "a dog", eyes, protocol)
    ramp = ((torch.arange(64) / 64 - 0.3) * 4).clamp(0, 1).expand(1, 1, 64, 64)
    found |= edit_scores(source, [exemplar], edited, ramp, eyes, truth)
    found["noise_gap"] = noise_gap(source[None] * 2, edited[None] * 2)[0, 0].item()
    found["svdiff.seam"] = seam(edited)
    found["rim"] = 255 * (step_across(edited, fill) - step_across(source, fill))
    found["filled"] = thing_share(edited, truth, source, fill, fill)
    found["KID"] = kernel_distance(source[0].flatten(1), edited[0].flatten(1))
    found["DINO"] = dino_similarity(source, edited, eyes.dino).item()
    found["CLIP-I"] = clip_image_similarity(source, edited, eyes.clip).item()
    drawn = torch.cat([edited, exemplar])[None]
    found["likeness"] = likeness(drawn, Truths(truth, source), [picture(0.6)], eyes.dino)
    found["diversity"] = diversity(drawn, SimpleNamespace(lpips=eyes.lpips))
    found |= weight_drift({"conv.weight": edited}, {"conv.weight": source})
    return {name.partition(" (")[0]: value for name, value in found.items()}


def test_scores_are_what_they_were_or_their_number_was_raised(tmp_path):
    frozen, known = json.loads(FROZEN.read_text()), freshness.protocols()
    now = scores(tmp_path)
    assert now.keys() == frozen.keys()
    moved = {name: (before["score"], now[name]) for name, before in frozen.items()
             if before["protocol"] == known.get(name, 1)
             and not math.isclose(now[name], before["score"], rel_tol=1e-4, abs_tol=1e-6)}  # fmt: skip
    assert not moved, f"raise their numbers in eval/protocols.toml if they mean something else now: {moved}"
    late = {name for name, before in frozen.items() if before["protocol"] != known.get(name, 1)}
    assert not late, f"python -m tests.eval.test_protocols: {late}"


@pytest.mark.parametrize("name", freshness.protocols())
def test_a_raised_number_belongs_to_a_measure(name):
    assert freshness.protocols()[name] > 1
    shown = {score for one in freshness.experiments().values() for score in freshness.measures_of(one)}
    assert name in shown or name in json.loads(FROZEN.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        kept = {name: {"protocol": freshness.protocols().get(name, 1), "score": value}
                for name, value in scores(Path(place)).items()}  # fmt: skip
    FROZEN.write_text(json.dumps(kept, indent=1) + "\n")
