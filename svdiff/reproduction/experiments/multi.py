"""Fig. 6: two and three subjects in one picture, with and without Cut-Mix-Unmix, shifts and full weights."""

from dataclasses import replace

from common.images import grid, load_image, save_png
from common.picturebook.scenes import Thing, thing_words
from common.pipelines import is_picturebook
from svdiff import merging
from svdiff.reproduction.experiments.study import (
    SPACES,
    Study,
    applied,
    concept,
    draw,
    load_eye,
    pair_name,
    pairs,
    phrase,
    prompted,
    read_pictures,
    seam,
    seen_in,
    training,
    usual_color,
)  # fmt: skip

OFF, ON = ["--cut_mix_unmix_prob", "0"], ["--cut_mix_unmix_prob", "0.6"]
METHODS = {
    "svdiff+cut_mix": [*SPACES["svdiff"], *ON],
    "svdiff": [*SPACES["svdiff"], *OFF],
    "svdiff+unmix": [*SPACES["svdiff"], *ON],
    "full+cut_mix": [*SPACES["full"], *ON],
    "full": [*SPACES["full"], *OFF],
}
TOLD = "base, colours told"
NEGATIVE = "side by side, collage, split, on the left and on the right, at the top and at the bottom"


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


def run(study: Study) -> None:
    sheet, labels, found, eye = [], [], groups(study), load_eye(study)
    most = max(len(subjects) for _, subjects in found)
    for kind, subjects in found:
        name, row = pair_name(subjects), [load_image(subject.paths[0]) for subject in subjects]
        row += [None] * (most - len(row))

        def score(picture, subjects=subjects):
            return {**seen_in(study, list(subjects), picture), "seam": seam(picture)}

        phrases = [phrase(study, subject) for subject in subjects]
        for method, flags in METHODS.items():
            more = ["--unmix_weight", str(study.args.unmix_weight)] if method.endswith("unmix") else []
            concepts = [concept(study, subject) for subject in subjects]
            change = merging.load(study.pipe, training(study, f"{name}-{method}", concepts, *flags, *more))
            with applied(study, change):
                for place, prompt in enumerate(inference_prompts(study, phrases)):
                    item, about = f"{name}|{place}", {"group": kind, "prompt": prompt}
                    draw(study, method, item, prompted(study, prompt), score, **about)
                    if method == "svdiff+cut_mix":
                        how = replace(study.how, negative_prompt=NEGATIVE)
                        draw(study, f"{method}+negative", item, prompted(study, prompt, how), score, **about)
            row.append(read_pictures(study, method, f"{name}|0")[0])
        if eye:  # how well the untuned model draws both when their colours are said
            things = [Thing(subject.class_name, usual_color(subject, eye)) for subject in subjects]
            looks = [thing_words(thing, mention=lambda attribute: attribute != "facing") for thing in things]
            for place, prompt in enumerate(inference_prompts(study, looks)):
                draw(study, TOLD, f"{name}|{place}", prompted(study, prompt), score, group=kind, prompt=prompt)
            row.append(read_pictures(study, TOLD, f"{name}|0")[0])
        sheet.append(row)
        labels.append(f"{name} ({kind})")
    save_png(study.output / "figure6.png", grid(sheet, labels, [*["input"] * most, *METHODS, *[TOLD] * bool(eye)]))
