"""SVDiff's rows in the text-driven editing track, on a small random model and one training step."""

from common.runs import read_rows
from eval import compare
from eval.tracks import svdiff_editing


def test_rows_join_the_track(tiny_folder, benchmark, encoders, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    flags = ["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark), "--metric_encoders",
             str(encoders), "--output_dir", str(tmp_path / "out"), "--device", "cpu", "--num_inference_steps", "1",
             "--items", "1"]  # fmt: skip
    refused("", svdiff_editing.main, flags)  # nothing to join yet
    compare.main([*flags, "--tracks", "text_editing"])
    svdiff_editing.main([*flags, "--max_train_steps", "1"])
    rows = [row for row in read_rows(tmp_path / "out" / "text_editing" / "rows.jsonl") if row["paper"] == "svdiff"]
    assert {row["method"] for row in rows} == {"svdiff", "svdiff+inversion"}
    assert all("psnr_reconstruction" in row["metrics"] for row in rows)
    svdiff_editing.main([*flags, "--max_train_steps", "1"])  # nothing is left to do
    refused("another max_train_steps of svdiff+inversion (1)", svdiff_editing.main, [*flags, "--max_train_steps", "2"])
    compare.main([*flags, "--tracks", "text_editing"])
    html = (tmp_path / "out" / "index.html").read_text()
    assert "SVDiff, tuned on the picture" in html
    assert "--max_train_steps 1" in html.split("python -m eval.tracks.svdiff_editing")[1]
    assert len(read_rows(tmp_path / "out" / "text_editing" / "rows.jsonl")) == 4
