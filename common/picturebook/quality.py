"""Measures the shipped weights on scenes that training never drew, and compares with the bars they are to reach.

The distances come from common.metrics, the code that the papers' scripts call; nothing else of the project is used.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image

from common.picturebook.classifier import AttributeClassifier, load_classifier
from common.picturebook.drawing import draw
from common.picturebook.scenes import BACKGROUNDS, COLORS, KINDS, Scene, caption, sample_scene
from common.picturebook.shipping import MODELS, shipped_clip, shipped_dino, shipped_inpainting, shipped_pipeline
from common.picturebook.stages.corpus import FIRST_SEED
from common.picturebook.stages.dino import VIEWS, draw_views, embed, individual
from common.picturebook.stages.inpaint import as_batch, box_of, hole_of, reference_of
from common.picturebook.tokenizer import MAX_LENGTH

STEPS, GUIDANCE = 50, 7.5


@dataclass(frozen=True)
class Result:
    """One row of the table; reached where value >= bar (or <= bar for a time or a gap)."""

    what: str
    value: float
    bar: float
    n: int
    at_least: bool = True

    @property
    def reached(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def held_out_scenes(count: int, things: int, unseen: bool = False, split: str = "test") -> list[Scene]:
    """Scenes with that many unmarked things by split seed; unseen: of colours and kinds never trained together."""
    shares = [float(things == n) for n in (1, 2, 3)]
    first = FIRST_SEED[split]
    return [sample_scene(first + index, shares, held_out=unseen, marked=0.0) for index in range(count)]


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255


def drawn(scenes: list[Scene]) -> torch.Tensor:
    return to_tensor([draw(scene).picture for scene in scenes])


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-10))


def plain_words(scene: Scene) -> str:
    """Colour, kind and background only: what a text-to-image score asks for."""
    things = tuple(replace(thing, material="plain", hat=False, pose="standing") for thing in scene.things)
    return caption(replace(scene, things=things, light="day", style="plain"))


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """Samples [B, 3, 64, 64] in [0, 1] with 50 DDIM steps at guidance 7.5; each prompt has a seed of its own."""
    made = []
    for start in range(0, len(prompts), 20):
        generators = [torch.Generator().manual_seed(seed + k) for k in range(start, min(start + 20, len(prompts)))]
        settings = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt")
        made.append(pipe(prompts[start : start + 20], **settings).images)
    return torch.cat(made)


def share(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def pairs_seen(scenes: list[Scene], pictures: torch.Tensor, classifier: AttributeClassifier) -> list[bool]:
    """Whether all (colour, kind) pairs are read, and for one thing the background too."""
    flags = []
    for scene, reading in zip(scenes, classifier.read(pictures), strict=True):
        wanted = {(thing.color, thing.kind) for thing in scene.things}
        background = len(scene.things) > 1 or reading.background == scene.background
        flags.append(background and reading.pairs(len(wanted)) == wanted)
    return flags


def check_classifier() -> Iterator[Result]:
    classifier, scenes = load_classifier(), held_out_scenes(500, 1)
    yield Result("classifier: colour, thing, background on real scenes (%)",
                 share(pairs_seen(scenes, drawn(scenes), classifier)), 98, len(scenes))  # fmt: skip
    scenes = held_out_scenes(300, 2)
    yield Result("classifier: both pairs on real scenes of two things (%)",
                 share(pairs_seen(scenes, drawn(scenes), classifier)), 95, len(scenes))  # fmt: skip


@torch.no_grad()
def check_vae() -> Iterator[Result]:
    vae, pictures = shipped_pipeline().vae, drawn([sample_scene(FIRST_SEED["test"] + k) for k in range(300)])
    made = vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    yield Result("VAE: reconstruction (dB)", float(psnr(made.clamp(0, 1), pictures).mean()), 30, len(pictures))


@torch.no_grad()
def check_clip() -> Iterator[Result]:
    """Zero-shot among all 720 captions "a red cat in a meadow"."""
    clip, tokenizer, scenes = shipped_clip(), shipped_pipeline().tokenizer, held_out_scenes(500, 1)
    scenes = [replace(scene, light="day", style="plain") for scene in scenes]
    choices = [(c, k, b) for c in COLORS for k in KINDS for b in BACKGROUNDS]
    blank = scenes[0].things[0]
    texts = [plain_words(Scene((replace(blank, color=c, kind=k),), background=b)) for c, k, b in choices]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    text = F.normalize(clip.get_text_features(ids).pooler_output, dim=1)
    image = F.normalize(clip.get_image_features(drawn(scenes) * 2 - 1).pooler_output, dim=1)
    best = (image @ text.T).argmax(1).tolist()
    right = [
        choices[k] == (s.things[0].color, s.things[0].kind, s.background) for k, s in zip(best, scenes, strict=True)
    ]
    yield Result("CLIP: zero-shot colour, thing, background among 720 (%)", share(right), 90, len(scenes))


def check_unet(samples: int) -> Iterator[Result]:
    """samples: pictures of one thing; half as many of two things and of unseen pairs."""
    pipe, classifier, half = shipped_pipeline(), load_classifier(), samples // 2
    scores = {}
    for name, things, unseen, count in (("one", 1, False, samples), ("two", 2, False, half), ("unseen", 1, True, half)):
        scenes = held_out_scenes(count, things, unseen)
        pictures = generate(pipe, [plain_words(scene) for scene in scenes])
        scores[name] = share(pairs_seen(scenes, pictures, classifier))
    yield Result("text to image, one thing: colour, thing, background (%)", scores["one"], 85, samples)
    yield Result("text to image, two things: both colours and things (%)", scores["two"], 50, half)
    yield Result("seen minus unseen combinations (points)", scores["one"] - scores["unseen"], 15, half, at_least=False)
    start = time.time()
    generate(pipe, ["a red cat in a meadow"] * 16)
    yield Result("16 samples of 50 steps at CFG 7.5 (seconds)", time.time() - start, 10, 16, at_least=False)


@torch.no_grad()
def check_inversion() -> Iterator[Result]:
    """DDIM inversion with the scene's caption at CFG 1, sampled back, against the VAE's own reconstruction.

    As in null-text inversion's code the network sees the timestep that a step goes to.
    """
    pipe, scenes = shipped_pipeline(), [sample_scene(FIRST_SEED["test"] + k, marked=0.0) for k in range(40)]
    context = text_states(pipe, [caption(scene) for scene in scenes])
    latents = pipe.vae.encode(drawn(scenes) * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    pipe.scheduler.set_timesteps(STEPS)
    alpha_bar, z = pipe.scheduler.alphas_cumprod, latents

    def move(z, noise, start, end):
        a, b = alpha_bar[max(start, 0)], alpha_bar[max(end, 0)]
        return b.sqrt() * (z - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise

    stride = 1000 // STEPS
    for t in reversed(pipe.scheduler.timesteps.tolist()):
        z = move(z, pipe.unet(z, t, context).sample, t - stride, t)
    for t in pipe.scheduler.timesteps.tolist():
        z = move(z, pipe.unet(z, t, context).sample, t, t - stride)
    made, own = (
        (pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1) for x in (z, latents)
    )
    yield Result("DDIM inversion and back, CFG 1, against the VAE's own (dB)", float(psnr(made, own).mean()), 35, 40)


def text_states(pipe: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    settings = dict(padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return pipe.text_encoder(pipe.tokenizer(prompts, **settings).input_ids).last_hidden_state


class Watch:
    """An attention processor that computes plain attention and keeps the cross-attention maps of 16x16 queries."""

    def __init__(self, maps: list[torch.Tensor]):
        self.maps = maps

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = attn.get_attention_scores(q, k)
        if encoder_hidden_states is not None and q.shape[1] == 256:
            self.maps.append(weights.unflatten(0, (len(hidden_states), -1)).mean(1))
        return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@torch.no_grad()
def check_attention() -> Iterator[Result]:
    """Cross-attention of the kind's word, averaged over the 16x16 maps at three noise levels, above half its range,
    against the thing's true mask."""
    pipe, scenes = shipped_pipeline(), held_out_scenes(60, 1)
    texts, drawings, maps = [caption(scene) for scene in scenes], [draw(scene) for scene in scenes], []
    context = text_states(pipe, texts)
    pictures = to_tensor([drawing.picture for drawing in drawings])
    latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(Watch(maps))
    for t in (301, 501, 701):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(t))
        a = pipe.scheduler.alphas_cumprod[t]
        pipe.unet(a.sqrt() * latents + (1 - a).sqrt() * noise, t, context)
    pipe.unet.set_attn_processor(before)
    together, overlaps = torch.stack(maps).mean(0), []
    for row, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
        position = pipe.tokenizer(text).input_ids.index(pipe.tokenizer(scene.things[0].kind).input_ids[1])
        heat = F.interpolate(together[row, :, position].view(1, 1, 16, 16), (64, 64), mode="bilinear")[0, 0]
        found = (heat - heat.min()) / (heat.max() - heat.min()) > 0.5
        true = torch.from_numpy(drawings[row].masks[0]) > 0
        overlaps.append(float((found & true).sum() / (found | true).sum()))
    yield Result("word attention against the thing's mask (IoU)", float(np.mean(overlaps)), 0.35, len(overlaps))


@torch.no_grad()
def check_dino() -> Iterator[Result]:
    """Cosines of pictures of one individual against those of two individuals of one kind, none seen in training."""
    dino, first, count = shipped_dino(), 100_000, 240
    pictures = torch.from_numpy(np.concatenate([draw_views(first + k) for k in range(count)])).permute(0, 3, 1, 2) / 255
    features = torch.cat([embed(dino, part) for part in pictures.split(100)]).unflatten(0, (count, VIEWS))
    kinds = [individual(first + k).kind for k in range(count)]
    same = torch.cat([(f @ f.T)[torch.triu_indices(VIEWS, VIEWS, 1).unbind()] for f in features])
    other = torch.cat(
        [(features[a] @ features[b].T).flatten() for a in range(count) for b in range(a) if kinds[a] == kinds[b]]
    )
    ranks = torch.cat([same, other]).argsort().argsort()[: len(same)].double() + 1
    area = (ranks.sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(other))
    yield Result("DINO: same individual against same kind (AUC)", float(area), 0.9, len(same))


def across(pictures: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference, in 255ths, of neighbouring pixels on two sides of a hole's rim -> [B]."""
    total = rim = 0.0
    for axis in (2, 3):
        size = pictures.shape[axis] - 1
        step = (pictures.narrow(axis, 1, size) - pictures.narrow(axis, 0, size)).abs().mean(1, keepdim=True)
        crosses = (holes.narrow(axis, 1, size) != holes.narrow(axis, 0, size)).float()
        total, rim = total + (step * crosses).sum((1, 2, 3)), rim + crosses.sum((1, 2, 3))
    return 255 * total / rim


@torch.no_grad()
def check_inpainting(samples: int) -> Iterator[Result]:
    """A thing, shown elsewhere and on another background, into a hole of an empty scene; 50 steps at guidance 5.

    Recognised: its kind and colour are those that the classifier is surest of. Background and seam (the step across the
    hole's rim, beyond that of the scene with the thing drawn in) are of the generated picture, nothing pasted back.
    """
    if not (MODELS / "inpaint_unet").is_dir():
        print("inpainting: not trained yet (python -m common.picturebook.build inpaint)")
        return
    pipe, classifier, scenes = shipped_inpainting(), load_classifier(), held_out_scenes(samples, 1)
    elsewhere = held_out_scenes(2 * samples, 1)[samples:]
    sources, holes, references = [], [], []
    for number, (scene, other) in enumerate(zip(scenes, elsewhere, strict=True)):
        place = other.things[0]
        shown = draw(replace(other, things=(replace(scene.things[0], x=place.x, ground=place.ground),)))
        references.append(reference_of(shown.picture, box_of(shown.masks[0])))
        holes.append(hole_of(box_of(draw(scene).masks[0]), random.Random(number)))
        sources.append(draw(replace(scene, things=())).picture)
    source, hole = to_tensor(sources), torch.from_numpy(np.stack(holes))[:, None]
    made = []
    for k in range(0, samples, 20):
        inputs = dict(image=source[k : k + 20] * 2 - 1, mask_image=hole[k : k + 20])
        generator = [torch.Generator().manual_seed(row) for row in range(k, min(k + 20, samples))]
        settings = dict(num_inference_steps=STEPS, guidance_scale=5.0, generator=generator, output_type="pt")
        made.append(pipe(as_batch(references[k : k + 20]), **inputs, **settings).images)
    pictures = torch.cat(made)
    wanted = [(scene.things[0].color, scene.things[0].kind) for scene in scenes]
    seen = [reading.pairs(1) == {pair} for reading, pair in zip(classifier.read(pictures), wanted, strict=True)]
    kept = (1 - hole).expand_as(source)
    error = ((pictures - source).square() * kept).sum((1, 2, 3)) / kept.sum((1, 2, 3))
    seam = across(pictures, hole) - across(drawn(scenes), hole)
    yield Result("inpainting: colour and thing in the hole (%)", share(seen), 80, samples)
    yield Result("inpainting: background (dB)", float((-10 * torch.log10(error)).mean()), 25, samples)
    yield Result("inpainting: step across the hole's rim beyond the true one (255ths)", float(seam.mean()), 4, samples,
                 at_least=False)  # fmt: skip


def check_distances() -> Iterator[Result]:
    """LPIPS must grow with blur, noise and the size of an edit; structure distance must find a new kind of thing
    larger than a new colour."""
    from common.encoders import load_encoders
    from common.metrics import lpips_distance, structure_distance

    encoders, scenes = load_encoders("picturebook"), held_out_scenes(100, 1)
    scenes = [replace(scene, light="day", style="plain") for scene in scenes]
    pictures, right = drawn(scenes), []

    def blurred(times: int) -> torch.Tensor:
        x = pictures
        for _ in range(times):
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return x

    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    ladders = {
        "blur": [blurred(k) for k in (1, 3, 6)],
        "noise": [(pictures + s * noise).clamp(0, 1) for s in (0.02, 0.08, 0.25)],
    }
    for ladder in ladders.values():
        distances = [lpips_distance(pictures, x, encoders.lpips) for x in ladder]
        right += ((distances[0] < distances[1]) & (distances[1] < distances[2])).tolist()
    yield Result("LPIPS ranks blur and noise (%)", share(right), 95, len(right))
    rng = random.Random(0)
    recoloured = drawn(
        [s.with_thing(0, color=rng.choice([c for c in COLORS if c != s.things[0].color])) for s in scenes]
    )
    changed = drawn([s.with_thing(0, kind=rng.choice([k for k in KINDS if k != s.things[0].kind])) for s in scenes])
    moved = drawn([s.with_thing(0, x=s.things[0].x + (0.2 if s.things[0].x < 0.5 else -0.2)) for s in scenes])
    color, kind, place = (structure_distance(pictures, x, encoders.dino) for x in (recoloured, changed, moved))
    yield Result("structure distance: a new colour nearer than a move (%)", share((color < place).tolist()), 80, 100)
    yield Result(
        "structure distance: a new colour nearer than a new thing (%)", share((color < kind).tolist()), 80, 100
    )


CHECKS: tuple[Callable[[], Iterator[Result]], ...] = (
    check_classifier, check_vae, check_clip, check_dino, check_distances, check_attention, check_inversion,
)  # fmt: skip


def check(samples: int = 300) -> int:
    """Prints the table (`samples`: see check_unet); returns 0 where every bar is reached, else 1."""
    results, start = [], time.time()
    print(f"{'measured on scenes never trained on':64} {'value':>8}   {'bar':>6} {'n':>5}")
    for measure in (*CHECKS, partial(check_inpainting, samples // 2), partial(check_unet, samples)):
        for result in measure():
            results.append(result)
            sign, verdict = (">=" if result.at_least else "<="), ("" if result.reached else "  not reached")
            print(f"{result.what:64} {result.value:8.2f} {sign}{result.bar:6.4g} {result.n:5d}{verdict}", flush=True)
    print(f"{sum(r.reached for r in results)} of {len(results)} reached in {(time.time() - start) / 60:.1f} minutes")
    return 0 if all(result.reached for result in results) else 1
