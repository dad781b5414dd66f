"""The paper's premise (Sec. 3.1, Fig. 3): an edit from the ideal noise succeeds where one from inverted noise fails.

A picture is drawn from known noise with the source prompt, at each --drawing_scale (default: the editing's), and then
edited: from that noise, and from what inversions make of the recorded z_0. The source branch has the drawing's scale,
so that the ideal noise gives exactly this picture back; only the noise differs. At scale 1 every inversion can reach
it; above, only "exact", which inverts with the drawing's guidance. Rows are named arm+engine@drawn<scale>, such as
ideal+p2p@drawn1: the pictures are not the items' own. Claims and how they are judged: claims.toml.
"""

from dataclasses import dataclass, replace

from common.claims import difference
from common.ddim import make_schedule
from common.encoders import Encoders
from common.images import load_image, save_png, to_pil, to_tensor
from common.metrics import clip_text_similarity, lpips_distance, psnr, score_key, structure_distance
from common.pipelines import decode_latents
from common.runs import measure
from common.tables import intervals, score_table
from spdinv.editing import edit_picture
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from spdinv.inversions.result import Inversion
from spdinv.options import Method
from spdinv.reproduction.experiments import Task
from spdinv.reproduction.experiments.generated import drawings, in_order, scales_of
from spdinv.reproduction.experiments.noise_gap import noise_gap
from spdinv.reproduction.items import save_grid, success, with_words

IDEAL = "ideal"


@dataclass(frozen=True)
class Arm:
    """found: the inversion that the noise comes from, or IDEAL. scale: of the drawing."""

    found: str
    method: Method
    scale: float


def run(task: Task) -> dict:
    """Rows, pictures and tables in the output folder; what has a row is not run again."""
    pipe, done, scales = task.pipe, set(task.rows()), scales_of(task.args, task.args.guidance_scale)
    schedule, arms = make_schedule(pipe.scheduler, task.args.num_inference_steps), arms_of(task.methods, scales)
    names = {scale: [name for name, arm in arms.items() if arm.scale == scale] for scale in scales}
    for batch, scale, cond, true in drawings(task, names, done):
        inversions = {IDEAL: Inversion(true)}
        for name in names[scale]:
            found, settings = arms[name].found, arms[name].method.inversion_options
            if found not in inversions:
                inversions[found] = INVERSIONS[found](pipe, schedule, true[0], cond, **settings)
            for i, item in enumerate(batch):
                if (name, item.id) not in done:
                    edit_one(task, name, arms, item, true[:, i : i + 1], inversions[found].picture(i))
    return report(task, arms) if task.done(in_order(task, names)) else {}


def arms_of(methods: dict[str, Method], scales: list[float]) -> dict[str, Arm]:
    """By the name of their rows, the ideal noise's first within each scale. methods: by name, perhaps with a tag."""
    found: dict[str, Arm] = {}
    for scale in scales:
        own = {name: Arm(method.inversion, at(method, scale), scale) for name, method in methods.items()}
        ideal = {name.replace(arm.found, IDEAL, 1): replace(arm, found=IDEAL) for name, arm in own.items()}
        for name, arm in (ideal | own).items():
            found[f"{name}{',' if '@' in name else '@'}drawn{scale:g}"] = arm
    return found


def at(method: Method, scale: float) -> Method:
    """The method for pictures drawn at this scale: so is its source branch, and so is exact inversion guided."""
    engine, inversion = dict(method.engine_options), dict(method.inversion_options)
    if any(one.name == "source_guidance_scale" for one in ENGINES[method.engine].settings):
        engine["source_guidance_scale"] = scale
    if method.inversion == "exact" or INVERSIONS[method.inversion].fitted:
        inversion["guidance_scale"] = scale
    return replace(method, engine_options=engine, inversion_options=inversion)


def edit_one(task: Task, name: str, arms: dict[str, Arm], item, true, inversion: Inversion) -> None:
    """Edit the picture drawn along `true` [T+1,1,4,h,w] from the noise that the arm found; keep row and pictures."""
    pipe, arm = task.pipe, arms[name]
    drawn, method = decode_latents(pipe, true[0]), with_words(pipe, item, arm.method)
    with measure() as cost:
        edit = edit_picture(pipe, drawn, item.source_prompt, item.target_prompt, method, inversion=inversion)
    place = task.output / "pictures" / item.id
    pictures = {f"source_{arm.scale:g}": drawn, f"{name}_reconstruction": edit.reconstruction, name: edit.edited}
    for called, picture in pictures.items():
        save_png(place / f"{called}.png", picture)
    shown = [to_tensor(to_pil(picture)) for picture in pictures.values()]  # scores see what the files hold
    first = next(one for one, other in arms.items() if alike(arm, other))  # the ideal noise's, edited before
    ideal = to_tensor(load_image(place / f"{first}.png"))
    gap = noise_gap(true, inversion.trajectory)[-1].item()
    task.append(
        name, item.id, edit_type=item.edit_type,
        metrics={**scores(item, *shown, ideal, task.encoders), "noise_gap": gap},
        seconds=cost.seconds + inversion.cost["seconds"], inversion_seconds=inversion.cost["seconds"],
        peak_memory_mb=cost.peak_memory_mb,
    )  # fmt: skip


def scores(item, drawn, reconstruction, edited, ideal, encoders: Encoders) -> dict[str, float]:
    """Of pictures [1,3,H,W]. drawn: the one that was edited. ideal: the edit from the ideal noise. There is no mask and
    no true edit here, since what was drawn is not the item's own picture."""
    found = success(item, edited) | success(item, drawn, "shown_before")  # what the target has, and the drawn one had
    clip = 100 * clip_text_similarity(edited, [item.target_prompt], encoders.clip).clamp(min=0).item()
    lpips = encoders.lpips
    return found | {
        score_key("clip_whole", encoders.clip.label): clip,
        score_key("structure", encoders.dino.label): structure_distance(drawn, edited, encoders.dino).item(),
        score_key("lpips_to_ideal", lpips.label): lpips_distance(ideal, edited, lpips).item(),
        "psnr_to_ideal": psnr(ideal, edited).item(),
        "psnr_reconstruction": psnr(drawn, reconstruction).item(),
    }


def alike(one: Arm, other: Arm) -> bool:
    return (one.method.engine, one.scale) == (other.method.engine, other.scale)


def report(task: Task, arms: dict[str, Arm]) -> dict:
    """grid.png, and on the screen the arms' means and all their paired differences."""
    found, ids = task.rows(), [item.id for item in task.items]
    summary = {name: intervals([found[name, item] for item in ids]) for name in arms}
    columns = [*(f"source_{scale:g}" for scale in dict.fromkeys(arm.scale for arm in arms.values())), *arms]
    save_grid(task.output, task.items, columns)
    print(score_table(summary), end="\n\n")
    differences = {}
    for a, b in pairs_of(arms):
        pair = [found[name, item] for name in (a, b) for item in ids]
        gaps = {key: difference(pair, key, a, b) for key in pair[0]["metrics"]}
        differences[f"{a} - {b}"] = {key: vars(gap) for key, gap in gaps.items() if gap.n}
    print("Paired differences")
    print(score_table(differences), end="\n\n")
    return {"summary": summary, "differences": differences}


def pairs_of(arms: dict[str, Arm]) -> list[tuple[str, str]]:
    """(better by the paper's argument, worse) within engine and scale: ideal and each inversion, each and the first."""
    pairs = []
    for ideal in (name for name, arm in arms.items() if arm.found == IDEAL):
        first, *others = (name for name, arm in arms.items() if arm.found != IDEAL and alike(arm, arms[ideal]))
        pairs += [(ideal, first), *((ideal, other) for other in others), *((other, first) for other in others)]
    return pairs
