"""How far a personalised model has drifted from its base, measured directly: weights, predictions, samples.

    python -m lipschitz_personalize.reproduction.drift --trained_dir outputs/lipschitz_personalize/train

The paper argues with ||theta - theta_base|| and ||eps_theta - eps_theta_base|| (Fig. 2); its reviewers asked for the
drift of the distribution itself, and nobody has published it. Every function takes plain modules, pipelines or pictures
and returns a dict of floats, whose keys are the names in result rows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import read_object
from common.flags import number
from common.metrics import frechet_distance
from common.runs import InputError, make_parser, script
from common.training import step_generator
from lipschitz_personalize.objectives import encode_pictures, encode_text, load_backbone, network, predict, random_noisy
from lipschitz_personalize.reproduction.scores import sample

HELD_OUT_PROMPTS = ("a cat on a beach", "a house by the sea", "a red car in the snow", "a tree in a meadow")
TIMESTEP_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training timesteps: where predictions are compared
LAYER_GROUPS = {  # group -> what names of its weights hold, the first that fits; "attention" is SD3's joint one
    "norm": r"norm", "time": r"time_emb|add_embedding|time_text_embed", "cross attention": r"attn2",
    "self attention": r"attn1", "attention": r"\.attn\.", "feed forward": r"\.ff|proj_in|proj_out|context_embedder",
    "convolution": r"",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- weights


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
    """The one of LAYER_GROUPS that a weight belongs to."""
    return next(group for group, pattern in LAYER_GROUPS.items() if re.search(pattern, name))


# ------------------------------------------------------------------------------------------------------- predictions


def latents_of(base_pipe, prompts: Sequence[str], seed: int = 0, kept: dict | None = None, **sampling) -> Tensor:
    """Clean latents [prompts, C, h, w] of a picture per prompt that the base model draws: the points, noised, at which
    models are compared. (Real pictures do as well: objectives.encode_pictures.) kept: see `draw`."""
    pictures = draw(base_pipe, prompts, 1, seed, kept, **sampling)
    return encode_pictures(base_pipe, pictures, step_generator(seed, len(prompts), 0))


@torch.no_grad()
def predictions(pipe, prompts: Sequence[str], latents: Tensor, seed: int = 0) -> Tensor:
    """What the network says of clean latents [prompts, C, h, w] noised to TIMESTEP_SHARES with fixed noise:
    [prompts, timesteps, C, h, w]."""
    found = []
    for one, prompt in enumerate(prompts):
        cond = encode_text(pipe, [prompt])
        for place, share in enumerate(TIMESTEP_SHARES):
            z, t = random_noisy(pipe, share, step_generator(seed, one, place), latents[one : one + 1])
            found.append(predict(pipe, z, t, cond)[0].float().cpu())
    return torch.stack(found).unflatten(0, (len(prompts), len(TIMESTEP_SHARES)))


def prediction_drift(pipe, base_pipe, prompts: Sequence[str], latents: Tensor, seed: int = 0) -> dict[str, float]:
    """Fig. 2: ||delta eps|| on held-out prompts, at noised latents of a picture per prompt (`latents_of`).

    delta_eps: the mean norm per prediction; delta_eps_relative: that over the mean norm of the base's. (Of SD3 the
    predicted velocity.)
    """
    ours, base = (predictions(one, prompts, latents, seed) for one in (pipe, base_pipe))
    change, whole = mean_norm(ours - base), mean_norm(base)
    return {"delta_eps": change, "delta_eps_relative": change / whole}


def mean_norm(predicted: Tensor) -> float:
    return predicted.flatten(2).norm(dim=-1).mean().item()


@torch.no_grad()
def eps_per_theta(pipe, base_pipe, prompts: Sequence[str], latents: Tensor, seed: int = 0) -> dict[str, float]:
    """||delta eps|| / ||delta theta||, what Theorem 2 is about, per layer group and for all together: the group's
    trained weights alone are put into the base network, which is restored afterwards. A group that was not trained is
    left out."""
    net = network(base_pipe)
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ours = {name: tensor.to(base[name]) for name, tensor in network(pipe).state_dict().items()}
    calm, ratios = predictions(base_pipe, prompts, latents, seed), {}
    changed = [name for name in base if not torch.equal(ours[name], base[name])]
    groups = {group: [name for name in changed if layer_group(name) == group] for group in map(layer_group, changed)}
    for group, names in (groups | {"all": changed} if changed else {}).items():
        net.load_state_dict(base | {name: ours[name] for name in names})
        change = mean_norm(predictions(base_pipe, prompts, latents, seed) - calm)
        length = sum((ours[name] - base[name]).double().square().sum().item() for name in names) ** 0.5
        ratios[f"eps_per_theta {group}"] = change / length
    net.load_state_dict(base)
    return ratios


# ----------------------------------------------------------------------------------------------------------- samples


def draw(pipe, prompts: Sequence[str], count: int, seed: int = 0, kept: dict | None = None, **sampling) -> Tensor:
    """`count` pictures per prompt, from the same noise for every model: [prompts * count, 3, H, W] in [0, 1]. kept:
    holds them from call to call, where the model is always one, the base."""
    kept, key = {} if kept is None else kept, (*prompts, count, seed, *sorted(sampling.items()))
    if key not in kept:
        asked = [prompt for prompt in prompts for _ in range(count)]
        generators = [step_generator(seed, place, n) for place in range(len(prompts)) for n in range(count)]
        kept[key] = sample(pipe, asked, generators, **sampling)
    return kept[key]


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
        distance = frechet_distance(embedder.embed(ours), embedder.embed(base))
        found[f"frechet_{name} ({embedder.label})"] = distance
    return found


def class_recognition(pictures: Tensor, classes: Sequence[str], recognise: Callable[[Tensor], list[str]]) -> float:
    """The share of pictures [n, 3, H, W], n / len(classes) per class in order, in which `recognise` sees their
    class."""
    per_class = len(pictures) // len(classes)
    hits = [name == classes[number // per_class] for number, name in enumerate(recognise(pictures))]
    return sum(hits) / len(hits)


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
    pipe, base_pipe, prompts: Sequence[str] = HELD_OUT_PROMPTS, seed: int = 0, ratios: bool = False,
    kept: dict | None = None, **sampling,
) -> dict[str, float]:  # fmt: skip
    """Weights and predictions; ratios: `eps_per_theta` too. The base draws a picture per prompt (kept: see `draw`), and
    that is nearly all of the time."""
    found = weight_drift(network(pipe).state_dict(), network(base_pipe).state_dict())
    latents = latents_of(base_pipe, prompts, seed, kept, **sampling)
    found |= prediction_drift(pipe, base_pipe, prompts, latents, seed)
    return found | (eps_per_theta(pipe, base_pipe, prompts, latents, seed) if ratios else {})


@script
def main(argv: list[str] | None = None) -> None:
    """Weights and predictions of a finished training, with ||delta eps|| / ||delta theta|| per group of layers."""
    from lipschitz_personalize.loading import load_trained

    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--trained_dir", default="outputs/lipschitz_personalize/train", help="--output_dir of a finished training")
    add("--prompts", nargs="+", default=list(HELD_OUT_PROMPTS), help="held-out prompts to compare predictions at")
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="of the base's pictures of them")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of pictures and noise")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    args = parser.parse_args(argv)
    model = read_object(Path(args.trained_dir) / "config.json").get("pretrained_model_name_or_path", "picturebook")
    pipe, base = load_trained(args.trained_dir, model, args.device), load_backbone(model, args.device)
    found = measure_drift(pipe, base, args.prompts, args.seed, True, num_inference_steps=args.num_inference_steps)
    print("\n".join(f"{name:35} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
