"""The figures that compare methods on one subject or several: each is a list of panels, all drawn by `compare`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scipy.stats import spearmanr

from common.data import Subject
from common.images import grid, load_image, save_png
from common.pipelines import is_picturebook
from common.runs import InputError, append_row, read_rows, write_json
from svdiff import combine, editing, merging, options
from svdiff.basis import tunable
from svdiff.reproduction.plots import scatter
from svdiff.reproduction.scores import (
    Scorer,
    likeness,
    load_eye,
    references,
    seam,
    seen_in,
    sides,
    usual_color,
)
from svdiff.reproduction.study import (
    SPACES,
    Study,
    applied,
    concept,
    draw,
    is_done,
    pair_name,
    pairs,
    phrase,
    prompted,
    prompts_of,
    read_pictures,
    training,
    tuned,
)

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the rank analysis
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FROZEN = "--no-train_text_encoder"
# Fig. 5: as the scripts train by default, and all three without the text encoder, like with like
ONE_SUBJECT = {**SPACES, **{f"{space}+frozen_text": [*SPACES[space], FROZEN] for space in ("svdiff", "full")}}
OFF, ON = ["--cut_mix_unmix_prob", "0"], ["--cut_mix_unmix_prob", "0.6"]
SEVERAL = {
    "svdiff+cut_mix": [*SPACES["svdiff"], *ON],
    "svdiff": [*SPACES["svdiff"], *OFF],
    "svdiff+unmix": [*SPACES["svdiff"], *ON],
    "full+cut_mix": [*SPACES["full"], *ON],
    "full": [*SPACES["full"], *OFF],
    "full+unmix": [*SPACES["full"], *ON],
}
TOLD = "base, colours told"
NEGATIVE = "side by side, collage, split, on the left and on the right, at the top and at the bottom"


@dataclass(frozen=True)
class Method:
    """change: what the base is changed by, made when it is asked for (None: by nothing). prompts: in place of the
    panel's. shown: whether its pictures stand on the sheet."""

    name: str
    change: Callable[[], merging.Change | None] = lambda: None
    scale: float = 1.0
    how: editing.Sampling | None = None
    prompts: list[str] | None = None
    shown: bool = True


@dataclass(frozen=True)
class Panel:
    """A line of a figure: one subject, or several. drawn: (item, prompt, its scorer). shown: which of a method's
    pictures stand on the sheet, (prompt, seed) by number."""

    label: str
    inputs: list
    methods: list[Method]
    drawn: list[tuple[str, str, Scorer]]
    about: dict[str, Any] = field(default_factory=dict)
    shown: tuple[tuple[int, int], ...] = ((0, 0),)
    after: tuple = ()


def compare(study: Study, panels: Iterable[Panel], file: str, columns: Iterable[str]) -> None:
    """Draw and score what is missing, then the sheet: a line per panel."""
    sheet, labels = [], []
    for panel in panels:
        row = list(panel.inputs)
        for method in panel.methods:
            change = method.change()
            texts = method.prompts or [prompt for _, prompt, _ in panel.drawn]
            if not all(is_done(study, method.name, item) for item, _, _ in panel.drawn):
                with applied(study, change, method.scale):
                    for (item, _, score), prompt in zip(panel.drawn, texts, strict=True):
                        make = prompted(study, prompt, method.how)
                        draw(study, method.name, item, make, score, prompt=prompt, **panel.about)
            if method.shown:
                shown = ((panel.drawn[place][0], seed) for place, seed in panel.shown)
                row += [read_pictures(study, method.name, item)[seed] for item, seed in shown]
        sheet.append([*row, *panel.after])
        labels.append(panel.label)
    save_png(study.output / file, grid(sheet, labels, list(columns)))


def subject_panel(study: Study, subject: Subject, methods: list[Method], prompts: int = 1) -> Panel:
    """One subject in new places; `prompts` of them on the sheet."""
    known = references(study, subject)
    drawn = [(f"{subject.name}|{place}", prompt, likeness(study, subject, known, plain))
             for place, (prompt, plain) in enumerate(prompts_of(study, subject))]  # fmt: skip
    shown = tuple((place, 0) for place in range(min(prompts, len(drawn))))
    return Panel(subject.name, [load_image(subject.paths[0])], methods, drawn, shown=shown)


def pair_panel(study: Study, kind: str, subjects: tuple, methods: list[Method], prompts: list[str], score: Scorer):
    """Several subjects in one picture; two seeds on the sheet."""
    inputs = [load_image(subject.paths[0]) for subject in subjects]
    drawn = [(f"{pair_name(subjects)}|{place}", prompt, score) for place, prompt in enumerate(prompts)]
    shown = tuple((0, seed) for seed in range(min(2, len(study.seeds))))
    return Panel(f"{pair_name(subjects)} ({kind})", inputs, methods, drawn, {"group": kind}, shown)


def repeated(names: Iterable[str], times: int) -> list[str]:
    return [name for name in names for _ in range(times)]


# ------------------------------------------------------------------------------------------------------- one subject


def single(study: Study) -> None:
    """Fig. 5 and 9b: shifts, full weights and LoRA, in new places."""
    panels, shown = [], min(2, study.args.prompts)
    for subject in study.subjects:
        methods = [Method(name, partial(tuned, study, subject, "", *flags, name=f"{subject.name}-{name}"))
                   for name, flags in ONE_SUBJECT.items()]  # fmt: skip
        panels.append(subject_panel(study, subject, methods, shown))
    compare(study, panels, "figure5.png", ["input", *repeated(ONE_SUBJECT, shown)])
    scatter(study, list(ONE_SUBJECT))


def ablation(study: Study) -> None:
    """Table 1's subsets, trained and scored (Sec. 4.4; the paper's scores are in an appendix that is not public)."""
    panels = [
        subject_panel(study, subject, [
            Method(subset, partial(tuned, study, subject, "svdiff", "--parameter_subset", subset, FROZEN,
                                   name=f"{subject.name}-{subset}"))
            for subset in options.SUBSET_NAMES
        ]) for subject in study.subjects
    ]  # fmt: skip
    compare(study, panels, "ablation.png", ["input", *options.SUBSET_NAMES])


def rank(study: Study) -> None:
    """Of every layer only the shifts of its largest singular values are kept (Sec. 4.4 names the analysis)."""
    panels = []
    for subject in study.subjects:
        def cut(share: float, subject=subject) -> merging.Change:
            return truncated(study, tuned(study, subject), share)

        methods = [Method(f"share {share:g}", partial(cut, share)) for share in SHARES]
        panels.append(subject_panel(study, subject, methods))
    compare(study, panels, "rank.png", ["input", *(f"share {share:g}" for share in SHARES)])


def truncated(study: Study, change: merging.Change, share: float) -> merging.Change:
    """Of every matrix the shifts of its largest singular values; vectors, which have no such order, whole."""
    parts = {}
    for part in change.parts:
        layers, shifts = tunable(getattr(study.pipe, part)), change.of(part)
        parts[part] = combine.truncate(shifts, share, [path for path in shifts if layers[path].weight.ndim == 1])
    return merging.Change("shifts", parts)


def scaling(study: Study) -> None:
    """All shifts are multiplied, inside of the ReLU (Sec. 4.4 names the analysis)."""
    panels = [
        subject_panel(study, subject, [Method(f"scale {scale:g}", partial(tuned, study, subject), scale)
                                       for scale in SCALES]) for subject in study.subjects
    ]  # fmt: skip
    compare(study, panels, "scaling.png", ["input", *(f"scale {scale:g}" for scale in SCALES)])


# ---------------------------------------------------------------------------------------------------- two and more


def inference_prompts(study: Study, phrases: list[str]) -> list[str]:
    """Other words than the training's (Sec. 3.3), as many as --prompts asks for. phrases: one for each subject."""
    if is_picturebook(study.pipe):
        places = ("in a meadow", "in the snow", "in a room", "on a beach")
        return [f"{' and '.join(phrases)} {place}" for place in places][: study.args.prompts]
    first, rest = phrases[0], " and ".join(phrases[1:])
    texts = [f"{first} sitting beside {rest}", f"a painting of {first} with {rest}", f"{first} in front of {rest}"]
    return texts[: study.args.prompts]


def groups(study: Study) -> list[tuple[str, tuple]]:
    """Similar and dissimilar pairs, and one group of three."""
    found = pairs(study)
    similar, dissimilar = ([pair for kind, pair in found if kind == want] for want in ("similar", "dissimilar"))
    if similar and dissimilar:
        third = next((subject for subject in dissimilar[0] if subject not in similar[0]), None)
        if third:
            found.append(("three", (*similar[0], third)))
    return found


def multi(study: Study) -> None:
    """Fig. 6: two and three subjects in one picture, with and without Cut-Mix-Unmix, shifts and full weights."""
    found, eye = groups(study), load_eye(study)
    if eye and not gate(study, found):
        return
    most, panels = max(len(subjects) for _, subjects in found), []
    for kind, subjects in found:
        phrases = [phrase(study, subject) for subject in subjects]
        methods = [Method(name, partial(of_several, study, subjects, name)) for name in SEVERAL]
        negative = editing.Sampling(**{**vars(study.how), "negative_prompt": NEGATIVE})
        methods.append(Method("svdiff+cut_mix+negative", methods[0].change, how=negative, shown=False))
        if eye:
            methods.append(Method(TOLD, prompts=inference_prompts(study, looks_of(subjects, eye))))
        panel = pair_panel(study, kind, subjects, methods, inference_prompts(study, phrases), together(study, subjects))
        panel.inputs.extend([None] * (most - len(subjects)))
        panels.append(panel)
    columns = [*["input"] * most, *repeated([*SEVERAL, *[TOLD] * bool(eye)], min(2, len(study.seeds)))]
    compare(study, panels, "figure6.png", columns)


def of_several(study: Study, subjects: tuple, method: str) -> merging.Change:
    more = ["--unmix_weight", str(study.args.unmix_weight)] if method.endswith("unmix") else []
    concepts = [concept(study, subject) for subject in subjects]
    folder = training(study, f"{pair_name(subjects)}-{method}", concepts, *SEVERAL[method], *more)
    return merging.load(study.pipe, folder, study.bases)


def together(study: Study, subjects: tuple) -> Scorer:
    return lambda picture: {**seen_in(study, list(subjects), picture), "seam": seam(picture)}


def looks_of(subjects: tuple, eye) -> list[str]:
    """Subjects in words that the untuned model knows: kind and colour."""
    from common.picturebook.scenes import Thing, thing_words

    things = [Thing(subject.class_name, usual_color(subject, eye)) for subject in subjects]
    return [thing_words(thing, mention=lambda attribute: attribute != "facing") for thing in things]


def gate(study: Study, found: list[tuple[str, tuple]]) -> bool:
    """Whether the untuned model, told the colours, shows all subjects in at least --gate of the pictures: where it
    cannot draw them in words that it knows, no training on them can be judged. Kept in gate.json."""
    eye = load_eye(study)
    panels = [
        pair_panel(study, kind, subjects, [Method(TOLD)], inference_prompts(study, looks_of(subjects, eye)),
                   together(study, subjects)) for kind, subjects in found
    ]  # fmt: skip
    compare(study, panels, "gate.png", [*["input"] * max(len(panel.inputs) for panel in panels), TOLD, TOLD])
    shown = [row["metrics"]["both_present"] for row in read_rows(study.rows) if row["method"] == TOLD]
    shown = [value for value in shown if not math.isnan(value)]
    share = sum(shown) / len(shown) if shown else 0.0
    passed = share >= study.args.gate
    write_json(study.output / "gate.json", {"shown": share, "least": study.args.gate, "passed": passed})
    print(f"gate: told the colours, the untuned model shows all subjects in {100 * share:.0f} % of the pictures, asked "
          f"for are {100 * study.args.gate:.0f}{'' if passed else ': nothing is trained (--gate 0 does)'}")  # fmt: skip
    return passed


def combination(study: Study) -> None:
    """Fig. 8: subjects trained apart, added up (Eq. 4): shifts against differences of full weights."""
    panels = []
    for kind, subjects in pairs(study):
        def added(space: str, subjects=subjects) -> merging.Change:
            return merging.add([tuned(study, subject, space) for subject in subjects])  # Eq. 4

        methods = [Method(space, partial(added, space)) for space in ("svdiff", "full")]
        prompts = inference_prompts(study, [phrase(study, subject) for subject in subjects])
        score = partial(seen_in, study, list(subjects))
        panels.append(pair_panel(study, kind, subjects, methods, prompts, score))
    columns = ["input", "input", *repeated(["shifts added", "weights added"], min(2, len(study.seeds)))]
    compare(study, panels, "figure8.png", columns)


def style(study: Study) -> None:
    """Fig. 10: geometry from one subject's shifts in a span of layers, everything else from another's."""
    first, last = study.args.geometry_layers
    combine.span(study.pipe.unet, first, last)  # refuses layers that there are not, before anything is trained
    subset, panels = ["--parameter_subset", "UNet-2D", FROZEN], []
    for kind, subjects in pairs(study):
        def shifts(which: int, subjects=subjects) -> merging.Change:
            one = subjects[which]
            return tuned(study, one, "svdiff", *subset, name=f"{one.name}-UNet-2D")

        methods = [
            Method("appearance", partial(shifts, 0)),
            Method("mixed", lambda shifts=shifts: merging.style_mix(study.pipe, shifts(0), shifts(1), first, last)),
            Method("added", lambda shifts=shifts: merging.add([shifts(0), shifts(1)])),
        ]
        prompt, plain = prompts_of(study, subjects[0])[0]
        score = likeness(study, subjects[0], references(study, subjects[0]), plain)
        panels.append(pair_panel(study, kind, subjects, methods, [prompt], score))
    columns = repeated(["appearance", "mixed", "added"], min(2, len(study.seeds)))
    compare(study, panels, "figure10.png", ["appearance: input", "geometry: input", *columns])


def interpolation(study: Study) -> None:
    """Fig. 11: from one class to another under the shared word "thing" (Eq. 5), shifts and full weights."""
    chosen = [subjects for kind, subjects in pairs(study) if kind == "dissimilar"]
    if not chosen:
        raise InputError("this figure passes between classes: name --subjects of two that are not both alive, and let "
                         "--pairs ask for dissimilar ones")  # fmt: skip
    panels = []
    for subjects in chosen:
        told = concept(study, subjects[0], "thing", "sks")
        for space in ("svdiff", "full"):
            def between(alpha: float, subjects=subjects, space=space) -> merging.Change:
                return merging.interpolate(*(thing(study, subject, space) for subject in subjects), alpha)  # Eq. 5

            methods = [Method(f"{space}|{alpha}", partial(between, alpha)) for alpha in ALPHAS]
            drawn = [(pair_name(subjects), told.instance_prompt, partial(sides, study, list(subjects)))]
            one, two = (load_image(subject.paths[0]) for subject in subjects)
            panels.append(Panel(f"{pair_name(subjects)}, {space}", [two], methods, drawn, after=(one,)))
    compare(study, panels, "figure11.png", ["B", *(f"alpha {alpha:g}" for alpha in ALPHAS), "A"])
    for subjects in chosen:
        for space in ("svdiff", "full"):
            order(study, space, pair_name(subjects))


def thing(study: Study, subject: Subject, space: str) -> merging.Change:
    told = concept(study, subject, "thing", "sks")
    folder = training(study, f"{subject.name}-thing-{space}", [told], *SPACES[space])
    return merging.load(study.pipe, folder, study.bases)


def order(study: Study, space: str, name: str) -> None:
    """A row per seed: the rank correlation of alpha with what is seen of A less of B. 0 where nothing changes."""
    rows = read_rows(study.rows)
    done = {(row["method"], row["item"], row["seed"]) for row in rows}
    seen = {(row["method"], row["seed"]): row["metrics"].get("A minus B") for row in rows if row["item"] == name}
    for seed in study.seeds:
        line = [seen.get((f"{space}|{alpha}", seed)) for alpha in ALPHAS]
        if None in line or (space, name, seed) in done:
            continue
        found = spearmanr(ALPHAS, line).statistic if len(set(line)) > 1 else 0.0
        append_row(study.rows, {
            "paper": "svdiff", "method": space, "item": name, "seed": seed, "seconds": 0.0, "peak_memory_mb": 0.0,
            "metrics": {"order": 0.0 if math.isnan(found) else float(found)},
        })  # fmt: skip
