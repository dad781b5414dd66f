"""Textual Inversion (Gal et al., ICLR 2023): a new word whose vector alone is trained (their Eq. 2).

    python -m eval.baselines.textual_inversion
    python -m eval.baselines.textual_inversion --instance_data_dir dog --initializer_token dog \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Defaults as in diffusers' script and README for one GPU: 3,000 steps at 5e-4, scaled by batch and accumulation to 2e-3.
The loop is that of lipschitz_personalize.train without its penalty.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # python eval/baselines/textual_inversion.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.flags import number
from common.runs import InputError, atomic_path, make_parser, script
from common.training_flags import add_subject_flags, add_training_flags
from lipschitz_personalize.options import parse_plain
from lipschitz_personalize.train import train

PICTUREBOOK_PRESET = {"max_train_steps": 200, "learning_rate": 0.002, "scale_lr": False, "train_batch_size": 4,
                      "gradient_accumulation_steps": 1, "prompts": "plain", "random_flip": False,
                      "max_grad_norm": 1.0}  # fmt: skip
# The paper's neutral contexts, derived from CLIP's ImageNet templates (its Sec. 4 and appendix).
PHOTOS = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of a clean {}",
    "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}", "a photo of the cool {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a cropped photo of a {}", "a photo of the {}",
    "a good photo of the {}", "a photo of one {}", "a close-up photo of the {}", "a rendition of the {}",
    "a photo of the clean {}", "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}",
    "a photo of the nice {}", "a photo of the small {}", "a photo of the weird {}", "a photo of the large {}",
    "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip
PROMPTS = {"photos": PHOTOS, "plain": ("a {}", "a picture of a {}", "the {}")}
WORD, FILE = "<sks>", "learned_embeds.safetensors"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--placeholder_token", default=WORD, help="the new word")
    add("--initializer_token", help="word whose vector it starts from; by default that of the picturebook's subject")
    add("--num_vectors", type=number(int, 1, 75), default=1, help="vectors of the new word; the paper's is 1")
    add("--prompts", choices=PROMPTS, default="photos", help="contexts that it is trained in: the paper's, or three "
        "that the picturebook knows")  # fmt: skip
    add_training_flags(parser, output_dir="outputs/textual_inversion", max_train_steps=3000, learning_rate=5e-4,
                       scale_lr=True, gradient_accumulation_steps=4, max_grad_norm=0.0)  # fmt: skip
    add_subject_flags(parser, random_flip=True)
    args = parse_plain(parser, argv, PICTUREBOOK_PRESET, parameter_space="word", squash=True,
                       instance_prompt=f"a {WORD}")  # fmt: skip
    args.instance_prompt = args.instance_prompt.replace(WORD, args.placeholder_token)
    args.instance_prompts = [prompt.format(args.placeholder_token) for prompt in PROMPTS[args.prompts]]
    if args.with_prior_preservation:
        raise InputError("Textual Inversion changes no weight that a class could lose: leave out "
                         "--with_prior_preservation")  # fmt: skip
    if args.instance_data_dir and not args.initializer_token and not args.print_config:
        raise InputError("give --initializer_token, a word such as dog that says what the pictures show")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    train(parse(argv), new_word)  # Eq. 2: the vectors that minimise E ||eps - eps_theta(z_t, t, c_theta(y))||^2


def new_word(pipe, args: argparse.Namespace):
    """The trained vectors and how they are saved (lipschitz_personalize's Space)."""
    from safetensors.torch import save_file

    from lipschitz_personalize.parameter_spaces import Space

    args.initializer_token = args.initializer_token or args.class_prompt.split()[-1]
    vectors = add_learned_word(pipe, args.placeholder_token, args.initializer_token, args.num_vectors)

    def save(folder: Path) -> None:
        with atomic_path(folder / FILE) as temporary:
            save_file({args.placeholder_token: vectors.detach().cpu().contiguous()}, temporary)

    return Space({"vectors": vectors}, save, trains_text=True)


def add_learned_word(pipe, word: str, initial: str, count: int):
    """Teach the pipeline `word` of `count` tokens, each starting as the vector of `initial`, and return the vectors
    [count, D]: a leaf tensor, float32, in the place of the tokens' rows from now on.

    Raises InputError if `initial` is more than one token of this model, or `word` one already, as in diffusers' script.
    """
    from lipschitz_personalize.parameter_spaces import put_rows
    from spdinv.customised.words import add_word

    ids = pipe.tokenizer(initial, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(f"--initializer_token {initial!r} is {len(ids)} tokens of this model; give a word that is one")
    if {word, f"{word.lower()}</w>"} & pipe.tokenizer.get_vocab().keys():
        raise InputError(f"--placeholder_token {word!r} is known to this model already; take a new one, such as <new1>")
    start = pipe.text_encoder.get_input_embeddings().weight[ids[0]].detach().float()
    add_word(pipe, word, start.repeat(count, 1))
    own = pipe.tokenizer(word, add_special_tokens=False).input_ids
    vectors = start.repeat(count, 1).requires_grad_(True)
    put_rows(pipe.text_encoder.get_input_embeddings(), own, vectors)
    return vectors


def load(folder: Path, model: str, device: str | None = None):
    """The base model that knows the learned word."""
    from common.pipelines import load_pipeline
    from spdinv.customised.loading import load_adapter

    pipe = load_pipeline(model, device)
    load_adapter(pipe, folder)
    return pipe


if __name__ == "__main__":
    main()
