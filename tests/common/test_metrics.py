"""Scores against torchmetrics and clean-fid, and against naive float64 readings of their definitions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanfid import fid as cleanfid
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from transformers import CLIPVisionModelWithProjection

from common import encoders, metrics
from tests.refusing import refuses
from tests.tiny_encoders import naive_structure_distance, pictures, random_lpips, write_encoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def squeeze():
    return random_lpips("squeeze")


@pytest.fixture(scope="module")
def pie(folder, squeeze):
    clip, dino = encoders.load_clip(folder / "clip", "cpu"), encoders.load_dino(folder / "dino", "cpu")
    return encoders.Encoders(clip, dino, encoders.wrap_lpips(squeeze, "squeeze"))


def test_pixel_metrics_equal_torchmetrics():
    a, b = pictures(seed=1), pictures(seed=2)
    expected = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(metrics.psnr(a, b), expected, rtol=1e-5, atol=0)
    assert torch.equal(metrics.psnr(a, a), torch.full((2,), math.inf))
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(metrics.ssim(a, b), full[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2))
    left = torch.zeros(1, 1, 40, 40)  # a weight restricts the mean to a region
    left[..., :12] = 1
    for metric in (metrics.mse, metrics.psnr):
        torch.testing.assert_close(metric(a, b, left), metric(a[..., :12], b[..., :12]))
    assert metrics.mse(a, b, 0 * left).isnan().all()


def test_ssim_equals_the_formula_window_by_window():
    a, b = pictures(1, 13, seed=1).double(), pictures(1, 13, seed=2).double()
    weights = np.exp(-(np.subtract.outer(np.arange(11), [5]) ** 2 + np.subtract.outer([5], np.arange(11)) ** 2) / 4.5)
    weights /= weights.sum()
    windows = []
    for c in range(3):
        for y in range(3):
            for x in range(3):
                p, q = (t[0, c, y : y + 11, x : x + 11].numpy() for t in (a, b))
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                windows.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert metrics.ssim(a, b).item() == pytest.approx(np.mean(windows), rel=1e-9)
    centre = torch.zeros(1, 1, 13, 13)
    centre[..., 6, 6] = 1  # only the window around this pixel
    assert metrics.ssim(a, b, centre).item() == pytest.approx(np.mean(windows[4::9]), rel=1e-9)


def features(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 0.3 * seed


def test_frechet_distance_equals_clean_fid_and_with_fewer_pictures_than_dimensions_a_naive_one():
    a, b = features(300, 24, 1), features(200, 24, 2)
    score = metrics.frechet_distance(a, b)
    assert score == pytest.approx(cleanfid.fid_from_feats(a.numpy(), b.numpy()), rel=1e-5)
    a, b = features(12, 40, 1), features(15, 40, 2)
    with pytest.warns(UserWarning, match="n = 12 pictures in d = 40"):
        score = metrics.frechet_distance(a, b)
    # tr((S_a S_b)^(1/2)) by the eigenvalues of S_a^(1/2) S_b S_a^(1/2)
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
    assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Frechet")
@pytest.mark.parametrize("n", [10, 100])
def test_frechet_distance_of_a_shifted_copy_is_the_squared_shift(n):
    a = features(n, 30, 1)
    assert 0 <= metrics.frechet_distance(a, a) < 1e-9
    assert metrics.frechet_distance(a, a.flip(0) + 0.5) == pytest.approx(30 * 0.25, rel=1e-9)
    doubled = ((3 * a.mean(0)) ** 2).sum() + a.var(0).sum()  # both Gaussians on the same axes: (2s - s)^2
    assert metrics.frechet_distance(a, -2 * a) == pytest.approx(doubled.item(), rel=1e-9)


def test_frechet_distance_refuses_what_it_cannot_compare():
    a = features(10, 4, 1)
    for one, other, said in ((a[:1], a, "at least two"), (a, a * math.nan, "finite")):
        refuses(said, metrics.frechet_distance, one, other)


def box(size: int = 40) -> torch.Tensor:
    mask = torch.zeros(size, size)
    mask[10:30, 5:25] = 1
    return mask


def test_pie_official_follows_the_published_scorer(pie, folder, squeeze):
    """The scorer's steps as its users would run them: arrays in HWC, masks repeated to three channels, 8-bit CLIP."""
    source, edited, mask = pictures(1, seed=1), pictures(1, seed=2), box()
    scores = metrics.pie_scores(source, edited, mask, "a red cat", "a blue dog", pie)

    arrays = [(x[0] * 255).round().byte().permute(1, 2, 0).numpy() for x in (source, edited)]
    masks = mask.numpy().astype(np.float64)[:, :, None].repeat(3, axis=2)
    kept = [np.float32(array) / 255 * np.float32(1 - masks) for array in arrays]
    error = np.mean((kept[0].astype(np.float64) - kept[1]) ** 2)  # over all 3 H W entries
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in kept)
    _, similarity = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    part = Image.fromarray(np.uint8(arrays[1] * masks))
    pixels = pie.clip.processor([part], return_tensors="pt")["pixel_values"]
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "clip", dtype=torch.float32)
    cosine = F.cosine_similarity(vision(pixels).image_embeds, pie.clip.embed_text(["a blue dog"])).item()
    expected = {
        "structure/pie_official (dino)": naive_structure_distance(folder, source, edited, 255.0, False),
        "psnr/pie_official": 10 * math.log10(1 / error),
        "lpips/pie_official": squeeze(a * 2 - 1, b * 2 - 1).item(),
        "mse/pie_official": error,
        "ssim/pie_official": similarity[..., 5:-5, 5:-5].mean().item(),
        "clip_edited/pie_official (clip)": 100 * cosine,
    }
    for key, value in expected.items():
        assert scores[key] == pytest.approx(value, rel=1e-4), key
    for name, picture, prompt in [("source", source, "a red cat"), ("whole", edited, "a blue dog")]:
        cosine = metrics.clip_text_similarity(picture, [prompt], pie.clip).item()
        assert scores[f"clip_{name}/pie_official (clip)"] == pytest.approx(100 * cosine) and cosine > 0.05
    assert [metrics.parse_key(key)["name"] for key in scores] == list(metrics.PIE_SCORES)


def test_pie_corrected_sees_the_unedited_region_alone(pie):
    source, mask = pictures(1, seed=1), box()
    edited = (source * 0.9 + 0.02).clamp(0, 1)
    other = edited * (1 - mask) + pictures(1, seed=5) * mask
    unedited = ("psnr", "lpips", "mse", "ssim")
    args = ("cat", "dog", pie, "pie_corrected")
    one, two = metrics.pie_scores(source, edited, mask, *args), metrics.pie_scores(source, other, mask, *args)
    for name in unedited:
        assert one[f"{name}/pie_corrected"] == pytest.approx(two[f"{name}/pie_corrected"], rel=1e-5), name
    assert one["clip_whole/pie_corrected (clip)"] != two["clip_whole/pie_corrected (clip)"]

    grey, brighter, narrow = torch.full_like(source, 0.5), torch.full_like(source, 0.6), torch.zeros_like(mask)
    narrow[:, :4] = 1
    for protocol, growth in [("pie_official", 1200 / 1440), ("pie_corrected", 1.0)]:
        found = (metrics.pie_scores(grey, brighter, m, "", "", pie, protocol) for m in (box(), narrow))
        wide, small = (scores[f"mse/{protocol}"] for scores in found)
        assert wide / small == pytest.approx(growth, rel=1e-5), "only the official mean depends on the mask's area"
    assert wide == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("protocol", metrics.PIE_PROTOCOLS)
def test_pie_scores_are_nan_where_the_region_is_empty(pie, protocol):
    source, edited, nans = pictures(1, seed=1), pictures(1, seed=2), []
    for mask in (torch.ones(40, 40), torch.zeros(1, 1, 40, 40), box()):
        scores = metrics.pie_scores(source, edited, mask, "cat", "dog", pie, protocol)
        nans.append({metrics.parse_key(key)["name"] for key, value in scores.items() if math.isnan(value)})
    assert nans == [{"psnr", "lpips", "mse", "ssim"}, {"clip_edited"}, set()]


def test_pie_scores_refuse_bad_input_and_those_of_clip_stop_at_zero(pie, monkeypatch):
    a = pictures(1)
    for mask, protocol, said in ((box(), "pie", "pie_official, pie_corrected"),
                                 (box(64), "pie_official", "40x40, 40x40, 64x64")):  # fmt: skip
        refuses(said, metrics.pie_scores, a, a, mask, "", "", pie, protocol)
    monkeypatch.setattr(metrics, "clip_text_similarity", lambda *args: torch.tensor([[-0.3]]))
    scores = metrics.pie_scores(a, a, box(), "cat", "dog", pie)
    assert [value for key, value in scores.items() if key.startswith("clip")] == [0, 0, 0]


def test_a_folder_of_the_prescribed_encoders_needs_no_label_in_the_key(request):
    for key in ("psnr/pie_official", "lpips/pie_official (picturebook)", "CLIP-T (picturebook)", "edit_success"):
        assert metrics.score_key(**metrics.parse_key(key)) == key
    prescribed = {"lpips/pie_official": "squeeze", "clip_whole/pie_corrected": "clip-vit-large-patch14"}
    for key, encoder in (prescribed | {"psnr/pie_official": ""}).items():
        assert metrics.parse_key(key)["encoder"] == encoder
    found, a = encoders.load_encoders(request.getfixturevalue("encoders"), "cpu"), pictures(2)
    scores = metrics.pie_scores(a[:1], a[1:], box(), "", "", found)
    assert list(scores) == [f"{name}/pie_official" for name in metrics.PIE_SCORES]
    assert all(math.isfinite(value) for value in scores.values())
