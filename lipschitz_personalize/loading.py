"""A trained model from its folder: the base pipeline with what lipschitz_personalize.train wrote."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from common.lora import LORA_FILE, lora_deltas
from common.model_files import move_weights, read_weights
from common.runs import InputError, read_json
from lipschitz_personalize.objectives import backbone_of, load_backbone, network
from lipschitz_personalize.parameter_spaces import CUSTOM_DIFFUSION_FILE, WEIGHTS, WORD_KEYS, text_parts


def load_trained(
    folder: str | Path, model: str | None = None, device: str | torch.device | None = None, strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> DiffusionPipeline:  # fmt: skip
    """The pipeline with the weights of a training's folder, in full or for `strength` of the way from the base model to
    them (W + s (W' - W)). model: the base; by default the one that config.json names.

    Raises InputError where there is no training, it was interrupted, is damaged, or belongs to another model.
    """
    folder = Path(folder)
    found = [name for name in WEIGHTS if (folder / name).exists()]
    if len(found) != 1:
        raise InputError(f"{folder} holds no finished training; run python -m lipschitz_personalize.train --output_dir "
                         f"{folder}")  # fmt: skip
    if model is None:
        model = read_json(folder / "config.json").get("pretrained_model_name_or_path", "picturebook")
    pipe, file = load_backbone(model, device, dtype), folder / found[0]
    net, words = network(pipe), []
    if file.name == LORA_FILE:
        own = net.state_dict()  # W + B A of every layer in the file
        weights = {name: own[name] + delta.to(own[name]) for name, delta in lora_deltas(net, file).items()}
    elif file.name == CUSTOM_DIFFUSION_FILE:
        weights = {key.replace(".processor", "").replace("_custom_diffusion", ""): value
                   for key, value in read_weights(file)[0].items() if value.numel()}  # fmt: skip
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        named = folder / f"{config.get('modifier_token')}.safetensors"  # need not look like <new1>
        words = [named] if named.is_file() else sorted(folder.glob("<*>.safetensors"))
    else:  # a network, which large models split over several files
        weights = {}
        for part in sorted(file.glob("[!.]*.safetensors")):
            weights |= read_weights(part)[0]
        if missing := net.state_dict().keys() - weights.keys():
            raise InputError(f"{file} lacks {min(missing)}: a file is missing, or it is of another model")
    if not weights:
        raise InputError(f"{folder} holds no weight that was trained; train it again")
    move_weights(net, weights, folder, strength)
    for word in words:
        _add_word(pipe, word)
    return pipe


def _add_word(pipe, file: Path) -> None:
    (content, _), word = read_weights(file), file.stem
    parts = text_parts(pipe)
    keys = [word] if len(parts) == 1 else WORD_KEYS
    for (_, tokenizer, encoder), key in zip(parts, keys, strict=True):
        width = encoder.get_input_embeddings().weight.shape[1]
        if key not in content or tuple(content[key].shape[-1:]) != (width,):
            raise InputError(f"{file} was trained on another model: {key} of {width} numbers is needed "
                             f"({backbone_of(pipe)})")  # fmt: skip
        pipe.load_textual_inversion({word: content[key]}, tokenizer=tokenizer, text_encoder=encoder)
