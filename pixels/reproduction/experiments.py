"""The paper's figures drawn anew, and its claims about strength, thresholds and Lemma 1 tried.

Each experiment is a function of a Bench and its pairs; it writes <name>.png and <name>.json into the output folder and
prints its numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tqdm import tqdm

from common.images import grid, load_image, save_png, to_pil
from common.runs import InputError, paired_bootstrap, write_json
from common.tables import text_table
from pixels.edit_map import THRESHOLDS, thresholds
from pixels.frames import frame_tensor
from pixels.reproduction import lemma as lemmas
from pixels.reproduction.baselines import cell_masks
from pixels.reproduction.measures import fit_realism, seam
from pixels.reproduction.overhead import overhead
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair
from pixels.surgery import edit, least

PAPER_PROMPTS = ["", "boat", "watercolor style", "low poly aesthetic, big monster"]  # Fig. 5
PICTUREBOOK_PROMPTS = ["", "at night", "a pencil sketch", "a red boat by the sea"]
TEXT_GUIDANCE = 7.5  # at least so much where there is a prompt: without guidance the words hardly count


def finish(bench: Bench, name: str, sheet: list, rows: list[str], columns: list[str], numbers: Any) -> None:
    """The experiment's picture and numbers, and where they are."""
    save_png(bench.output / f"{name}.png", grid(sheet, rows, columns))
    write_json(bench.output / f"{name}.json", numbers)
    print(f"{bench.output / f'{name}.png'}, numbers beside it")


def inputs(loaded: dict[str, Any], size: tuple[int, int]) -> list:
    """Source, first exemplar and map as pictures."""
    full = least([F.interpolate(m, size, mode="bilinear") for m in loaded["maps"]])
    return [to_pil(loaded["source"]), to_pil(loaded["exemplars"][0]), to_pil(full.expand(-1, 3, -1, -1))]


def figure_2(bench: Bench, pairs: list[Pair]) -> None:
    """Transition artifacts of the naive solution beside the method, and how high each seam is."""
    methods = ["paste", "latent_paste", "perturbed", "pixels"]
    sheet, numbers = [], []
    for pair in tqdm(pairs[:6], "figure 2", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = {method: bench.edit(method, loaded).cpu() for method in methods}
        full = least([F.interpolate(m, bench.size, mode="bilinear") for m in loaded["maps"]])
        real = [loaded["source"], *loaded["exemplars"]]
        numbers.append({"item": pair.id, **{method: seam(edits[method], real, full) for method in methods}})
        sheet.append([*inputs(loaded, bench.size), *(to_pil(edits[method]) for method in methods)])
    finish(bench, "figure_2", sheet, [pair.id for pair in pairs[:6]], ["source", "exemplar", "map", *methods], numbers)
    lines = [[row["item"], *(f"{row[method]:.1f}" for method in methods)] for row in numbers]
    print(text_table([["seam (grey levels)", *methods], *lines]))


def figure_3(bench: Bench, pairs: list[Pair]) -> None:
    """Line 15 over time: above what is put back from the noised source, below what stays from the network."""
    loaded, trace = load_pair(pairs[0], bench.size), []
    backbone = bench.bind(loaded)
    generator = torch.Generator().manual_seed(bench.args.seed)
    edit(backbone, loaded["source"], loaded["exemplars"], loaded["maps"], bench.surgery, generator, trace)
    if not trace:
        raise InputError("--figure 3 shows the steps after the first: run at least two")
    shown = [trace[round(k * (len(trace) - 1) / 5)] for k in range(6)]

    def pixels(latents: torch.Tensor, mask: torch.Tensor):
        return to_pil(backbone.decode(latents).cpu() * F.interpolate(mask.float(), bench.size, mode="nearest").cpu())

    sheet = [
        [pixels(step.noised, step.keep) for step in shown],
        [pixels(step.residue, ~step.keep) for step in shown],
    ]
    shares = [{"timestep": step.timestep, "kept": step.keep.float().mean().item()} for step in trace]
    labels = ["z_1^t * mask_t", "z_mix^(t+1) * (1 - mask_t)"]
    finish(bench, "figure_3", sheet, labels, [f"t = {step.timestep:g}" for step in shown], shares)


def figure_5(bench: Bench, pairs: list[Pair]) -> None:
    """Exemplar and words together."""
    on_picturebook = bench.args.dataset == "picturebook"
    prompts = bench.args.prompts or (PICTUREBOOK_PROMPTS if on_picturebook else PAPER_PROMPTS)
    guidance = max(bench.sampling.guidance_scale, TEXT_GUIDANCE)
    sheet = []
    for pair in tqdm(pairs[:4], "figure 5", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = [bench.edit("pixels", loaded, prompt=p, **({"guidance_scale": guidance} if p else {})) for p in prompts]
        sheet.append([*inputs(loaded, bench.size), *map(to_pil, edits)])
    labels = ["source", "exemplar", "map", *(repr(prompt) for prompt in prompts)]
    finish(bench, "figure_5", sheet, [pair.id for pair in pairs[:4]], labels, {"prompts": prompts})


# ------------------------------------------------------------------------------------------- strength (Fig. 6 and 8)


def fit_reference(bench: Bench, pairs: list[Pair]):
    """The realism score: a mixture fitted to real pictures, 400 fresh scenes of the picturebook or the sources."""
    embedder = bench.eyes.fid[0]
    if bench.args.dataset == "picturebook":
        from common.picturebook.drawing import draw
        from common.picturebook.scenes import sample_scene

        pictures = (draw(sample_scene(10**9 + number)).picture for number in range(400))
    else:
        if len(pairs) < 150:
            raise InputError(
                f"--figure 6 and 8 fit their realism score to at least 150 sources; there are {len(pairs)}"
            )
        pictures = (load_image(pair.source) for pair in pairs)
    features = torch.cat([embedder.embed(frame_tensor(picture, bench.size, "squash")) for picture in pictures])
    mixture = fit_realism(features)
    return lambda picture: mixture.score(embedder.embed(picture.cpu())).item()


def distances(bench: Bench, pairs: list[Pair], loaded: dict[str, Any]) -> list[tuple[float, Pair]]:
    """Every pair's exemplar by the Euclidean distance of its latent from the source's, nearest first."""
    backbone = bench.bind(loaded)
    source = backbone.encode(loaded["source"], False, None)
    found = []
    for pair in pairs:
        exemplar = frame_tensor(load_image(pair.exemplars[0]), bench.size, "squash")
        found.append(((backbone.encode(exemplar, False, None) - source).norm().item(), pair))
    return sorted(found, key=lambda entry: entry[0])


def with_exemplar(loaded: dict[str, Any], other: Pair, size: tuple[int, int]) -> dict[str, Any]:
    """A loaded pair with another pair's exemplar under its own first map."""
    exemplar = frame_tensor(load_image(other.exemplars[0]), size, "squash")
    return {**loaded, "exemplars": [exemplar], "maps": loaded["maps"][:1]}


@torch.no_grad()
def strength_runs(bench: Bench, pairs: list[Pair], sources: int, exemplars: int) -> tuple[list[dict], list, float]:
    """For each source and each of its exemplars, edits of rising strength until one looks as real as the inputs do on
    average. Rows {"source", "exemplar", "distance", "needed", "scores", …}, pictures alike, and the threshold."""
    realism = fit_reference(bench, pairs)
    pool = pairs[: max(exemplars * 4, sources)]
    inputs_seen = [
        frame_tensor(load_image(path), bench.size, "squash") for p in pool for path in (p.source, p.exemplars[0])
    ]
    threshold = sum(map(realism, inputs_seen)) / len(inputs_seen)
    strengths = [k / 10 for k in range(1, 11)]
    rows, sheet = [], []
    for pair in tqdm(pool[:sources], "strengths", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = distances(bench, pool, loaded)
        chosen = [ranked[round(k * (len(ranked) - 1) / (exemplars - 1))] for k in range(exemplars)]
        pictures = []
        for distance, other in chosen:
            given = with_exemplar(loaded, other, bench.size)
            scores, best = [], None
            for strength in strengths:
                best = bench.edit("pixels", given, strength=strength, denoising_start=None)
                scores.append(realism(best))
                if scores[-1] >= threshold:
                    break
            needed = strengths[len(scores) - 1] if scores[-1] >= threshold else None
            rows.append(
                {"source": pair.id, "exemplar": other.id, "distance": distance, "needed": needed, "scores": scores}
            )
            pictures.append(to_pil(best))
        sheet.append([to_pil(loaded["source"]), *pictures])
    return rows, sheet, threshold


def figure_6(bench: Bench, pairs: list[Pair]) -> None:
    """The strength that an edit needs to look real, against the distance of source and exemplar."""
    rows, sheet, threshold = strength_runs(bench, pairs, sources=min(6, len(pairs)), exemplars=6)
    needed = [1.1 if row["needed"] is None else row["needed"] for row in rows]  # never: above all strengths
    rank = spearmanr([row["distance"] for row in rows], needed)
    labels = ["source", *(f"exemplar {number}" for number in range(1, 7))]
    numbers = {"threshold": threshold, "spearman": rank.statistic, "p": rank.pvalue, "rows": rows}
    finish(bench, "figure_6", sheet, [row["source"] for row in rows[::6]], labels, numbers)
    lines = [[r["source"], r["exemplar"], f"{r['distance']:.1f}", str(r["needed"] or "none"), f"{r['scores'][-1]:.3f}"]
             for r in rows]  # fmt: skip
    print(text_table([["source", "exemplar", "latent distance", "needed strength", "realism"], *lines]))
    print(f"realism threshold {threshold:.3f}; rank correlation {rank.statistic:.2f} (p = {rank.pvalue:.2g})")


@torch.no_grad()
def figure_8(bench: Bench, pairs: list[Pair]) -> None:
    """The control of Figure 6: one strength, 0.2, for the nearest and the farthest exemplar."""
    realism = fit_reference(bench, pairs)
    sheet, numbers = [], []
    for pair in tqdm(pairs[:4], "figure 8", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = distances(bench, pairs[:24], loaded)
        row = [to_pil(loaded["source"])]
        for distance, other in (ranked[0], ranked[-1]):
            given = with_exemplar(loaded, other, bench.size)
            edited = bench.edit("pixels", given, strength=0.2, denoising_start=None)
            row += [to_pil(given["exemplars"][0]), to_pil(edited)]
            numbers.append({"source": pair.id, "exemplar": other.id, "distance": distance, "realism": realism(edited)})
        sheet.append(row)
    labels = ["source", "nearest exemplar", "edited, strength 0.2", "farthest exemplar", "edited, strength 0.2"]
    finish(bench, "figure_8", sheet, [pair.id for pair in pairs[:4]], labels, numbers)
    print(text_table([["source", "latent distance", "realism"],
                      *([n["source"], f"{n['distance']:.1f}", f"{n['realism']:.3f}"] for n in numbers)]))  # fmt: skip


def threshold_areas(bench: Bench) -> str:
    """Area under each threshold's curve (Fig. 11): the share of cells and steps that a ramp of all greys lets go."""
    loaded_steps = len(bench.bind({"exemplars": [None]}).start())
    lines = [[name, f"{thresholds(name, loaded_steps, bench.surgery.schedule).mean():.4f}"] for name in THRESHOLDS]
    return text_table([["threshold", f"area under the curve, N = {loaded_steps}"], *lines])


EXPECTED = {"log": "more", "quadratic": "less", "cubic": "less", "sigmoid": "much like linear"}  # Sec. 5, Appendix 5


def threshold_changes(rows: list[dict]) -> str:
    """The claims of Figures 7 and 10: how much more than under the linear threshold the grey zone leaves the source,
    paired over items, with 95 % intervals; what the paper expects beside it."""
    change = {(row["method"], row["item"]): row["metrics"]["mse_grey"] for row in rows}
    items = [item for method, item in change if method == "pixels"]
    ran = {method for method, _ in change}
    lines = []
    for name, expected in EXPECTED.items():
        if not {"pixels", f"pixels_{name}"} <= ran:
            continue
        pairs = [(change[f"pixels_{name}", item], change["pixels", item]) for item in items]
        mean, low, high = (1e4 * value for value in paired_bootstrap(*zip(*pairs, strict=True)))
        lines.append([name, f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", expected])
    return text_table([["threshold", "change of the grey zone - linear's, MSE x1e4", "the paper expects"], *lines])


# ----------------------------------------------------------------------------------------------------------- lemma 1


def lemma(bench: Bench, pairs: list[Pair], p: float = 0.05) -> None:
    """Surgical latents of several pairs and strengths through the reverse SDE: distances beside both bounds."""
    lines, numbers = [], []
    header = ["strength", "sigma", "k", "runs", "mean |x0 - xt|^2", "paper's bound", "holds", "with B of the start",
              "holds", "corrected bound", "holds"]  # fmt: skip
    for strength in (0.2, 0.5, 0.8):
        trials = []
        for number, pair in enumerate(
            tqdm(pairs[: max(bench.args.repeats // 4, 1)], f"strength {strength}", disable=None)
        ):
            loaded = load_pair(pair, bench.size)
            backbone = bench.bind(loaded, strength=strength, denoising_start=None)
            z = backbone.encode(loaded["source"], False, None)
            for exemplar, mask in zip(
                loaded["exemplars"], cell_masks(backbone, loaded["source"], loaded["maps"]), strict=True
            ):
                z = torch.where(mask.to(z.device) > 0, z, backbone.encode(exemplar, False, None))
            generator = torch.Generator().manual_seed(bench.args.seed + number)
            trials += lemmas.experiment(backbone, z, generator)
        first, count = trials[0], len(trials)
        worst, start = max(t.score_bound for t in trials), max(t.at_start for t in trials)
        mean = sum(t.distance for t in trials) / count
        bounds = {
            "paper": lemmas.paper_bound(first.sigma, worst, first.k, p),
            "paper_start": lemmas.paper_bound(first.sigma, start, first.k, p),
            "corrected": lemmas.corrected_bound(first.sigma, worst, first.k, p),
        }
        holds = {name: sum(t.distance <= bound for t in trials) / count for name, bound in bounds.items()}
        numbers.append({"strength": strength, "sigma": first.sigma, "k": first.k, "mean": mean, "runs": count, "p": p,
                        "bounds": bounds, "holds": holds, "distances": [t.distance for t in trials]})  # fmt: skip
        cells = [cell for name, bound in bounds.items() for cell in (f"{bound:.4g}", f"{100 * holds[name]:.0f} %")]
        lines.append([f"{strength}", f"{first.sigma:.3f}", str(first.k), str(count), f"{mean:.4g}", *cells])
    write_json(bench.output / "lemma.json", numbers)
    print(text_table([header, *lines]))
    print(f"p = {p}: a bound should hold in at least {100 * (1 - p):.0f} % of the runs; {bench.output / 'lemma.json'}")


EXPERIMENTS: dict[str, Callable[[Bench, list[Pair]], None]] = {
    "figure_2": figure_2,
    "figure_3": figure_3,
    "figure_5": figure_5,
    "figure_6": figure_6,
    "figure_8": figure_8,
    "lemma": lemma,
    "overhead": overhead,
}
