"""How far a personalised model has drifted from its base, measured directly: weights, predictions, samples.

The paper argues with ||theta - theta_base|| and ||eps_theta - eps_theta_base|| (Fig. 2); its reviewers asked for the
drift of the distribution itself, and nobody has published it. Every function takes plain modules, pipelines or pictures
and returns a dict of floats, whose keys are the names in result rows.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.metrics import frechet_distance
from common.runs import InputError
from common.training import draw_pictures, step_generator
from lipschitz_personalize.objectives import encode_text, network, predict, random_noisy

HELD_OUT_PROMPTS = ("a cat on a beach", "a house by the sea", "a red car in the snow", "a tree in a meadow")
TIMESTEP_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training timesteps: where predictions are compared


# ---------------------------------------------------------------------------------------------------------- weights


def effective_weights(net: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that a network computes with, under the base model's names; LoRA layers are merged into theirs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = {name: module for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)}
    weights = {}
    for name, tensor in net.state_dict().items():
        owner = name.rpartition(".base_layer.")[0]
        if any(part in name for part in (".lora_A.", ".lora_B.")):
            continue
        if owner in tuned and name.endswith(".weight"):
            layer = tuned[owner]
            tensor = tensor + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        weights[name.replace(".base_layer.", ".")] = tensor.detach()
    return weights


def weight_drift(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, float]:
    """||delta theta|| of two state dicts, three ways.

    delta_theta: the norm of all differences as one vector. delta_theta_sum: the sum of the tensors' norms (Fig. 2 does
    not say which; values in the hundreds can only be such a sum). delta_theta_relative: delta_theta / ||theta_base||.
    """
    if weights.keys() != base.keys():
        raise InputError("the two models have different weights: one is no fine-tuning of the other")
    norms = [(weights[name].double() - base[name].to(weights[name].device).double()).norm().item() for name in weights]
    whole = sum(base[name].double().square().sum().item() for name in base) ** 0.5
    length = sum(norm**2 for norm in norms) ** 0.5
    return {"delta_theta": length, "delta_theta_sum": sum(norms), "delta_theta_relative": length / whole}


def layer_group(name: str) -> str:
    """The group a weight belongs to: "cross attention", "self attention", "feed forward", "convolution", "norm",
    "time", and "attention" for the joint attention of SD3."""
    rules = (
        (r"norm", "norm"), (r"time_emb|add_embedding|time_text_embed", "time"), (r"attn2", "cross attention"),
        (r"attn1", "self attention"), (r"\.attn\.", "attention"),
        (r"\.ff|proj_in|proj_out|context_embedder", "feed forward"),
    )  # fmt: skip
    return next((group for pattern, group in rules if re.search(pattern, name)), "convolution")


# ------------------------------------------------------------------------------------------------------- predictions


@torch.no_grad()
def predictions(pipe, prompts: Sequence[str], seed: int = 0, latents: Tensor | None = None) -> Tensor:
    """What the network says at fixed noise: [prompts, timesteps, C, h, w]. latents: clean ones, [prompts, C, h, w]; by
    default standard normal, so that every model is asked about the same points and none needs pictures."""
    found = []
    for number, prompt in enumerate(prompts):
        cond = encode_text(pipe, [prompt])
        clean = latents[number : number + 1] if latents is not None else None
        rows = []
        for place, share in enumerate(TIMESTEP_SHARES):
            z, t = random_noisy(pipe, share, step_generator(seed, number, place), clean)
            rows.append(predict(pipe, z, t, cond)[0].float().cpu())
        found.append(torch.stack(rows))
    return torch.stack(found)


def prediction_drift(pipe, base_pipe, prompts: Sequence[str] = HELD_OUT_PROMPTS, seed: int = 0) -> dict[str, float]:
    """||delta eps|| on held-out prompts and timesteps. delta_eps: the mean norm per prediction; delta_eps_relative:
    that over the mean norm of the base's. (Of SD3 the predicted velocity.)"""
    ours, base = (predictions(one, prompts, seed) for one in (pipe, base_pipe))
    change, whole = ((x.flatten(2).norm(dim=-1)).mean().item() for x in (ours - base, base))
    return {"delta_eps": change, "delta_eps_relative": change / whole}


@torch.no_grad()
def lipschitz_ratios(pipe, base_pipe, prompts: Sequence[str] = HELD_OUT_PROMPTS, seed: int = 0) -> dict[str, float]:
    """||delta eps|| / ||delta theta|| per layer group, and for all together: the group's trained weights alone are put
    into the base network, which is restored afterwards. A group that was not trained is left out."""
    ours = effective_weights(network(pipe))
    net = network(base_pipe)
    base = {name: tensor.clone() for name, tensor in effective_weights(net).items()}
    calm = predictions(base_pipe, prompts, seed)
    changed = [name for name in base if not torch.equal(ours[name].to(base[name].device, base[name].dtype), base[name])]
    groups = {group: [name for name in changed if layer_group(name) == group] for group in map(layer_group, changed)}
    if changed:
        groups["all"] = changed
    own, ratios = net.state_dict(), {}
    try:
        for group, names in groups.items():
            for name in names:
                own[name].copy_(ours[name])
            length = sum((own[name] - base[name]).double().square().sum().item() for name in names) ** 0.5
            change = (predictions(base_pipe, prompts, seed) - calm).flatten(2).norm(dim=-1).mean().item()
            ratios[f"lipschitz {group}"] = change / length
            for name in names:
                own[name].copy_(base[name])
    finally:
        for name in changed:
            own[name].copy_(base[name])
    return ratios


# ----------------------------------------------------------------------------------------------------------- samples


def draw_both(
    pipe, base_pipe, prompts: Sequence[str], count: int, seed: int = 0, batch_size: int = 8, kept: dict | None = None,
    **sampling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`count` pictures per prompt of both models from the same noise: two batches [prompts * count, 3, H, W] in [0, 1].
    kept: holds the base's pictures from call to call, of one base_pipe."""
    from common.images import to_tensor

    def draw(one) -> Tensor:
        pictures = []
        wanted = [(prompt, p, n) for p, prompt in enumerate(prompts) for n in range(count)]
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            generators = [step_generator(seed, p, n) for _, p, n in part]
            pictures += draw_pictures(one, [prompt for prompt, _, _ in part], generators, **sampling)
        return torch.cat([to_tensor(picture) for picture in pictures])

    kept, key = {} if kept is None else kept, (*prompts, count, seed, *sorted(sampling.items()))
    if key not in kept:
        kept[key] = draw(base_pipe)
    return draw(pipe), kept[key]


def sample_drift(ours: Tensor, base: Tensor, dino=None, **embedders) -> dict[str, float]:
    """Distances between samples of both models, [n, 3, H, W] in [0, 1], pair by pair from the same noise.

    dino: for drift_score, (1 - mean cosine) / 2, as in the image benchmark of peft (there DINOv2 and ten prompts).
    embedders: name -> encoder with .embed and .label (Inception, CLIP): the Frechet distance "frechet_<name>".
    """
    found = {}
    if dino is not None:
        a, b = (F.normalize(dino.embed(pictures), dim=-1) for pictures in (ours, base))
        found[f"drift_score ({dino.label})"] = (1 - (a * b).sum(-1).mean().item()) / 2
    for name, embedder in embedders.items():
        score = frechet_distance(embedder.embed(ours), embedder.embed(base), embedder.label)
        found[f"frechet_{name} ({embedder.label})"] = score.value
    return found


def class_recognition(
    pictures: Tensor, classes: Sequence[str], recognise: Callable[[Tensor], list[str]]
) -> dict[str, float]:
    """The share of pictures [n, 3, H, W], n / len(classes) per class in order, in which `recognise` sees their
    class."""
    per_class = len(pictures) // len(classes)
    seen = recognise(pictures)
    hits = [name == classes[number // per_class] for number, name in enumerate(seen)]
    return {"class_recognition": sum(hits) / len(hits)}


def classifier_eye(device: str | None = None) -> Callable[[Tensor], list[str]]:
    """The picturebook's attribute classifier as `recognise`: the kind that is most present in each picture."""
    from common.picturebook.classifier import load_classifier

    classifier = load_classifier(device or "cpu")
    return lambda pictures: [reading.things[0]["kind"] for reading in classifier.read(pictures.to(device or "cpu"))]


def clip_eye(clip, classes: Sequence[str]) -> Callable[[Tensor], list[str]]:
    """CLIP as `recognise`, zero-shot among `classes`, for models beyond the picturebook."""
    texts = clip.embed_text([f"a photo of a {name}" for name in classes])
    return lambda pictures: [classes[i] for i in (clip.embed(pictures).cpu() @ texts.T).argmax(dim=1).tolist()]


# ---------------------------------------------------------------------------------------------------------- together


def measure_drift(
    pipe, base_pipe, prompts: Sequence[str] = HELD_OUT_PROMPTS, classes: Sequence[str] = (), count: int = 4,
    seed: int = 0, dino=None, recognise: Callable[[Tensor], list[str]] | None = None, ratios: bool = False,
    sampling: dict | None = None, class_prompt: str = "a photo of a {}", kept: dict | None = None, **embedders,
) -> dict[str, float]:  # fmt: skip
    """All of it. classes: held-out class names for class_recognition, drawn with `class_prompt`, judged by `recognise`;
    count: pictures per prompt and class; sampling: of draw_pictures; kept: see draw_both; ratios: lipschitz_ratios too.
    Without dino, embedders and classes nothing is drawn, and the measurement takes seconds."""
    how = {"kept": kept, **(sampling or {})}
    found = weight_drift(effective_weights(network(pipe)), effective_weights(network(base_pipe)))
    found |= prediction_drift(pipe, base_pipe, prompts, seed)
    if ratios:
        found |= lipschitz_ratios(pipe, base_pipe, prompts, seed)
    if dino is not None or embedders:
        found |= sample_drift(*draw_both(pipe, base_pipe, prompts, count, seed, **how), dino, **embedders)
    if classes:
        if recognise is None:
            raise InputError("class recognition needs an eye: classifier_eye or clip_eye")
        asked = [class_prompt.format(name) for name in classes]
        ours, base = draw_both(pipe, base_pipe, asked, count, seed, **how)
        found |= class_recognition(ours, classes, recognise)
        found["class_recognition_base"] = class_recognition(base, classes, recognise)["class_recognition"]
    return found
