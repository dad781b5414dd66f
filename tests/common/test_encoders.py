"""Every encoder against the package that others use, or the same network read another way."""

import shutil
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from cleanfid import fid as cleanfid
from PIL import Image
from safetensors.torch import load_file, save_file
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, ViTModel

from common import encoders, metrics
from tests.refusing import refuses
from tests.tiny_encoders import naive_structure_distance, pictures, random_lpips, write_encoders, write_trunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def clip(folder):
    return encoders.load_clip(folder / "clip", "cpu")


@pytest.fixture(scope="module")
def dino(folder):
    return encoders.load_dino(folder / "dino", "cpu")


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_lpips_equals_the_package(net, tmp_path):
    path = tmp_path / encoders.TRUNK_FILES[net]
    trunk = write_trunk(net, path)
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
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:500])
    damaged = "is damaged or is not torchvision's squeezenet"
    for name, said in (("none.pth", "squeezenet1_1-b8a52dc0.pth and put it there"), ("other.pth", damaged),
                       ("cut.pth", damaged)):  # fmt: skip
        refuses(said, encoders.load_lpips, "squeeze", "cpu", trunk_file=tmp_path / name)
    refuses("one of picturebook, alex", encoders.load_lpips, "resnet", "cpu")


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


def test_eight_bits_by_rounding():
    exact = torch.arange(256) / 255
    assert torch.equal(encoders.to_uint8(exact), torch.arange(256, dtype=torch.uint8))
    assert encoders.to_uint8(torch.tensor([-0.1, 0.0017, 0.0022, 0.999, 1.1])).tolist() == [0, 0, 1, 255, 255]


def test_image_similarity_is_a_cosine_matrix_and_dino_embeds_with_the_class_token(folder, clip, dino):
    a, b = pictures(2, seed=1), pictures(3, seed=2)
    for similarity, encoder in [(metrics.clip_image_similarity, clip), (metrics.dino_similarity, dino)]:
        matrix = similarity(a, b, encoder)
        expected = F.cosine_similarity(encoder.embed(a)[:, None], encoder.embed(b)[None], dim=-1)
        torch.testing.assert_close(matrix, expected)
        torch.testing.assert_close(similarity(a, a, encoder).diagonal(), torch.ones(2))
        assert matrix.std() > 1e-4
    a, model = pictures(2, 32), ViTModel.from_pretrained(folder / "dino", dtype=torch.float32, add_pooling_layer=False)
    pixels = torchvision.transforms.functional.normalize(a, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(dino.embed(a), model(pixels).last_hidden_state[:, 0].detach(), rtol=1e-4, atol=1e-4)
    norms = [layer.eps for layer in dino.model.modules() if isinstance(layer, torch.nn.LayerNorm)]
    assert dino.model.config.layer_norm_eps == 1e-12 and set(norms) == {1e-6}  # as in the hub's copies, and as in DINO


def test_missing_or_foreign_weights_are_refused(folder, tmp_path):
    refuses("no CLIPModel at 'openai/clip-vit-none'", encoders.load_clip, "openai/clip-vit-none", "cpu")
    weights = load_file(folder / "dino" / "model.safetensors")
    name = "encoder.layer.1.attention.attention.key.weight"
    shutil.copytree(folder / "dino", tmp_path / "dino")
    file = tmp_path / "dino" / "model.safetensors"
    for odd, said in ((weights[name][:-1], "no ViTModel at"), (weights[name] * torch.nan, "NaN or infinity in ")):
        save_file(weights | {name: odd.contiguous()}, file, metadata={"format": "pt"})
        refuses(said, encoders.load_dino, tmp_path / "dino", "cpu")
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    refuses("no complete ViTModel", encoders.load_dino, tmp_path / "dino", "cpu")
    file.write_bytes(file.read_bytes()[:-100])
    refuses("no ViTModel at", encoders.load_dino, tmp_path / "dino", "cpu")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(folder / "clip" / name)
    # without its own tokenizer
    refuses(r"has 2 tokens and the CLIP at .* wants \d+", encoders.load_clip, tmp_path, "cpu")


@pytest.mark.parametrize(("pixel_range", "antialias"), [(1.0, True), (255.0, False)])
def test_structure_distance_equals_a_naive_computation(folder, dino, pixel_range, antialias):
    a, b = pictures(1, 48, seed=1), pictures(1, 48, seed=2)
    expected = naive_structure_distance(folder, a, b, pixel_range, antialias)
    assert metrics.structure_distance(a, b, dino, pixel_range, antialias).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4
    assert metrics.structure_distance(a, a, dino).item() == 0


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
    images = (pictures(3, 40) * 255).byte()
    for i, picture in enumerate(images):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    expected = cleanfid.get_folder_features(str(tmp_path), lambda x: base.layers((x - 128) / 128), num_workers=0,
                                            device=torch.device("cpu"), verbose=False)  # fmt: skip
    ours = encoders.load_inception(tmp_path, "cpu").embed(images / 255)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    refuses("no weights at .*inception-2015-12-05.pt: download", encoders.load_inception, tmp_path / "none", "cpu")


def test_picturebook_encoders(folder, monkeypatch):
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3, stride=2)
    classifier = types.SimpleNamespace(
        features=lambda x: [first(x), second(first(x))], embedding=lambda x: second(first(x)).mean((2, 3))
    )
    module = types.SimpleNamespace(load_classifier=lambda device: classifier)
    monkeypatch.setitem(sys.modules, "common.picturebook.classifier", module)
    monkeypatch.setattr(encoders, "PICTUREBOOK_FOLDER", folder)
    found, a, b = encoders.load_encoders(device="cpu"), pictures(1, 64, seed=1), pictures(1, 64, seed=2)
    expected = 0.0  # unit length per pixel, squared difference, mean over pixels, sum over layers
    for x, y in zip(classifier.features(a), classifier.features(b), strict=True):
        x, y = (t[0].flatten(1).detach().numpy().astype(np.float64) for t in (x, y))
        pixels = [(p / np.linalg.norm(p) - q / np.linalg.norm(q)) for p, q in zip(x.T, y.T, strict=True)]
        expected += np.mean([(p**2).sum() for p in pixels])
    assert metrics.lpips_distance(a, b, found.lpips).item() == pytest.approx(expected, rel=1e-5)
    scores = metrics.pie_scores(a, b, torch.ones(64, 64), "a red cat", "a dog", found)
    unnamed = {key for key in scores if not key.endswith("/pie_official (picturebook)")}
    assert unnamed == {"psnr/pie_official", "mse/pie_official", "ssim/pie_official"}
    assert found.features.embed(a).shape == (1, 6) and found.features.label == "picturebook"
