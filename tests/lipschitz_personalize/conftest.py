"""A subject of three noise pictures and small random models of three backbones, in folders."""

import pytest

from tests.small_data import write_noise
from tests.tiny import tiny_sd, tiny_sd3, tiny_sdxl


@pytest.fixture(scope="session")
def subject(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("subject"), [(32, 32), (40, 32), (32, 50)])[0].parent


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """backbone -> folder; pictures of 32 pixels, latents of 8."""
    root = tmp_path_factory.mktemp("models")
    tiny_sd(root / "sd", latent=8)
    tiny_sd(root / "sd_v", latent=8, prediction_type="v_prediction")
    tiny_sdxl(root / "sdxl", latent=8)
    tiny_sd3(root / "sd3")
    return {path.name: path for path in root.iterdir()}
