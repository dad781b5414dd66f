"""The paper's figures drawn anew. Figures 4, 7 and 10 are rows of pixels.eval."""

from typing import Any

import torch
from PIL import Image
from scipy.stats import spearmanr
from tqdm import tqdm

from common.images import grid, load_image, save_png
from common.runs import InputError, write_json
from common.tables import text_table
from pixels.frames import frame_tensor, to_picture
from pixels.options import DRAWN
from pixels.preview import cells
from pixels.reproduction import realism
from pixels.reproduction.measures import seam, transition
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, full_map, load_pair
from pixels.surgery import edit


def finish(bench: Bench, name: str, sheet: list, rows: list[str], columns: list[str], numbers: Any) -> None:
    """The figure's picture and numbers, and where they are."""
    save_png(bench.output / f"{name}.png", grid(sheet, rows, columns))
    write_json(bench.output / f"{name}.json", numbers)
    print(f"{bench.output / f'{name}.png'}, numbers beside it")


def inputs(loaded: dict[str, Any], size: tuple[int, int]) -> list[Image.Image]:
    """Source, first exemplar and map as pictures."""
    full = full_map(loaded, size)
    return [to_picture(loaded["source"]), to_picture(loaded["exemplars"][0]), to_picture(full.expand(-1, 3, -1, -1))]


COMPARED = ["paste", "latent_paste", "perturbed", "pixels"]


def figure_2(bench: Bench, pairs: list[Pair]) -> None:
    """Transition artifacts of the naive solution beside the method, and how high each seam is."""
    sheet, numbers = [], []
    for pair in tqdm(pairs[:6], "figure 2", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = {method: bench.edit(method, loaded).cpu() for method in COMPARED}
        full = full_map(loaded, bench.size)
        real = [loaded["source"], *loaded["exemplars"]]
        numbers.append({"item": pair.id, **{method: seam(edits[method], real, full) for method in COMPARED}})
        sheet.append([*inputs(loaded, bench.size), *(to_picture(edits[method]) for method in COMPARED)])
    finish(bench, "figure_2", sheet, [pair.id for pair in pairs[:6]], ["source", "exemplar", "map", *COMPARED], numbers)
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

    def shown_part(latents: torch.Tensor, mask: torch.Tensor):
        return to_picture(backbone.decode(latents).cpu() * cells(mask.cpu(), loaded["source"]))

    sheet = [
        [shown_part(step.noised, step.keep) for step in shown],
        [shown_part(step.residue, ~step.keep) for step in shown],
    ]
    shares = [{"timestep": step.timestep, "kept": step.keep.float().mean().item()} for step in trace]
    labels = ["z_1^t * mask_t", "z_mix^(t+1) * (1 - mask_t)"]
    finish(bench, "figure_3", sheet, labels, [f"t = {step.timestep:g}" for step in shown], shares)


PAPER_PROMPTS = ["", "boat", "watercolor style", "low poly aesthetic, big monster"]
PICTUREBOOK_PROMPTS = ["", "at night", "a pencil sketch", "a red boat by the sea"]
TEXT_GUIDANCE = 7.5  # at least so much where there is a prompt: without guidance the words hardly count


def figure_5(bench: Bench, pairs: list[Pair]) -> None:
    """Exemplar and words together. Rows: pairs; columns: prompts, --prompts or the defaults."""
    prompts = bench.args.prompts or (PICTUREBOOK_PROMPTS if bench.args.dataset in DRAWN else PAPER_PROMPTS)
    guidance = max(bench.sampling.guidance_scale, TEXT_GUIDANCE)
    sheet = []
    for pair in tqdm(pairs[:4], "figure 5", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = [bench.edit("pixels", loaded, prompt=p, **({"guidance_scale": guidance} if p else {})) for p in prompts]
        sheet.append([*inputs(loaded, bench.size), *map(to_picture, edits)])
    labels = ["source", "exemplar", "map", *(repr(prompt) for prompt in prompts)]
    finish(bench, "figure_5", sheet, [pair.id for pair in pairs[:4]], labels, {"prompts": prompts})


COUNT = 6  # sources, and exemplars of each


@torch.no_grad()
def figure_6(bench: Bench, pairs: list[Pair]) -> None:
    """The strength that an edit needs to look real grows with the distance of source and exemplar: for six sources and
    six exemplars of each, edits of rising strength until one looks as real as the inputs do on average. The rank
    correlation is the claim."""
    looks_real, pool = realism.fit_reference(bench, pairs), pairs[: 4 * COUNT]
    given = [frame_tensor(load_image(path), bench.size, "squash") for p in pool for path in (p.source, p.exemplars[0])]
    threshold = sum(map(looks_real, given)) / len(given)
    rows, sheet = [], []
    for pair in tqdm(pool[:COUNT], "strengths", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = realism.distances(bench, pool, loaded)
        sheet.append([to_picture(loaded["source"])])
        for distance, other in (ranked[round(k * (len(ranked) - 1) / (COUNT - 1))] for k in range(COUNT)):
            scores, needed = [], None
            for strength in (k / 10 for k in range(1, 11)):
                edited = bench.edit("pixels", realism.with_exemplar(loaded, other, bench.size), strength=strength,
                                    denoising_start=None)  # fmt: skip
                scores.append(looks_real(edited))
                if scores[-1] >= threshold:
                    needed = strength
                    break
            rows.append({"source": pair.id, "exemplar": other.id, "distance": distance, "needed": needed,
                         "scores": scores})  # fmt: skip
            sheet[-1].append(to_picture(edited))
    needed = [1.1 if row["needed"] is None else row["needed"] for row in rows]  # never: above all strengths
    rank = spearmanr([row["distance"] for row in rows], needed)
    labels = ["source", *(f"exemplar {number}" for number in range(1, COUNT + 1))]
    numbers = {"threshold": threshold, "spearman": rank.statistic, "p": rank.pvalue, "rows": rows}
    finish(bench, "figure_6", sheet, [row["source"] for row in rows[::COUNT]], labels, numbers)
    lines = [[r["source"], r["exemplar"], f"{r['distance']:.1f}", str(r["needed"] or "none"), f"{r['scores'][-1]:.3f}"]
             for r in rows]  # fmt: skip
    print(text_table([["source", "exemplar", "latent distance", "needed strength", "realism"], *lines]))
    print(f"realism threshold {threshold:.3f}; rank correlation {rank.statistic:.2f} (p = {rank.pvalue:.2g})")


STRENGTH = 0.2


@torch.no_grad()
def figure_8(bench: Bench, pairs: list[Pair]) -> None:
    """The control of Figure 6: one strength for the nearest and the farthest exemplar of four sources."""
    looks_real = realism.fit_reference(bench, pairs)
    sheet, numbers = [], []
    for pair in tqdm(pairs[:4], "figure 8", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = realism.distances(bench, pairs[:24], loaded)
        row = [to_picture(loaded["source"])]
        for distance, other in (ranked[0], ranked[-1]):
            given = realism.with_exemplar(loaded, other, bench.size)
            edited = bench.edit("pixels", given, strength=STRENGTH, denoising_start=None)
            row += [to_picture(given["exemplars"][0]), to_picture(edited)]
            seen = looks_real(edited)
            numbers.append({"source": pair.id, "exemplar": other.id, "distance": distance, "realism": seen})
        sheet.append(row)
    labels = ["source", "nearest exemplar", "edited, strength 0.2", "farthest exemplar", "edited, strength 0.2"]
    finish(bench, "figure_8", sheet, [pair.id for pair in pairs[:4]], labels, numbers)
    print(text_table([["source", "latent distance", "realism"],
                      *([n["source"], f"{n['distance']:.1f}", f"{n['realism']:.3f}"] for n in numbers)]))  # fmt: skip


STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def gradient(bench: Bench, pairs: list[Pair]) -> None:
    """From one scene to another along a ramp at several strengths: no figure of the paper, but its section on local
    strength in pictures. The numbers: the share of the way to the true picture (or exemplar) that each edit goes, per
    band of greys, from black to white."""
    sheet, numbers = [], []
    for pair in tqdm(pairs[:6], "gradient", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = {strength: bench.edit("pixels", loaded, strength=strength, denoising_start=None).cpu()
                 for strength in STRENGTHS}  # fmt: skip
        if loaded["truth"] is not None:
            edits["truth"] = loaded["truth"]
        target = loaded["exemplars"][-1] if loaded["truth"] is None else loaded["truth"]
        given = loaded["source"], target, full_map(loaded, bench.size)
        shares = {str(name): transition(picture, *given).tolist() for name, picture in edits.items()}
        numbers.append({"item": pair.id, "share": shares})
        pasted = bench.edit("paste", loaded)
        sheet.append([*inputs(loaded, bench.size), to_picture(pasted), *map(to_picture, edits.values())])
    columns = ["source", "exemplar", "map", "pasted", *(f"strength {s}" for s in STRENGTHS)]
    columns += ["true picture"] * (len(sheet[0]) - len(columns))
    finish(bench, "gradient", sheet, [pair.id for pair in pairs[:6]], columns, numbers)


FIGURES = {"2": figure_2, "3": figure_3, "5": figure_5, "6": figure_6, "8": figure_8, "gradient": gradient}
