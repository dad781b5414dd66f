"""The paper's figures drawn anew. Figures 4, 7 and 10 are rows of pixels.eval."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from common.images import grid, load_image, save_png
from common.runs import InputError, write_json
from common.tables import text_table
from pixels.frames import frame_tensor, to_picture
from pixels.options import DRAWN
from pixels.preview import cells
from pixels.reproduction.measures import seam, transition
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, full_map, load_pair
from pixels.surgery import edit


def finish(bench: Bench, name: str, sheet: dict[str, list], columns: list[str], numbers: Any) -> None:
    """The figure's picture, rows by their labels, and its numbers; and where they are."""
    save_png(bench.output / f"{name}.png", grid(list(sheet.values()), list(sheet), columns))
    write_json(bench.output / f"{name}.json", numbers)
    print(f"{bench.output / f'{name}.png'}, numbers beside it")


def inputs(loaded: dict[str, Any], size: tuple[int, int]) -> list[Image.Image]:
    """Source, first exemplar and map as pictures."""
    full = full_map(loaded, size)
    return [to_picture(loaded["source"]), to_picture(loaded["exemplars"][0]), to_picture(full.expand(-1, 3, -1, -1))]


COMPARED = ["paste", "latent_paste", "perturbed", "pixels"]


def figure_2(bench: Bench, pairs: list[Pair]) -> None:
    """Transition artifacts of the naive solution beside the method, and how high each seam is."""
    sheet, numbers = {}, []
    for pair, loaded in bench.loaded(pairs[:6], "figure 2"):
        edits = {method: bench.edit(method, loaded).cpu() for method in COMPARED}
        given = [loaded["source"], *loaded["exemplars"]], full_map(loaded, bench.size)
        numbers.append({"item": pair.id, **{method: seam(edited, *given) for method, edited in edits.items()}})
        sheet[pair.id] = [*inputs(loaded, bench.size), *map(to_picture, edits.values())]
    finish(bench, "figure_2", sheet, ["source", "exemplar", "map", *COMPARED], numbers)
    lines = [[row["item"], *(f"{row[method]:.1f}" for method in COMPARED)] for row in numbers]
    print(text_table([["seam (grey levels)", *COMPARED], *lines]))


def figure_3(bench: Bench, pairs: list[Pair]) -> None:
    """Line 15 over time: above what is put back from the noised source, below what stays from the network."""
    loaded, trace = load_pair(pairs[0], bench.size), []
    backbone = bench.bind(loaded)
    generator = torch.Generator().manual_seed(bench.args.seed)
    edit(backbone, loaded["source"], loaded["exemplars"], loaded["maps"], bench.surgery, generator, trace)
    if not trace:
        raise InputError("--figure 3 shows the steps after the first: run at least two")
    shown = [trace[round(k * (len(trace) - 1) / 5)] for k in range(6)]

    def part(latents: Tensor, mask: Tensor) -> Image.Image:
        return to_picture(backbone.decode(latents).cpu() * cells(mask.cpu(), loaded["source"]))

    sheet = {"z_1^t * mask_t": [part(step.noised, step.keep) for step in shown],
             "z_mix^(t+1) * (1 - mask_t)": [part(step.residue, ~step.keep) for step in shown]}  # fmt: skip
    shares = [{"timestep": step.timestep, "kept": step.keep.float().mean().item()} for step in trace]
    finish(bench, "figure_3", sheet, [f"t = {step.timestep:g}" for step in shown], shares)


PAPER_PROMPTS = ["", "boat", "watercolor style", "low poly aesthetic, big monster"]
PICTUREBOOK_PROMPTS = ["", "at night", "a pencil sketch", "a red boat by the sea"]
TEXT_GUIDANCE = 7.5  # at least so much where there is a prompt: without guidance the words hardly count


def figure_5(bench: Bench, pairs: list[Pair]) -> None:
    """Exemplar and words together. Rows: pairs; columns: prompts, --prompts or the defaults."""
    prompts = bench.args.prompts or (PICTUREBOOK_PROMPTS if bench.args.dataset in DRAWN else PAPER_PROMPTS)
    guidance, sheet = max(bench.sampling.guidance_scale, TEXT_GUIDANCE), {}
    for pair, loaded in bench.loaded(pairs[:4], "figure 5"):
        edits = [bench.edit("pixels", loaded, prompt=p, **({"guidance_scale": guidance} if p else {})) for p in prompts]
        sheet[pair.id] = [*inputs(loaded, bench.size), *map(to_picture, edits)]
    finish(bench, "figure_5", sheet, ["source", "exemplar", "map", *map(repr, prompts)], {"prompts": prompts})


# ---------------------------------------------------- Figures 6 and 8: how real a picture looks, near and far exemplars


def fit_realism(
    features: Tensor, components: int = 7, dimensions: int = 16, seed: int = 0
) -> Callable[[Tensor], np.ndarray]:
    """Log-likelihood per principal component of features [n, D] -> [n], higher is more real, under a Gaussian mixture
    fitted to features of real pictures, well above components * dimensions of them.

    GIQA, Gu et al., ECCV 2020, Sec. 3.2: the score is the probability under a mixture; GIQA reports it rescaled. Seven
    components as in its released settings for its larger sets; full covariances, a thousandth of the mean variance
    added to the diagonal.
    """
    real = features.double().cpu().numpy()
    principal = PCA(min(dimensions, *real.shape)).fit(real)
    reduced = principal.transform(real)
    ridge = 1e-3 * reduced.var(0).mean()
    mixture = GaussianMixture(components, reg_covar=ridge, random_state=seed, max_iter=200).fit(reduced)
    return lambda seen: mixture.score_samples(principal.transform(seen.double().cpu().numpy())) / reduced.shape[1]


def fit_reference(bench: Bench, pairs: list[Pair]):
    """The realism score: a mixture fitted to real pictures, 400 fresh scenes of the picturebook or the sources."""
    embedder = bench.eyes.features
    if bench.args.dataset in DRAWN:
        from common.picturebook.drawing import draw
        from common.picturebook.scenes import sample_scene

        pictures = (draw(sample_scene(10**9 + number)).picture for number in range(400))
    elif len(pairs) < 150:
        raise InputError(f"--figure 6 and 8 fit their realism score to at least 150 sources; there are {len(pairs)}")
    else:
        pictures = (load_image(pair.source) for pair in pairs)
    features = torch.cat([embedder.embed(frame_tensor(picture, bench.size, "squash")) for picture in pictures])
    score = fit_realism(features)
    return lambda picture: score(embedder.embed(picture.cpu())).item()


def distances(bench: Bench, pairs: list[Pair], loaded: dict[str, Any]) -> list[tuple[float, Pair]]:
    """Every pair's exemplar by the Euclidean distance of its latent from the source's, nearest first."""
    backbone = bench.bind(loaded)
    source = backbone.encode(loaded["source"], False, None)
    exemplars = (frame_tensor(load_image(pair.exemplars[0]), bench.size, "squash") for pair in pairs)
    apart = [(backbone.encode(exemplar, False, None) - source).norm().item() for exemplar in exemplars]
    return sorted(zip(apart, pairs, strict=True), key=lambda entry: entry[0])


def with_exemplar(loaded: dict[str, Any], other: Pair, size: tuple[int, int]) -> dict[str, Any]:
    """A loaded pair with another pair's exemplar under its own first map."""
    exemplar = frame_tensor(load_image(other.exemplars[0]), size, "squash")
    return {**loaded, "exemplars": [exemplar], "maps": loaded["maps"][:1]}


COUNT = 6  # sources, and exemplars of each


@torch.no_grad()
def figure_6(bench: Bench, pairs: list[Pair]) -> None:
    """The strength that an edit needs to look real grows with the distance of source and exemplar: for six sources and
    six exemplars of each, edits of rising strength until one looks as real as the inputs do on average. The rank
    correlation is the claim."""
    looks_real, pool = fit_reference(bench, pairs), pairs[: 4 * COUNT]
    given = [frame_tensor(load_image(path), bench.size, "squash") for p in pool for path in (p.source, p.exemplars[0])]
    threshold = sum(map(looks_real, given)) / len(given)
    rows, sheet = [], {}
    for pair, loaded in bench.loaded(pool[:COUNT], "strengths"):
        ranked = distances(bench, pool, loaded)
        sheet[pair.id] = [to_picture(loaded["source"])]
        for distance, other in (ranked[round(k * (len(ranked) - 1) / (COUNT - 1))] for k in range(COUNT)):
            scores, needed = [], None
            for strength in (k / 10 for k in range(1, 11)):
                edited = bench.edit("pixels", with_exemplar(loaded, other, bench.size), strength=strength,
                                    denoising_start=None)  # fmt: skip
                scores.append(looks_real(edited))
                if scores[-1] >= threshold:
                    needed = strength
                    break
            rows.append({"source": pair.id, "exemplar": other.id, "distance": distance, "needed": needed,
                         "scores": scores})  # fmt: skip
            sheet[pair.id].append(to_picture(edited))
    needed = [1.1 if row["needed"] is None else row["needed"] for row in rows]  # never: above all strengths
    rank = spearmanr([row["distance"] for row in rows], needed)
    labels = ["source", *(f"exemplar {number}" for number in range(1, COUNT + 1))]
    numbers = {"threshold": threshold, "spearman": rank.statistic, "p": rank.pvalue, "rows": rows}
    finish(bench, "figure_6", sheet, labels, numbers)
    lines = [[r["source"], r["exemplar"], f"{r['distance']:.1f}", str(r["needed"] or "none"), f"{r['scores'][-1]:.3f}"]
             for r in rows]  # fmt: skip
    print(text_table([["source", "exemplar", "latent distance", "needed strength", "realism"], *lines]))
    print(f"realism threshold {threshold:.3f}; rank correlation {rank.statistic:.2f} (p = {rank.pvalue:.2g})")


STRENGTH = 0.2


@torch.no_grad()
def figure_8(bench: Bench, pairs: list[Pair]) -> None:
    """The control of Figure 6: one strength for the nearest and the farthest exemplar of four sources."""
    looks_real = fit_reference(bench, pairs)
    sheet, numbers = {}, []
    for pair, loaded in bench.loaded(pairs[:4], "figure 8"):
        ranked = distances(bench, pairs[:24], loaded)
        sheet[pair.id] = [to_picture(loaded["source"])]
        for distance, other in (ranked[0], ranked[-1]):
            given = with_exemplar(loaded, other, bench.size)
            edited = bench.edit("pixels", given, strength=STRENGTH, denoising_start=None)
            sheet[pair.id] += [to_picture(given["exemplars"][0]), to_picture(edited)]
            seen = looks_real(edited)
            numbers.append({"source": pair.id, "exemplar": other.id, "distance": distance, "realism": seen})
    labels = ["source", "nearest exemplar", "edited, strength 0.2", "farthest exemplar", "edited, strength 0.2"]
    finish(bench, "figure_8", sheet, labels, numbers)
    print(text_table([["source", "latent distance", "realism"],
                      *([n["source"], f"{n['distance']:.1f}", f"{n['realism']:.3f}"] for n in numbers)]))  # fmt: skip


STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def gradient(bench: Bench, pairs: list[Pair]) -> None:
    """From one scene to another along a ramp at several strengths: no figure of the paper, but its section on local
    strength in pictures. The numbers: the share of the way to the true picture (or exemplar) that each edit goes, per
    band of greys, from black to white."""
    sheet, numbers = {}, []
    for pair, loaded in bench.loaded(pairs[:6], "gradient"):
        edits = {strength: bench.edit("pixels", loaded, strength=strength, denoising_start=None).cpu()
                 for strength in STRENGTHS}  # fmt: skip
        if loaded["truth"] is not None:
            edits["truth"] = loaded["truth"]
        target = loaded["exemplars"][-1] if loaded["truth"] is None else loaded["truth"]
        given = loaded["source"], target, full_map(loaded, bench.size)
        shares = {str(name): transition(picture, *given).tolist() for name, picture in edits.items()}
        numbers.append({"item": pair.id, "share": shares})
        made = bench.edit("paste", loaded), *edits.values()
        sheet[pair.id] = [*inputs(loaded, bench.size), *map(to_picture, made)]
    columns = ["source", "exemplar", "map", "pasted", *(f"strength {s}" for s in STRENGTHS), "true picture"]
    finish(bench, "gradient", sheet, columns[: len(sheet[pairs[0].id])], numbers)


FIGURES = {"2": figure_2, "3": figure_3, "5": figure_5, "6": figure_6, "8": figure_8, "gradient": gradient}
