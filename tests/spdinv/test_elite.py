"""ELITE's global mapper against the published module layout, its words in prompts, its keys and values in the UNet."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from common.encoders import load_clip
from common.pipelines import encode_prompt
from spdinv import infer
from spdinv.customised import load
from spdinv.customised.elite import add_subject, load_elite, trained_key_values, use_key_values
from tests.refusing import refuses
from tests.spdinv.test_infer import photograph
from tests.tiny import tiny_sd, write_tokenizer

VISION = 12  # width of the small vision tower; the published mapper reads 1024
PROMPT = "a photo of a white * cat"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP with as many vision layers as ELITE reads, and one more."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(folder, max_length=16))
    layers = dict(hidden_size=VISION, intermediate_size=24, num_attention_heads=2, projection_dim=8)
    config = CLIPConfig(
        text_config=layers | dict(num_hidden_layers=1, vocab_size=len(tokenizer), max_position_embeddings=16),
        vision_config=layers | dict(num_hidden_layers=17, image_size=28, patch_size=14, initializer_range=0.3),
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base():
    return tiny_sd()


class PublishedMapper(nn.Module):
    """global_mapper.pt as its modules are nested: mapping_0.0 ... mapping_patch_4.6, <layer>_to_k, <layer>_to_v."""

    def __init__(self, unet, hidden=10, words=32):
        super().__init__()
        for i in range(5):
            for kind in ("mapping", "mapping_patch"):
                parts = [nn.Linear(VISION, hidden), nn.LayerNorm(hidden), nn.LeakyReLU()]
                parts += [nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(), nn.Linear(hidden, words)]
                self.add_module(f"{kind}_{i}", nn.Sequential(*parts))
        for name, layer in unet.named_modules():
            if name.endswith("attn2"):
                for x in ("to_k", "to_v"):
                    like = getattr(layer, x)
                    own = nn.Linear(like.in_features, like.out_features, bias=False)
                    self.add_module(f"{name.replace('.', '_')}_{x}", own)

    def words(self, features):
        words = []
        for i, feature in enumerate(features):
            patches = [getattr(self, f"mapping_patch_{i}")(feature[:, p]) for p in range(1, feature.shape[1])]
            words.append(getattr(self, f"mapping_{i}")(feature[:, 0]) + sum(patches) / len(patches))
        return torch.stack(words, 1)


@pytest.fixture(scope="module")
def mapper(base):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PublishedMapper(base.unet).requires_grad_(False)


@pytest.fixture(scope="module")
def mapper_file(mapper, tmp_path_factory):
    assert "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.weight" in mapper.state_dict()
    path = tmp_path_factory.mktemp("elite") / "global_mapper.pt"
    torch.save(mapper.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def elite(mapper_file, clip_folder):
    return load_elite(mapper_file, load_clip(clip_folder, "cpu"))


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 64, 3), dtype=np.uint8))


def words_by_hand(mapper, clip_folder, image):
    """Float64, layer by layer through the vision tower's own blocks; pixels by numpy."""
    tower = CLIPModel.from_pretrained(clip_folder).double().vision_model
    pixels = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    with torch.no_grad():
        x = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
        seen = [x]
        for block in tower.encoder.layers:
            x = block(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
            seen.append(x)
        return copy.deepcopy(mapper).double().words([seen[17], seen[4], seen[8], seen[12], seen[16]])[0]


def encode_by_hand(base, words):
    """The prompt with the words' vectors in the table rows of tokens that it does not use."""
    pipe, spare = copy.deepcopy(base), ["!", "#", "$", "%", "&"][: len(words)]
    ids = pipe.tokenizer(PROMPT.replace("*", " ".join(spare)), padding="max_length", max_length=77).input_ids
    start = ids.index(pipe.tokenizer("white", add_special_tokens=False).input_ids[0]) + 1
    pipe.text_encoder.get_input_embeddings().weight[ids[start : start + len(words)]] = words.float()
    return pipe.text_encoder(torch.tensor([ids]))[0]


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(3, 4), slice(None)])
def test_the_subject_stands_where_the_placeholder_stood(base, mapper, clip_folder, elite, chosen):
    pipe = copy.deepcopy(base)
    for seed in (0, 1):  # the second subject takes the first one's place
        add_subject(pipe, elite, picture(seed), chosen)
        expected = encode_by_hand(base, words_by_hand(mapper, clip_folder, picture(seed))[chosen])
        torch.testing.assert_close(encode_prompt(pipe, [PROMPT]).embeds, expected, rtol=1e-4, atol=1e-4)
    plain = ["a photo of a cat"]
    assert torch.equal(encode_prompt(pipe, plain).embeds, encode_prompt(base, plain).embeds)
    assert all(map(torch.equal, pipe.unet.parameters(), base.unet.parameters()))  # released: K and V are bypassed


def test_trained_keys_and_values_act_where_they_are_asked_for_and_leave(base, mapper, mapper_file, elite):
    pipe = copy.deepcopy(base)
    with trained_key_values(pipe, elite, mapper_file):
        for name, value in pipe.unet.named_parameters():
            trained = name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
            own = mapper.get_submodule(name.removesuffix(".weight").replace(".", "_")).weight if trained else None
            assert torch.equal(value, own if trained else base.unet.get_parameter(name))
    assert all(map(torch.equal, pipe.unet.parameters(), base.unet.parameters()))


def test_files_that_are_no_mapper(base, mapper, clip_folder, tmp_path):
    clip, weights, file = load_clip(clip_folder, "cpu"), mapper.state_dict(), tmp_path / "x.pt"

    def without(word):
        return {name: value for name, value in weights.items() if word not in name}

    wide = {**weights, "mapping_0.0.weight": torch.zeros(10, 10)}
    for message, content in (("of width 10 up to layer 16", wide),
                             ("of ELITE: it lacks mapping_patch_4.6", without("mapping_patch_4.6"))):  # fmt: skip
        torch.save(content, file)
        refuses(message, load_elite, file, clip)
    torch.save(without("mid_block"), file)
    refuses("another UNet: it lacks mid_block_attentions_0", use_key_values, base, load_elite(file, clip), file)


def test_scripts_put_the_subject_in(tiny_folder, tmp_path, mapper_file, clip_folder):
    photograph(tmp_path / "in.png")
    picture(3).save(tmp_path / "other.png")
    base = ["--pretrained_model_name_or_path", str(tiny_folder), "--image_path", str(tmp_path / "in.png"),
            "--num_inference_steps", "2", "--inversion", "ddim", "--source_prompt", "a cat", "--target_prompt",
            "a white *, standing", "--elite", str(mapper_file), "--elite_clip", str(clip_folder)]  # fmt: skip
    infer.main([*base, "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "edited.png").is_file()
    more = ([], ["--reference_image_path", str(tmp_path / "other.png")], ["--elite_key_values"])
    loaded = [load(infer.parse([*base, *flags]))[0] for flags in more]
    own, other, intended = (encode_prompt(pipe, ["a white *, standing"]).embeds for pipe in loaded)
    assert torch.equal(own, intended) and not torch.equal(own, other)
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert not torch.equal(*(pipe.unet.get_parameter(path) for pipe in loaded[::2]))
    assert loaded[0].scheduler.config.steps_offset == 0
