"""Scores against the packages that others use, and against naive float64 readings; all networks are random."""

import json
import math
import sys
import types
import warnings

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from cleanfid import fid as cleanfid
from PIL import Image
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.multimodal import clip_score
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from common import encoders, metrics
from common.runs import InputError
from tests.tiny import write_tokenizer


def pictures(count: int = 2, size: int = 40, seed: int = 0) -> torch.Tensor:
    """8-bit pictures with some structure: blurred noise."""
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise[..., ::4, ::4], size=(size, size), mode="bicubic").clamp(0, 1) * 255).round() / 255


def random_lpips(net: str) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny CLIP and DINO folders with the files and key names of the published ones, weights in half precision."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(root / "tokenizer", max_length=16))
    layers = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id)
    layers["projection_dim"] = 8
    words["bos_token_id"] = tokenizer.bos_token_id
    looks = dict(image_size=32, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=layers | words, vision_config=layers | looks, projection_dim=8))
    clip.text_projection.weight.data.neg_()  # with this seed, cosines are then well above 0
    dino = ViTModel(ViTConfig(**layers, **looks, initializer_range=0.3), add_pooling_layer=False)
    for name, model in {"clip": clip, "dino": dino}.items():
        model.half().save_pretrained(root / name)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(root / "clip")
    write_tokenizer(root / "clip", max_length=16)
    # Files of OpenAI's time also carry this buffer.
    weights = load_file(root / "clip" / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, root / "clip" / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def clip(folder):
    return encoders.load_clip(folder / "clip", "cpu")


@pytest.fixture(scope="module")
def dino(folder):
    return encoders.load_dino(folder / "dino", "cpu")


@pytest.fixture(scope="module")
def squeeze():
    return random_lpips("squeeze")


@pytest.fixture(scope="module")
def pie(clip, dino, squeeze):
    return encoders.Encoders(clip, dino, encoders.wrap_lpips(squeeze, "squeeze"))


# ---------------------------------------------------------------------------------------------------------- pixels


def test_pixel_metrics_equal_torchmetrics():
    a, b = pictures(seed=1), pictures(seed=2)
    each = {"data_range": 1.0, "reduction": "none", "dim": (1, 2, 3)}
    torch.testing.assert_close(metrics.psnr(a, b), peak_signal_noise_ratio(a, b, **each), rtol=1e-5, atol=0)
    assert torch.equal(metrics.psnr(a, a), torch.full((2,), math.inf))
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    inside = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(metrics.ssim(a, b), inside, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2))


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


def test_weight_restricts_the_mean_to_a_region():
    a, b = pictures(seed=1), pictures(seed=2)
    left = torch.zeros(1, 1, 40, 40)
    left[..., :12] = 1
    torch.testing.assert_close(metrics.mse(a, b, left), metrics.mse(a[..., :12], b[..., :12]))
    torch.testing.assert_close(metrics.psnr(a, b, left), metrics.psnr(a[..., :12], b[..., :12]))
    assert metrics.mse(a, b, 0 * left).isnan().all()


# ------------------------------------------------------------------------------------------------------------ LPIPS


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_lpips_equals_the_package(net, tmp_path):
    constructor = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}[net]
    with torch.device("meta"):  # the classifier is never run: give numbers to the convolutions alone
        trunk = getattr(torchvision.models, constructor)(weights=None).features
    trunk = trunk.to_empty(device="cpu")
    for i, parameter in enumerate(trunk.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        parameter.data = noise * (2 / max(parameter[0].numel(), 1)) ** 0.5
    path = tmp_path / encoders.TRUNK_FILES[net]
    torch.save({f"features.{key}": value for key, value in trunk.state_dict().items()}, path)
    torch.manual_seed(3)
    ours = encoders.load_lpips(net, "cpu", trunk_file=path)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)), "loading an encoder must not move the random stream of a run"

    # The package's own network, its trunk overwritten layer by layer with what the file holds.
    network = random_lpips(net)
    for piece in network.net.children():
        for index, layer in piece.named_children():
            layer.load_state_dict(trunk[int(index)].state_dict())
    a, b = pictures(size=64, seed=1), pictures(size=64, seed=2)
    expected = network(a * 2 - 1, b * 2 - 1).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(metrics.lpips_distance(a, b, ours), expected, rtol=1e-5, atol=1e-7)
    network.spatial = True
    weight = (torch.arange(64) < 20).float().expand(1, 1, 64, 64)
    expected = (network(a * 2 - 1, b * 2 - 1) * weight).sum((1, 2, 3)) / weight.sum()
    torch.testing.assert_close(metrics.lpips_distance(a, b, ours, weight), expected, rtol=1e-5, atol=1e-7)


def test_lpips_refuses_missing_or_wrong_weights(tmp_path):
    with pytest.raises(InputError, match="squeezenet1_1-b8a52dc0.pth and put it there"):
        encoders.load_lpips("squeeze", "cpu", trunk_file=tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is not torchvision's"):
        encoders.load_lpips("squeeze", "cpu", trunk_file=tmp_path / "other.pth")
    with pytest.raises(InputError, match="one of picturebook, alex"):
        encoders.load_lpips("resnet", "cpu")


# ------------------------------------------------------------------------------------------------------------- CLIP


def test_clip_text_similarity_equals_torchmetrics_clip_score(clip, folder):
    """torchmetrics runs on the two towers loaded one by one, with the processor that reads the pictures as PIL."""
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "clip", dtype=torch.float32)
    text = CLIPTextModelWithProjection.from_pretrained(folder / "clip", dtype=torch.float32)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(),
        get_image_features=lambda pixels: vision(pixels).image_embeds,
        get_text_features=lambda ids, attention: text(ids, attention_mask=attention).text_embeds,
    )
    model.to = lambda device: model

    def processor(images=None, text=None, **kw):
        if text is not None:
            return clip.tokenizer(text, **kw)
        return clip.processor([Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images], return_tensors="pt")

    a, prompts = pictures(3, 50, seed=1), ["a red cat", "a blue house on the snow", "dog"]
    for i in range(3):
        expected = clip_score((a[i] * 255).round().byte(), prompts[i], lambda: (model, processor)).item()
        cosine = metrics.clip_text_similarity(a, prompts, clip)[i, i].item()
        assert 100 * cosine == pytest.approx(expected, rel=1e-5) and expected > 10
    assert clip.label == "clip" and clip.model.dtype == torch.float32


def test_image_similarity_is_a_cosine_matrix(clip, dino):
    a, b = pictures(2, seed=1), pictures(3, seed=2)
    for similarity, encoder in [(metrics.clip_image_similarity, clip), (metrics.dino_similarity, dino)]:
        matrix = similarity(a, b, encoder)
        expected = F.cosine_similarity(encoder.embed(a)[:, None], encoder.embed(b)[None], dim=-1)
        torch.testing.assert_close(matrix, expected)
        torch.testing.assert_close(similarity(a, a, encoder).diagonal(), torch.ones(2))
        assert matrix.std() > 1e-4


def test_missing_or_foreign_weights_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no CLIPModel at 'openai/clip-vit-none'"):
        encoders.load_clip("openai/clip-vit-none", "cpu")
    weights = load_file(folder / "dino" / "model.safetensors")
    del weights["encoder.layer.1.attention.attention.key.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "dino" / "config.json").read_text())
    with pytest.raises(InputError, match="no complete ViTModel"):
        encoders.load_dino(tmp_path, "cpu")


# ------------------------------------------------------------------------------------------------------------- DINO


def naive_structure_distance(folder, a, b, pixel_range, antialias):
    """float64, the last block's keys computed from the file's own weights, one cosine at a time."""
    model = ViTModel.from_pretrained(folder / "dino", dtype=torch.float64, add_pooling_layer=False)
    weights = {key: value.double() for key, value in load_file(folder / "dino" / "model.safetensors").items()}
    block = "encoder.layer.1."
    similarities = []
    for picture in (a, b):
        pixels = torchvision.transforms.functional.resize(picture.double() * pixel_range, 32, antialias=antialias)
        pixels = torchvision.transforms.functional.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        hidden = model(pixels, output_hidden_states=True).hidden_states[-2]
        scale, shift = (weights[f"{block}layernorm_before.{part}"] for part in ("weight", "bias"))
        hidden = F.layer_norm(hidden, (16,), scale, shift, model.config.layer_norm_eps)
        key = block + "attention.attention.key."
        keys = (hidden @ weights[key + "weight"].T + weights[key + "bias"])[0].detach().numpy()
        norms = [math.sqrt((k**2).sum()) for k in keys]
        cosines = [[(p * q).sum() / max(m * n, 1e-8) for q, n in zip(keys, norms, strict=True)]
                   for p, m in zip(keys, norms, strict=True)]  # fmt: skip
        similarities.append(np.array(cosines))
    assert similarities[0].shape == (17, 17)
    return ((similarities[0] - similarities[1]) ** 2).mean()


@pytest.mark.parametrize(("pixel_range", "antialias"), [(1.0, True), (255.0, False)])
def test_structure_distance_equals_a_naive_computation(folder, dino, pixel_range, antialias):
    a, b = pictures(1, 48, seed=1), pictures(1, 48, seed=2)
    expected = naive_structure_distance(folder, a, b, pixel_range, antialias)
    assert metrics.structure_distance(a, b, dino, pixel_range, antialias).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4
    assert metrics.structure_distance(a, a, dino).item() == 0


def test_dino_embeds_with_the_class_token(folder, dino):
    a = pictures(2, 32)
    model = ViTModel.from_pretrained(folder / "dino", dtype=torch.float32, add_pooling_layer=False)
    pixels = torchvision.transforms.functional.normalize(a, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(dino.embed(a), model(pixels).last_hidden_state[:, 0].detach())


# -------------------------------------------------------------------------------------------------- Frechet distance


def features(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 0.3 * seed


def test_frechet_distance_equals_clean_fid():
    a, b = features(300, 24, 1), features(200, 24, 2)
    expected = cleanfid.fid_from_feats(a.numpy(), b.numpy())
    score = metrics.frechet_distance(a, b, "inception")
    assert score.value == pytest.approx(expected, rel=1e-5)
    assert (score.key, score.n) == ("FID (inception)", 200)


def test_frechet_distance_with_fewer_pictures_than_dimensions():
    a, b = features(12, 40, 1), features(15, 40, 2)
    with pytest.warns(UserWarning, match="n = 12 pictures in d = 40"):
        score = metrics.frechet_distance(a.float(), b.float())
    # tr((S_a S_b)^(1/2)) by the eigenvalues of S_a^(1/2) S_b S_a^(1/2), all of it in float64.
    a, b = a.float().double().numpy(), b.float().double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
    assert score.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Frechet")
@pytest.mark.parametrize("n", [10, 100])
def test_frechet_distance_of_a_shifted_copy_is_the_squared_shift(n):
    a = features(n, 30, 1)
    assert 0 <= metrics.frechet_distance(a, a).value < 1e-9
    assert metrics.frechet_distance(a, a.flip(0) + 0.5).value == pytest.approx(30 * 0.25, rel=1e-9)
    assert metrics.frechet_distance(a, -2 * a).value == pytest.approx(  # both Gaussians on the same axes: (2s - s)^2
        ((3 * a.mean(0)) ** 2).sum().item() + a.var(0).sum().item(), rel=1e-9
    )


def test_frechet_distance_refuses_what_it_cannot_compare():
    a = features(10, 4, 1)
    with pytest.raises(InputError, match="at least two"):
        metrics.frechet_distance(a[:1], a)
    with pytest.raises(InputError, match="finite"):
        metrics.frechet_distance(a, a * math.nan)


def test_inception_features_equal_clean_fid(tmp_path):
    class Base(torch.nn.Module):  # the parts of NVIDIA's TorchScript file that clean-fid calls
        def __init__(self):
            super().__init__()
            pool = torch.nn.AdaptiveAvgPool2d(32)
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), pool, torch.nn.Flatten())

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(0)
    base = Base().requires_grad_(False)
    weights = tmp_path / encoders.INCEPTION_FILE
    torch.jit.script(base).save(weights)
    images = pictures(3, 40)
    for i, picture in enumerate(images):
        array = (picture * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    extractor = lambda x: base.layers((x - 128) / 128)  # noqa: E731
    expected = cleanfid.get_folder_features(
        str(tmp_path), extractor, num_workers=0, device=torch.device("cpu"), verbose=False
    )
    ours = encoders.load_inception(weights, "cpu")
    np.testing.assert_allclose(ours.embed((images * 255).byte() / 255), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="no weights at .*none.pt: download https"):
        encoders.load_inception(tmp_path / "none.pt", "cpu")
    with pytest.warns(UserWarning, match="n = 3"):
        score = metrics.fid([images[:2], images[2:]], (pictures(4, 40, seed=9),), ours)
    both = [ours.embed(x).double() for x in (images, pictures(4, 40, seed=9))]
    with pytest.warns(UserWarning, match="n = 3"):
        assert score == metrics.frechet_distance(*both, "inception")


# --------------------------------------------------------------------------------------------------------- PIE-Bench


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
        assert scores[f"clip_{name}/pie_official (clip)"] == pytest.approx(100 * cosine) and cosine > 0.1
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
        wide, small = (
            metrics.pie_scores(grey, brighter, m, "", "", pie, protocol)[f"mse/{protocol}"] for m in (box(), narrow)
        )
        assert wide / small == pytest.approx(growth, rel=1e-5), "only the official mean depends on the mask's area"
    assert wide == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("protocol", metrics.PIE_PROTOCOLS)
def test_pie_scores_are_nan_where_the_region_is_empty(pie, protocol):
    source, edited = pictures(1, seed=1), pictures(1, seed=2)
    nans = []
    for mask in (torch.ones(40, 40), torch.zeros(1, 1, 40, 40), box()):
        scores = metrics.pie_scores(source, edited, mask, "cat", "dog", pie, protocol)
        nans.append({metrics.parse_key(key)["name"] for key, value in scores.items() if math.isnan(value)})
    assert nans == [{"psnr", "lpips", "mse", "ssim"}, {"clip_edited"}, set()]


def test_clip_scores_stop_at_zero(pie, monkeypatch):
    monkeypatch.setattr(metrics, "clip_text_similarity", lambda *args: torch.tensor([[-0.3]]))
    a = pictures(1)
    scores = metrics.pie_scores(a, a, box(), "cat", "dog", pie)
    assert [value for key, value in scores.items() if key.startswith("clip")] == [0, 0, 0]


def test_pie_scores_refuses_bad_input(pie):
    a = pictures(1)
    with pytest.raises(InputError, match="pie_official, pie_corrected"):
        metrics.pie_scores(a, a, box(), "", "", pie, "pie")
    with pytest.raises(InputError, match="40x40, 40x40, 64x64"):
        metrics.pie_scores(a, a, box(64), "", "", pie)


# ------------------------------------------------------------------------------------------------------------ scores


def test_keys_name_encoder_and_protocol():
    for key in ("psnr/pie_official", "lpips/pie_official (picturebook)", "CLIP-T (picturebook)", "edit_success"):
        assert metrics.Score(value=0.0, **metrics.parse_key(key)).key == key
    score = metrics.Score("clip_whole", 20.0, "picturebook", "pie_official")
    assert score.scale == "100 max(cosine, 0)" and score.key == "clip_whole/pie_official (picturebook)"


def test_prescribed_encoders_are_not_repeated_in_the_key(pie):
    renamed = encoders.Encoders(
        encoders.Clip("clip-vit-large-patch14", pie.clip.model, pie.clip.processor, pie.clip.tokenizer),
        encoders.Dino("dino-vitb8", pie.dino.model),
        pie.lpips,
    )
    a = pictures(1)
    scores = metrics.pie_scores(a, a, box(), "", "", renamed)
    assert list(scores) == [f"{name}/pie_official" for name in metrics.PIE_SCORES]


def test_aggregate_skips_nan_and_counts():
    rows = [{"metrics": {"psnr/pie_official": x, "CLIP-T (picturebook)": math.nan}} for x in (20.0, math.nan, 30.0)]
    rows = [json.loads(json.dumps(row)) for row in rows] + [{"metrics": {"extra": 1}}]
    table = metrics.aggregate(rows)
    assert table["psnr/pie_official"] == metrics.Score("psnr", 25.0, "", "pie_official", 2)
    assert table["extra"].value == 1 and table["extra"].n == 1
    empty = table["CLIP-T (picturebook)"]
    assert math.isnan(empty.value) and empty.n == 0 and empty.encoder == "picturebook"


def test_picturebook_encoders(folder, monkeypatch):
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3, stride=2)
    classifier = types.SimpleNamespace(
        features=lambda x: [first(x), second(first(x))], embedding=lambda x: second(first(x)).mean((2, 3))
    )
    module = types.SimpleNamespace(load_classifier=lambda device: classifier)
    monkeypatch.setitem(sys.modules, "common.picturebook.classifier", module)
    monkeypatch.setattr(encoders, "PICTUREBOOK_MODELS", folder)
    found = encoders.load_encoders(device="cpu")

    a, b = pictures(1, 64, seed=1), pictures(1, 64, seed=2)
    expected = 0.0  # unit length per pixel, squared difference, mean over pixels, sum over layers
    for x, y in zip(classifier.features(a), classifier.features(b), strict=True):
        x, y = (t[0].flatten(1).detach().numpy().astype(np.float64) for t in (x, y))
        pixels = [(p / np.linalg.norm(p) - q / np.linalg.norm(q)) for p, q in zip(x.T, y.T, strict=True)]
        expected += np.mean([(p**2).sum() for p in pixels])
    assert metrics.lpips_distance(a, b, found.lpips).item() == pytest.approx(expected, rel=1e-5)

    scores = metrics.pie_scores(a, b, box(64), "a red cat", "a dog", found)
    pixels = {"psnr/pie_official", "mse/pie_official", "ssim/pie_official"}
    assert {key for key in scores if not key.endswith("/pie_official (picturebook)")} == pixels
    with pytest.warns(UserWarning, match="n = 2 pictures in d = 6"):
        score = metrics.fid([pictures(2, 64)], [pictures(3, 64)], encoders.load_picturebook_embedder("cpu"))
    assert score.key == "FID (picturebook)"
