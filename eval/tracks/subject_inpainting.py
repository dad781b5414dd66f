"""Track "subject inpainting": a subject of a few photographs drawn into the holes of scenes it was never seen in.

    python -m eval.tracks.subject_inpainting --methods full dreambooth textual_inversion --items 48

runs further methods in the folder where eval.compare finds them. DreamBooth and Textual Inversion are trained by the
arena's own trainers (eval.tracks.personalization.methods) and then inpaint, told "a <token> <class>", as in training;
what they draw without a scene, as in the paper's Fig. 3, is kept too.
"""

import argparse
import json
import shlex
from pathlib import Path

from common.flags import is_picturebook_folder
from common.model_files import PICTUREBOOK_FOLDER as MODELS
from common.runs import InputError, append_row, done_items, measure, read_json, read_rows, script, write_config
from eval.report.measures import find
from eval.tracks.track import Item, Picture, Run, Track, date_of, earlier_results
from image_inpaint import eval as inpaint_eval
from image_inpaint.options import PICTUREBOOK_PRESET, PICTUREBOOK_TUNING
from image_inpaint.reproduction import methods as own

NAME = "subject_inpainting"
RUN = (*own.REFERENCES, "sd_caption", "untuned", "lora")  # what this track runs by itself
DRAWN = "without_scene"  # what --dreambooth of image_inpaint.eval wants: <method>/<subject>/*.png
PERSONALISED = {"dreambooth": "DreamBooth, used for inpainting", "textual_inversion": "Textual Inversion, likewise"}
METHODS = {
    **{name: own.METHODS[name].title for name in own.REFERENCES},
    "sd_caption": own.METHODS["sd_caption"].title,
    **PERSONALISED,
    "untuned": own.METHODS["untuned"].title,
    "lora_plain": own.METHODS["lora_plain"].title,
    "lora_reference": own.METHODS["lora_reference"].title,
    "lora_mask": own.METHODS["lora_mask"].title,
    "full": own.METHODS["full"].title,
    "lora": own.METHODS["lora"].title,
}
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
    given = {
        "pretrained_model_name_or_path": args.pretrained_model_name_or_path,
        "items": args.items,
        "num_inference_steps": args.num_inference_steps,
        "seed": args.seed,
        "device": args.device,
        "output_dir": str(Path(args.output_dir) / NAME),
    }
    flags = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return ["--methods", *methods, *flags]


def keep_config(output: Path, settings: argparse.Namespace) -> None:
    """config.json, with what every method is trained with: rows of other settings are told apart by it.

    Raises InputError if the folder has rows of a method that was trained otherwise.
    """
    from eval.tracks.personalization.variants import tuned_settings

    training = {"preset": PICTUREBOOK_PRESET["subject"], "tuning": PICTUREBOOK_TUNING, "more": settings.training_flags}
    methods = {name: {"flags": method.training, **(training if method.training else {})}
               for name, method in own.METHODS.items()}  # fmt: skip
    methods |= {name: {"flags": None, "settings": tuned_settings().get(name, {})} for name in PERSONALISED}
    before = read_json(output / "config.json") if (output / "config.json").is_file() else {}
    then = before.get("methods")
    for name in methods if isinstance(then, dict) else ():  # a run of image_inpaint.eval leaves a list of names alone
        if name in then and used(then[name]) != used(methods[name]) and done_items(output / "rows.jsonl", name):
            raise InputError(f"{output} holds rows of {name} that was trained with other settings; take another "
                             "--output_dir, or the settings that its config.json has")  # fmt: skip
    write_config(output, settings, dataset="picturebook", methods=methods)


def used(settings: dict) -> dict:
    """A method's settings as JSON has them, without the tuning of the other way."""
    tuning = {way: values for way, values in settings.get("tuning", {}).items() if way in settings["flags"]}
    return json.loads(json.dumps({**settings, "tuning": tuning}))


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
    args = argparse.Namespace(**{**vars(args), "items": -(-args.items // 2)})  # half: a training stands behind each six
    output = Path(args.output_dir) / NAME
    settings = inpaint_eval.parse(command(args, list(RUN)))
    inpaint_eval.check_same_settings(output, settings)
    subjects, items = inpaint_eval.read_data(settings)
    wanted = {item.id for item in items}
    rows_file = output / "rows.jsonl"
    keep_config(output, settings)
    inpaint_eval.run_all(settings, subjects, items)
    methods = {name: title for name, title in METHODS.items() if wanted <= done_items(rows_file, name)}
    rows = [row for row in read_rows(rows_file) if row["item"] in wanted and row["method"] in methods]
    config = read_json(output / "config.json")
    config["date"] = date_of(rows_file)
    further = f"python -m eval.tracks.subject_inpainting --items {args.items} --seed {args.seed} --methods "
    return Track(
        name=NAME,
        title="Subject inpainting",
        about="A subject of five photographs is to stand in the hole of a scene. The image-guided methods are shown a "
        "reference picture, the others are told words; LoRA and the whole model were tuned on the photographs first "
        "(Image Guided Inpainting with Parameter Efficient Learning, 2023).",
        methods=methods,
        references=tuple(name for name in own.REFERENCES if name in methods),
        columns=COLUMNS,
        runs=[Run("this run", rows, config), *earlier_results(NAME, config)],
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
    key = find(rows, "thing_seen")
    success = {row["method"]: row["metrics"].get(key) for row in rows if row["item"] == item.id}
    place = output / "pictures" / item.id
    pictures = [Picture(name, place / f"{file}.png")
                for name, file in (("scene and hole", "hole"), ("reference", "reference"), ("true picture", "truth"))
                if (place / f"{file}.png").is_file()]  # fmt: skip
    for method in methods:
        value = success.get(method)
        pictures.append(Picture("edit", place / f"{method}.png", method, None if value is None else value > 0.5))
    return Item(item.id, item.condition, item.subject, item.caption or "", pictures)


# ------------------------------------------------------------------------------- personalised text-to-image models


def train_personalised(settings: argparse.Namespace, name: str, subject, model: str) -> Path:
    """Train the arena's method on a subject, once; the folder of its weights."""
    from common.data import Subject
    from common.images import list_pictures
    from common.runs import write_json
    from eval.tracks.personalization.methods import METHODS as ARENA
    from eval.tracks.personalization.variants import tuned_settings

    folder = own.weights_folder(Path(settings.output_dir), name, subject)
    if (folder / "cost.json").is_file():
        return folder
    tuned = tuned_settings() if is_picturebook_folder(model) else {}
    photographs = Subject(subject.name, subject.class_name, False, tuple(list_pictures(subject.folder)))
    with measure() as cost:
        ARENA[name].train(photographs, folder, model, tuned.get(name, {}), settings.seed)
    files = [path for path in folder.rglob("*.safetensors") if "checkpoint" not in str(path)]
    write_json(folder / "cost.json", {"training_seconds": cost.seconds, "training_memory_mb": cost.peak_memory_mb,
                                      "file_mb": sum(path.stat().st_size for path in files) / 1e6})  # fmt: skip
    return folder


def run_personalised(settings: argparse.Namespace, name: str, subjects: list, items: list, model: str) -> None:
    """Train, inpaint and score what is missing of DreamBooth or Textual Inversion."""
    from common.images import save_png
    from common.training import draw_pictures, step_generator
    from eval.tracks.personalization.methods import METHODS as ARENA
    from image_inpaint.reproduction.baselines import from_text_to_image, paint_from_text
    from image_inpaint.reproduction.scoring import anchors, load_eyes

    output = Path(settings.output_dir)
    done, eyes = done_items(output / "rows.jsonl", name), None
    for subject in subjects:
        missing = [item for item in items if item.subject == subject.name and item.id not in done]
        if not missing:
            continue
        eyes = eyes or load_eyes(settings.metric_encoders, settings.device)
        scale = anchors(subject, items, eyes)
        folder = train_personalised(settings, name, subject, model)
        pipe, token = ARENA[name].load(folder, model, settings.device), ARENA[name].token
        start = "a" if is_picturebook_folder(model) else "a photo of a"  # as in its training
        prompt = f"{start} {token} {subject.class_name}" if ARENA[name].names_class else f"{start} {token}"
        generator = step_generator(settings.seed, 0)
        (drawn,) = draw_pictures(pipe, [prompt], [generator], num_inference_steps=settings.num_inference_steps)
        save_png(output / DRAWN / name / subject.name / "0.png", drawn)
        with measure() as cost:
            painted = paint_from_text(
                from_text_to_image(pipe), [item.source for item in missing], [item.fill for item in missing],
                [prompt] * len(missing), [own.seed_of(item, settings.seed) for item in missing],
                settings.num_inference_steps, settings.text_guidance_scale, composite=settings.composite,
                feather=settings.feather,
            )  # fmt: skip
        about = read_json(folder / "cost.json")
        for item, picture in zip(missing, painted, strict=True):
            row = inpaint_eval.keep_picture(output, item, subject, name, picture, eyes, scale)
            append_row(output / "rows.jsonl", {
                **row, "paper": "baselines", "seed": settings.seed, "metrics": row["metrics"] | about,
                "seconds": cost.seconds / len(missing), "peak_memory_mb": cost.peak_memory_mb,
            })  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    from common.flags import number
    from common.runs import make_parser

    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to run")
    add("--items", type=number(int, 1), default=48, help="pictures per method; the paper's: 12 subjects x 20 scenes")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, or a folder with its marker")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of every method")
    add("--output_dir", default="outputs/compare", help="the folder of eval.compare")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of every training and picture")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    args = parser.parse_args(argv)
    if not is_picturebook_folder(args.pretrained_model_name_or_path):
        raise InputError(
            "this track is of the picturebook; python -m image_inpaint.eval --subjects … runs your pictures"
        )
    args.dataset = "picturebook"
    image_guided = [name for name in args.methods if name not in PERSONALISED]
    settings = inpaint_eval.parse(command(args, image_guided or ["untuned"]))
    settings.methods = image_guided
    output = Path(settings.output_dir)
    inpaint_eval.check_same_settings(output, settings)
    subjects, items = inpaint_eval.read_data(settings)
    keep_config(output, settings)
    inpaint_eval.run_all(settings, subjects, items)
    for name in [name for name in args.methods if name in PERSONALISED]:
        run_personalised(settings, name, subjects, items, args.pretrained_model_name_or_path)
    print(f"{len(items)} pictures of {', '.join(args.methods)} in {output}")
    print(f"eval.compare --items {2 * args.items} shows them")


if __name__ == "__main__":
    main()
