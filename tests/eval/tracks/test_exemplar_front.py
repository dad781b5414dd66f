"""The front of likeness and seams, and its figure."""

from PIL import Image

from eval.tracks.exemplar_front import draw_front, front


def test_the_front_is_whom_nobody_beats_in_both():
    points = {
        "paste": (20.0, 95.0),
        "good": (-5.0, 86.0),
        "worse": (-4.0, 80.0),
        "smooth": (-9.0, 70.0),
        "equal": (-5.0, 86.0),
    }
    assert front(points) == ["smooth", "good", "equal", "paste"]


def test_the_figure_names_the_front(tmp_path):
    rows = [
        {"method": name, "item": str(item), "seed": 0, "metrics": {"seam": seam + item, "CLIP-I/same_box (x)": like}}
        for name, seam, like in (("paste", 20.0, 0.9), ("pixels", -5.0, 0.8), ("blurred", -4.0, 0.5))
        for item in range(4)
    ]  # fmt: skip
    names = {"paste": "Paste", "pixels": "PIXELS", "blurred": "Blurred", "absent": "Absent"}
    assert draw_front(tmp_path / "front.png", rows, names) == ["pixels", "paste"]
    assert Image.open(tmp_path / "front.png").size[0] > 500
    assert draw_front(tmp_path / "none.png", rows[:4], names) == [] and not (tmp_path / "none.png").exists()
