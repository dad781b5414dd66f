import pytest

from spdinv import eval as spdinv_eval


@pytest.fixture
def run(tiny_folder, benchmark, encoders, capsys):
    """run(output folder, *flags): spdinv.eval on the small model and benchmark, two steps; what it printed."""

    def run(output, *flags):
        spdinv_eval.main(["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark),
                          "--metric_encoders", str(encoders), "--output_dir", str(output), "--device", "cpu",
                          "--num_inference_steps", "2", *flags])  # fmt: skip
        return capsys.readouterr()

    return run
