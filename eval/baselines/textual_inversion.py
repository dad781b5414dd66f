"""Textual Inversion (Gal et al., ICLR 2023): a new word whose vector alone is trained (their Eq. 2).

    python -m eval.baselines.textual_inversion
    python -m eval.baselines.textual_inversion --instance_data_dir dog --initializer_token dog \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Defaults as in diffusers' script and README for one GPU: 3,000 steps at 5e-4, scaled by batch and accumulation to 2e-3.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # python eval/baselines/textual_inversion.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.flags import number
from common.runs import InputError, atomic_path, make_parser, script
from common.training_flags import add_subject_flags, add_training_flags, parse_training

PICTUREBOOK_PRESET = {"max_train_steps": 200, "learning_rate": 0.002, "scale_lr": False, "train_batch_size": 4,
                      "gradient_accumulation_steps": 1, "prompts": "plain", "random_flip": False}  # fmt: skip
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
WORD = "<sks>"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--placeholder_token", default=WORD, help="the new word")
    add("--initializer_token", help="word whose vector it starts from; by default that of the picturebook's subject")
    add("--num_vectors", type=number(int, 1), default=1, help="vectors of the new word; the paper's is 1")
    add("--prompts", choices=PROMPTS, default="photos", help="contexts that it is trained in: the paper's, or three "
        "that the picturebook knows")  # fmt: skip
    add_training_flags(parser, output_dir="outputs/textual_inversion", max_train_steps=3000, learning_rate=5e-4,
                       scale_lr=True, gradient_accumulation_steps=4)  # fmt: skip
    add_subject_flags(parser, random_flip=True)
    parser.set_defaults(instance_prompt=f"a photo of a {WORD}")
    args = parse_training(parser, argv, PICTUREBOOK_PRESET)
    if args.with_prior_preservation:
        raise InputError(
            "Textual Inversion changes no weight that a class could lose: leave out --with_prior_preservation"
        )
    if args.instance_data_dir and not args.initializer_token and not args.print_config:
        raise InputError("give --initializer_token, a word such as dog that says what the pictures show")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from eval.baselines import subject_training as shared

    if args.print_config:
        return shared.print_config(args)
    import torch
    from safetensors.torch import save_file
    from tqdm import tqdm

    from common import training
    from common.pipelines import encode_prompt
    from common.runs import measure

    if args.instance_data_dir is None:
        kind = shared.give_subject(args, "{}", "a {}")
        args.initializer_token = args.initializer_token or kind
    accelerator = training.make_accelerator(args, "textual_inversion")
    with measure() as cost:
        pipe, resolution = shared.load_frozen(args, accelerator.device)
        pictures = training.load_pictures(args.instance_data_dir, resolution)
        vectors = add_learned_word(pipe, args.placeholder_token, args.initializer_token, args.num_vectors)
        optimizer, schedule = training.make_optimizer([vectors], args, accelerator.num_processes)
        optimizer = accelerator.prepare(optimizer)
        who = training.identity(args, base=training.fingerprint(pipe.unet.state_dict()))
        trained, scaler = {"vectors": vectors}, accelerator.scaler
        first = training.resume_training(args, trained, optimizer, schedule, who, scaler)
        alpha_bar, kind = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
        losses, micros = [], args.gradient_accumulation_steps

        for step in tqdm(range(first, args.max_train_steps), "steps", disable=None):
            total = 0.0
            for micro in range(micros):
                x, generator = shared.batch_of(args, pictures, step, micro, accelerator, resolution)
                z_0, noise, t = shared.encoded(pipe, x, len(alpha_bar), generator)
                contexts = PROMPTS[args.prompts]
                chosen = torch.randint(len(contexts), (len(x),), generator=generator).tolist()
                y = [contexts[k].format(args.placeholder_token) for k in chosen]
                with accelerator.autocast():
                    cond = encode_prompt(pipe, y)  # c_theta(y), through which the gradient reaches the vectors
                    z_t = training.noised(alpha_bar, z_0, noise, t)
                    output = pipe.unet(z_t, t, cond.embeds).sample
                wanted = training.target(kind, alpha_bar, z_0, noise, t)
                loss = ((output.float() - wanted) ** 2).mean()  # Eq. 2
                accelerator.backward(loss / micros)
                total += loss.item() / micros
            shared.check_finite(total, step)
            losses.append(total)
            accelerator.log({"loss": total}, step)
            shared.average_gradients(accelerator, [vectors])
            if args.max_grad_norm:
                accelerator.clip_grad_norm_([vectors], args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            due = (step + 1) % args.checkpointing_steps == 0 and step + 1 < args.max_train_steps
            if accelerator.is_main_process and due:
                training.save_training(args, step + 1, trained, optimizer, schedule, who, scaler)
            if accelerator.is_main_process and args.validation_prompt and (step + 1) % args.validation_steps == 0:
                shared.validate(args, pipe, args.validation_prompt, f"validation-{step + 1}.png")
    if accelerator.is_main_process:
        with atomic_path(Path(args.output_dir) / "learned_embeds.safetensors") as temporary:
            save_file({args.placeholder_token: vectors.detach().cpu().contiguous()}, temporary)
        prompt = args.validation_prompt or f"a {args.placeholder_token}"
        seconds = training.whole_seconds(cost.seconds, first, args.max_train_steps)
        costs = {"seconds": seconds, "peak_memory_mb": cost.peak_memory_mb}
        shared.finish(args, pipe, prompt, losses, trainable_parameters=vectors.numel(), **costs)
    accelerator.end_training()


def add_learned_word(pipe, word: str, initial: str, count: int):
    """Teach the pipeline `word` of `count` tokens, each starting as the vector of `initial`, and return the vectors
    [count, D]: a leaf tensor, float32, in the place of the tokens' rows from now on.

    Raises InputError if `initial` is more than one token of this model, as in diffusers' script.
    """
    import torch

    from spdinv.customised.words import add_word

    ids = pipe.tokenizer(initial, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(f"--initializer_token {initial!r} is {len(ids)} tokens of this model; give a word that is one")
    start = pipe.text_encoder.get_input_embeddings().weight[ids[0]].detach().float()
    add_word(pipe, word, start.repeat(count, 1))
    own = pipe.tokenizer(word, add_special_tokens=False).input_ids
    vectors = start.repeat(count, 1).requires_grad_(True)

    def put_in(layer, inputs, output):
        for row, token in zip(vectors, own, strict=True):
            output = torch.where((inputs[0] == token)[..., None], row.to(output), output)
        return output

    pipe.text_encoder.get_input_embeddings().register_forward_hook(put_in)
    return vectors


def load(folder: Path, model: str, device: str | None = None):
    """(pipe, word): the base model that knows the learned word."""
    from common.pipelines import load_pipeline
    from spdinv.customised.loading import find_files, learned_word, load_adapter, read

    pipe = load_pipeline(model, device)
    load_adapter(pipe, folder)
    (file,) = find_files(Path(folder))
    return pipe, learned_word(file, read(file))[0]


if __name__ == "__main__":
    main()
