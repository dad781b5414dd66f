"""The figures that compare methods on one subject or several: each is a list of panels, all drawn by Study.compare."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import attrgetter
from statistics import fmean

import torch
from scipy.stats import spearmanr
from torch import Tensor

from common.claims import key_of
from common.data import Subject
from common.files import locked
from common.images import load_image
from common.runs import InputError, atomic_path, read_rows, write_json
from common.shards import Shard
from svdiff import combine, merging, options
from svdiff.reproduction.scores import (
    likeness,
    load_eye,
    scenes_of,
    seam,
    seen_in,
    sides,
    true_pictures,
    truths,
    usual_color,
)
from svdiff.reproduction.study import SPACES, Maker, Method, Panel, Scorer, Study, pair_name

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the rank analysis
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FROZEN = "--no-train_text_encoder"
# Fig. 5: all without the text encoder, like with like; and with it where the space has it, as is the default
ONE_SUBJECT = {**{f"{space}+frozen_text": [*SPACES[space], FROZEN] for space in ("svdiff", "full")}, **SPACES}
DRIFT = 4  # prompts without the subject, of which the drift is the mean
OFF, ON = ["--cut_mix_unmix_prob", "0"], ["--cut_mix_unmix_prob", "0.6"]
SEVERAL = {f"{space}{way}": [*SPACES[space], *flags] for space in ("svdiff", "full")
           for way, flags in (("+cut_mix", ON), ("", OFF), ("+unmix", ON))}  # fmt: skip
TOLD = "base, colours told"
NEGATIVE = "side by side, collage, split, on the left and on the right, at the top and at the bottom"


def subject_panel(study: Study, subject: Subject, methods: list[Method], prompts: int = 1) -> Panel:
    """One subject in new places; `prompts` of them on the sheet."""
    drawn = [(f"{subject.name}|{place}", prompt, likeness(study, subject, plain))
             for place, (prompt, plain) in enumerate(study.prompts(subject))]  # fmt: skip
    shown = tuple((place, 0) for place in range(min(prompts, len(drawn))))
    return Panel(subject.name, {"input": load_image(subject.paths[0])}, methods, drawn, shown=shown)


def pair_panel(study: Study, kind: str, subjects: tuple, methods: list[Method], prompts: list[str], score: Scorer):
    """Several subjects in one picture; two seeds on the sheet."""
    inputs = {f"input {number}": load_image(subject.paths[0]) for number, subject in enumerate(subjects, start=1)}
    drawn = [(f"{pair_name(subjects)}|{place}", prompt, score) for place, prompt in enumerate(prompts)]
    shown = tuple((0, seed) for seed in range(min(2, len(study.seeds))))
    return Panel(f"{pair_name(subjects)} ({kind})", inputs, methods, drawn, {"group": kind}, shown)


# ------------------------------------------------------------------------------------------------------- one subject


def of_subjects(study: Study, methods: Callable[[Subject], list[Method]], file: str, prompts: int = 1) -> None:
    """A figure of every subject in new places."""
    study.compare([subject_panel(study, one, methods(one), prompts) for one in study.subjects], file)


def single(study: Study) -> None:
    """Fig. 5 and 9b: all parameter spaces in new places, and what else they change. References: the untuned model; on
    the picturebook the true pictures, and those of a twin."""

    def methods(subject: Subject) -> list[Method]:
        return [Method(name, partial(study.tuned, subject, name, *flags)) for name, flags in ONE_SUBJECT.items()]

    def drawn(subject: Subject) -> list[Method]:
        places = {prompt: place for place, (prompt, _) in enumerate(study.prompts(subject))}

        def make(true: Tensor, prompt: str) -> Maker:
            return lambda seeds: true[[places[prompt]] * len(seeds)]

        found = [Method("base", shown=False)]
        return found + [Method(name, make=partial(make, true), shown=False)
                        for name, true in truths(study, subject).items()]  # fmt: skip

    kept: dict[str, Tensor] = {}
    for subject in study.args.shard.of(study.subjects):
        for method in methods(subject):
            drift(study, subject, method, kept)
    of_subjects(study, lambda subject: [*methods(subject), *drawn(subject)], "figure5.png", prompts=2)
    scatter(study)


def drift(study: Study, subject: Subject, method: Method, kept: dict[str, Tensor]) -> None:
    """How far pictures move that do not ask for the subject: prompts without a token, of its class and of the DRIFT - 1
    subjects after it. (1 - DINO's cosine with the base's picture of the same noise) / 2, the drift score of peft's
    image benchmark. kept: the base's pictures by prompt."""
    item, dino = f"{subject.name}|drift", study.encoders.dino
    if not study.missing(method.name, item):
        return
    place = study.every.index(subject)
    prompts = [study.prompts(one)[0][1] for one in (study.every[place:] + study.every[:place])[:DRIFT]]
    for prompt in prompts:
        if prompt not in kept:
            kept[prompt] = study.sampled(prompt)(study.seeds)
    with merging.applied(study.pipe, method.change(), bases=study.bases):
        moved = torch.stack([study.sampled(prompt)(study.seeds) for prompt in prompts])
    base = torch.stack([kept[prompt] for prompt in prompts])
    alike = torch.cosine_similarity(*(dino.embed(one.flatten(0, 1)) for one in (moved, base)), dim=-1)
    for seed, cosine in zip(study.seeds, alike.unflatten(0, base.shape[:2]).mean(0), strict=True):
        if seed in study.missing(method.name, item):
            study.record(method.name, item, seed, {f"drift_score ({dino.label})": (1 - cosine.item()) / 2})


def scatter(study: Study) -> None:
    """Fig. 9b: text alignment across, image alignment up, a point per picture, large ones for means."""
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    rows, figure = read_rows(study.rows), Figure((5, 4), layout="constrained")
    axis, keys = figure.subplots(), [key_of(rows, name) for name in ("CLIP-T", "image_alignment")]
    for method, color in zip(ONE_SUBJECT, color_sequences["tab10"], strict=False):
        own = [row["metrics"] for row in rows if row["method"] == method]
        text, image = ([metrics[key] for metrics in own if key in metrics] for key in keys)
        axis.scatter(text, image, s=8, alpha=0.4, color=color)
        axis.scatter(fmean(text), fmean(image), s=90, color=color, label=method)
    axis.set(xlabel="text alignment (CLIP)", ylabel="image alignment (1 - LPIPS)")
    axis.legend()
    with atomic_path(study.output / "figure9b.png") as temporary:
        figure.savefig(temporary, dpi=120)


def ablation(study: Study) -> None:
    """Table 1's subsets, trained and scored (Sec. 4.4; the paper's scores are in an appendix that is not public)."""
    of_subjects(study, lambda subject: [
        Method(name, partial(subset, study, subject, name)) for name in options.SUBSETS
    ], "ablation.png")  # fmt: skip


def subset(study: Study, subject: Subject, name: str) -> merging.Change:
    """Shifts of one subset of the UNet's layers alone."""
    return study.tuned(subject, name, *SPACES["svdiff"], "--parameter_subset", name, FROZEN)


def rank(study: Study) -> None:
    """Of every layer only the shifts of its largest singular values are kept (Sec. 4.4 names the analysis)."""
    of_subjects(study, lambda subject: [
        Method(f"share {share:g}", partial(truncated, study, subject, share)) for share in SHARES
    ], "rank.png")  # fmt: skip


def truncated(study: Study, subject: Subject, share: float) -> merging.Change:
    """Of every matrix the shifts of its largest singular values; vectors, which have no such order, whole."""
    change = study.tuned(subject)
    weights = {name: attrgetter(name.replace(".delta", ".weight"))(study.pipe) for name in change}
    return combine.truncate(change, share, [name for name, weight in weights.items() if weight.ndim == 1])


def scaling(study: Study) -> None:
    """All shifts are multiplied, inside of the ReLU (Sec. 4.4 names the analysis)."""
    of_subjects(study, lambda subject: [
        Method(f"scale {scale:g}", partial(study.tuned, subject), scale) for scale in SCALES
    ], "scaling.png")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- two and more


def prompts_of(study: Study, phrases: list[str]) -> list[str]:
    """As many as --prompts asks for. phrases: one for each subject."""
    return options.inference_prompts(study.args.pretrained_model_name_or_path, phrases)[: study.args.prompts]


def groups(study: Study, fit: Callable[[tuple], bool]) -> list[tuple[str, tuple]]:
    """Similar and dissimilar pairs, and one group of three, that are `fit`."""
    found = study.pairs(fit)
    first = dict(reversed(found))  # the first pair of each kind
    if len(first) == 2:
        third = [subject for subject in first["dissimilar"] if subject not in first["similar"]]
        found += [("three", three) for subject in third[:1] if fit(three := (*first["similar"], subject))]
    return found


def multi(study: Study) -> None:
    """Fig. 6: two and three subjects in one picture, with and without Cut-Mix-Unmix, shifts and full weights."""
    gate, panels = Gate(study), []
    negative = replace(study.how, negative_prompt=NEGATIVE)
    for kind, subjects in groups(study, gate.passed):
        methods = [Method(name, partial(of_several, study, subjects, name)) for name in SEVERAL]
        methods.append(Method("svdiff+cut_mix+negative", methods[0].change, shown=False,
                              make=lambda prompt: study.sampled(prompt, negative)))  # fmt: skip
        prompts = prompts_of(study, [study.phrase(subject) for subject in subjects])
        methods += reference_rows(study, subjects)
        panels.append(pair_panel(study, kind, subjects, methods, prompts, together(study, subjects)))
    if panels:
        study.compare(panels, "figure6.png")
    else:
        print("nothing is trained (--gate 0 does)")


def of_several(study: Study, subjects: tuple, method: str) -> merging.Change:
    more = ["--unmix_weight", str(study.args.unmix_weight)] if method.endswith("unmix") else []
    concepts = [study.concept(subject) for subject in subjects]
    return study.trained(f"{pair_name(subjects)}-{method}", concepts, *SEVERAL[method], *more)


def together(study: Study, subjects: tuple) -> Scorer:
    return lambda picture: {**seen_in(study, subjects, picture), "seam": seam(picture)}


def reference_rows(study: Study, subjects: tuple) -> list[Method]:
    """What the picturebook knows of a group: the untuned model's pictures, told in words that it knows (kind and
    colour), and drawings: of all of the group, which are to be seen, and of the first alone, over and over, which is
    not all of them. None without a classifier that knows them."""
    from common.picturebook.scenes import Thing, thing_words

    if (eye := load_eye(study)) is None:
        return []
    things = [Thing(subject.class_name, usual_color(subject, eye)) for subject in subjects]
    looks = [thing_words(thing, mention=lambda attribute: attribute != "facing") for thing in things]
    drawings = {"true picture": subjects, "the first, repeated": subjects[:1] * len(subjects)}
    return [Method(TOLD, prompts=prompts_of(study, looks))] + [
        Method(name, shown=False, make=lambda prompt, drawn=drawn: partial(true_pictures, drawn, prompt))
        for name, drawn in drawings.items() if scenes_of(subjects)
    ]  # fmt: skip


class Gate:
    """Where the untuned model, told the colours, does not show all of a group in at least --gate of the pictures, no
    training on that group can be judged: it cannot draw them in words that it knows. Kept in gate.json."""

    def __init__(self, study: Study):
        self.study, self.panels, self.shown = study, [], {}

    def passed(self, subjects: tuple) -> bool:
        study, name, least = self.study, pair_name(subjects), self.study.args.gate
        if not (told := reference_rows(study, subjects)[:1]):
            return True
        self.panels.append(pair_panel(study, "gate", subjects, told, told[0].prompts, together(study, subjects)))
        with locked(study.output / "gate.json"):  # every shard has to know it
            study.compare(self.panels, "gate.png", Shard())
        seen = [row["metrics"]["both_present"] for row in read_rows(study.rows)
                if row["method"] == TOLD and row["item"].startswith(f"{name}|")]  # fmt: skip
        share = self.shown[name] = 0.0 if any(map(math.isnan, seen)) else fmean(seen)
        write_json(study.output / "gate.json", {"least": least, "shown": self.shown})
        print(f"gate: told the colours, the untuned model shows all of {name} in {100 * share:.0f} % of the pictures, "
              f"asked for are {100 * least:.0f}{'' if share >= least else ': left out'}")  # fmt: skip
        return share >= least


def combination(study: Study) -> None:
    """Fig. 8: subjects trained apart, added up (Eq. 4): shifts against differences of full weights."""

    def added(subjects: tuple, space: str) -> merging.Change:
        return combine.add([study.tuned(subject, space) for subject in subjects])  # Eq. 4

    panels = []
    for kind, subjects in study.pairs():
        methods = [Method(space, partial(added, subjects, space)) for space in ("svdiff", "full")]
        prompts = prompts_of(study, [study.phrase(subject) for subject in subjects])
        panels.append(pair_panel(study, kind, subjects, methods, prompts, partial(seen_in, study, subjects)))
    study.compare(panels, "figure8.png")


def style(study: Study) -> None:
    """Fig. 10: geometry from the second subject's shifts in a span of layers, everything else from the first's."""
    span, panels = study.args.geometry_layers, []
    combine.span(study.pipe.unet, *span)  # refuses layers that there are not, before anything is trained
    rules = {
        "appearance": lambda one, two: one,
        "mixed": lambda one, two: merging.style_mix(study.pipe, one, two, *span),
        "added": lambda one, two: combine.add([one, two]),
    }

    def change(subjects: tuple, name: str) -> merging.Change:
        return rules[name](*(subset(study, subject, "UNet-2D") for subject in subjects))

    for kind, subjects in study.pairs():
        methods = [Method(name, partial(change, subjects, name)) for name in rules]
        prompt, plain = study.prompts(subjects[0])[0]
        panels.append(pair_panel(study, kind, subjects, methods, [prompt], likeness(study, subjects[0], plain)))
    study.compare(panels, "figure10.png")


def interpolation(study: Study) -> None:
    """Fig. 11: from one class to another under the shared word "thing" (Eq. 5), shifts and full weights."""
    chosen = [subjects for kind, subjects in study.pairs() if kind == "dissimilar"]
    if not chosen:
        raise InputError("this figure passes between classes: name --subjects of two that are not both alive, and let "
                         "--pairs ask for dissimilar ones")  # fmt: skip

    def between(subjects: tuple, space: str, alpha: float) -> merging.Change:
        ends = [study.trained(f"{subject.name}-thing-{space}", [study.concept(subject, "thing", "sks")], *SPACES[space])
                for subject in subjects]  # fmt: skip
        return combine.interpolate(*ends, alpha)  # Eq. 5

    panels = []
    for subjects in chosen:
        methods = [Method(f"{space}|{alpha}", partial(between, subjects, space, alpha))
                   for space in ("svdiff", "full") for alpha in ALPHAS]  # fmt: skip
        inputs = {name: load_image(subject.paths[0]) for name, subject in zip("AB", subjects, strict=True)}
        told = study.concept(subjects[0], "thing", "sks").instance_prompt
        drawn = [(pair_name(subjects), told, partial(sides, study, subjects))]
        panels.append(Panel(pair_name(subjects), inputs, methods, drawn))
    study.compare(panels, "figure11.png")
    with locked(study.output / "order"):  # of two shards that end at once
        for subjects in chosen:
            for space in ("svdiff", "full"):
                order(study, space, pair_name(subjects))


def order(study: Study, space: str, name: str) -> None:
    """A row per seed: the rank correlation of alpha with what is seen of A less of B. 0 where nothing changes."""
    rows = [row for row in read_rows(study.rows) if row["item"] == name]
    seen = {(row["method"], row["seed"]): row["metrics"].get("A minus B") for row in rows}
    for seed in study.missing(space, name):
        line = [seen[f"{space}|{alpha}", seed] for alpha in ALPHAS]
        if None not in line:  # there is a classifier
            found = spearmanr(ALPHAS, line).statistic if len(set(line)) > 1 else 0.0
            study.record(space, name, seed, {"order": 0.0 if math.isnan(found) else float(found)})
