"""Track "subject inpainting": a subject of a few photographs drawn into the holes of scenes it was never seen in.

    python -m eval.tracks.subject_inpainting --methods full dreambooth textual_inversion --items 48

runs further methods in the folder where eval.compare finds them. DreamBooth and Textual Inversion are trained by the
arena's own trainers (eval.tracks.personalization.methods) and then inpaint, told "a <token> <class>", as in training;
what they draw without a scene, as in the paper's Fig. 3, is kept too.
"""

import argparse
import shlex
from pathlib import Path

from common.flags import PICTUREBOOK_FOLDER as MODELS
from common.flags import is_picturebook_folder, number
from common.runs import InputError, make_parser, script
from eval.tracks.track import Item, Track, given, judged, pictures_of, runs_of
from image_inpaint import eval as inpaint_eval
from image_inpaint.reproduction import methods as own

NAME = "subject_inpainting"
RUN = (*own.REFERENCES, "sd_caption", "untuned", "lora")  # what this track runs by itself
DRAWN = "without_scene"  # what --dreambooth of image_inpaint.eval wants: <method>/<subject>/*.png
PERSONALISED = {"dreambooth": "DreamBooth, used for inpainting", "textual_inversion": "Textual Inversion, likewise"}
SHOWN = (*own.REFERENCES, "sd_caption", *PERSONALISED, "untuned", "lora_plain", "lora_reference", "lora_mask", "full",
         "lora")  # fmt: skip
METHODS = {name: PERSONALISED.get(name) or own.METHODS[name].title for name in SHOWN}
COLUMNS = [
    "likeness", "thing_seen", "lpips_thing", "psnr_thing", "filled_excess", "DINO/region", "DINO/unseen",
    "CLIP-I/region", "rim", "psnr_kept", "training_seconds", "file_mb", "seconds", "peak_memory_mb",
]  # fmt: skip
NOTES = [
    "Likeness is the mean cosine of the hole's bounding box with each photograph, cut to the subject, as in the paper "
    "(Sec. 5.1). DINO of unseen views is over the items that ask for a facing, pose or light that no photograph shows.",
    "The baseline is told the subject's exact description; what it cannot be told is the marking. It and the "
    "personalised text-to-image models put the noised source back around the hole at every step. All three are sampled "
    "with the same text guidance, which was tuned for the baseline only.",
    "Outside of the hole all pictures are the scene's own pixels, as the paper wants it.",
]


def command(args: argparse.Namespace, methods: list[str]) -> list[str]:
    """The arguments of image_inpaint.eval for the flags of eval.compare; flags at None stay at its defaults."""
    flags = given(args, "pretrained_model_name_or_path", "items", "num_inference_steps", "seed", "device", "output_dir")
    return ["--methods", *methods, *flags]


def run(args: argparse.Namespace) -> Track | None:
    """Run what is missing and gather rows and pictures; None where there are no subjects and scenes of its own: your
    own pictures are image_inpaint.eval's business.

    args: the flags of eval.compare. InputError for input that image_inpaint.eval refuses.
    """
    if args.dataset != "picturebook" or not is_picturebook_folder(args.pretrained_model_name_or_path):
        return None
    if args.pretrained_model_name_or_path == "picturebook" and not (MODELS / "inpaint_unet").is_dir():
        print("subject inpainting is left out: python -m common.picturebook.build inpaint trains its model")
        return None
    output = Path(args.output_dir) / NAME
    items = -(-args.items // 2)  # half: a training stands behind each six
    args = argparse.Namespace(**{**vars(args), "items": items, "output_dir": output})
    settings = inpaint_eval.parse(command(args, list(RUN)))
    items, rows = inpaint_eval.run_all(settings, own.Painter(settings))
    wanted, done = {item.id for item in items}, {(row["method"], row["item"]) for row in rows}
    methods = {name: title for name, title in METHODS.items() if {(name, item) for item in wanted} <= done}
    rows = [row for row in rows if row["method"] in methods]
    further = f"python -m eval.tracks.subject_inpainting --items {args.items} --seed {args.seed} --methods "
    return Track(
        name=NAME,
        title="Subject inpainting",
        about="A subject of five photographs is to stand in the hole of a scene. The image-guided methods are shown a "
        "reference picture, the others are told words; LoRA and the whole model were tuned on the photographs first "
        "(Image Guided Inpainting with Parameter Efficient Learning, 2023).",
        methods=methods,
        references=tuple(own.REFERENCES),
        columns=COLUMNS,
        runs=runs_of(NAME, output, rows, inpaint_eval.parse),
        own="lora",
        items=[shown(item, output, rows, methods) for item in items],
        commands={
            name: further + name if name in PERSONALISED
            else "python -m image_inpaint.eval " + shlex.join(command(args, [name]))
            for name in methods
        },
        papers={
            "Paint by Example (CVPR 2023)": "https://arxiv.org/abs/2211.13227",
            "DreamBooth (CVPR 2023)": "https://arxiv.org/abs/2208.12242",
            "An Image is Worth One Word (ICLR 2023)": "https://arxiv.org/abs/2208.01618",
        },
        published="image_inpaint:2",
        notes=NOTES,
    )  # fmt: skip


def shown(item, output: Path, rows: list[dict], methods: dict[str, str]) -> Item:
    """One item for the picture grid: scene, reference, true picture, each method's picture."""
    success, place = judged(rows, item.id, "thing_seen"), output / "pictures" / item.id
    known = {"scene and hole": "hole.png", "reference": "reference.png", "true picture": "truth.png"}
    pictures = pictures_of({label: place / file for label, file in known.items()}, place, success, methods)
    return Item(item.id, item.condition, item.subject, item.caption or "", pictures)


class Personalised:
    """DreamBooth and Textual Inversion at work, for image_inpaint.eval.run_all."""

    paper = "baselines"  # of the rows

    def __init__(self, args: argparse.Namespace):
        from eval.tracks.personalization.methods import METHODS as ARENA
        from eval.tracks.personalization.variants import tuned_settings

        self.args, self.arena, self.model = args, ARENA, args.pretrained_model_name_or_path
        self.tuned = tuned_settings()

    def settings(self, method: str) -> dict:
        return self.tuned.get(method, {})

    def train(self, method: str, subject) -> tuple[Path, dict[str, float]]:
        """Train the arena's method on a subject, once: the folder of its weights, and what the training took."""
        from common.data import Subject
        from common.images import list_pictures
        from eval.tracks.personalization.arena import train_once

        folder = own.weights_folder(self.args, method, subject)
        photographs = Subject(subject.name, subject.class_name, False, tuple(list_pictures(subject.folder)))
        cost = train_once(self.arena[method], photographs, folder, self.model, self.settings(method), self.args.seed)
        return folder, {"training_seconds": cost["seconds"], "training_memory_mb": cost["peak_memory_mb"],
                        "file_mb": cost["file_bytes"] / 1e6}  # fmt: skip

    def paint(self, method: str, weights: Path, items: list, subject) -> list:
        """One picture per item of a subject; one without a scene is kept beside them."""
        from common.images import save_png
        from common.training import draw_pictures, step_generator
        from image_inpaint.reproduction.baselines import from_text_to_image, paint_from_text

        args, arena = self.args, self.arena[method]
        pipe = arena.load(weights, self.model, args.device)
        prompt = f"a {arena.token} {subject.class_name}" if arena.names_class else f"a {arena.token}"  # as in training
        generator = step_generator(args.seed, 0)
        (drawn,) = draw_pictures(pipe, [prompt], [generator], num_inference_steps=args.num_inference_steps)
        save_png(Path(args.output_dir) / DRAWN / method / subject.name / "0.png", drawn)
        return paint_from_text(
            from_text_to_image(pipe), [item.source for item in items], [item.fill for item in items],
            [prompt] * len(items), own.seeds_of(items, args.seed), args.num_inference_steps, args.text_guidance_scale,
            composite=args.composite, feather=args.feather,
        )  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to run")
    add("--items", type=number(int, 1), default=48, help="pictures per method; the paper's: 12 subjects x 20 scenes")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, or a folder with its marker")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of every method")
    add("--output_dir", default=f"outputs/compare/{NAME}", help="the folder of the rows: by default eval.compare's")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of every training and picture")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    args = parser.parse_args(argv)
    if not is_picturebook_folder(args.pretrained_model_name_or_path):
        raise InputError("this track is of the picturebook; image_inpaint.eval --subjects … runs your own pictures")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = inpaint_eval.parse(command(args, ["untuned"]))
    personalised = [name for name in args.methods if name in PERSONALISED]
    image_guided = [name for name in args.methods if name not in PERSONALISED]
    for settings.methods, painter in ((image_guided, own.Painter), (personalised, Personalised)):
        if settings.methods:
            items, _ = inpaint_eval.run_all(settings, painter(settings))
    print(f"{len(items)} pictures of {', '.join(args.methods)} in {settings.output_dir}")
    print(f"eval.compare --items {2 * args.items} shows them")


if __name__ == "__main__":
    main()
