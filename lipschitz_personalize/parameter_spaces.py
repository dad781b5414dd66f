"""What is trained: the whole network, Custom Diffusion's keys and values with a new word, or LoRA; and its files.

`full`, `custom_diffusion` and `lora` each prepare a pipeline and return a Space. Names in `parameters` are those of the
network's own tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file
from torch import Tensor

from common.files import refused_as
from common.lora import LORA_FILE, write_lora
from common.runs import InputError, atomic_path
from lipschitz_personalize.objectives import backbone_of, network
from lipschitz_personalize.regularizer import lora_change

CUSTOM_DIFFUSION_FILE = "pytorch_custom_diffusion_weights.safetensors"
WORD_KEYS = ["clip_l", "clip_g"]  # under which the ecosystem keeps a word of SDXL's two encoders
WEIGHTS = ("unet", "transformer", CUSTOM_DIFFUSION_FILE, LORA_FILE)  # one of them is in a training's folder


@dataclass(frozen=True, eq=False)
class Space:
    """parameters: trained tensors by name, float32. save(folder): write the weights in the ecosystem's format. counts:
    n_i of the penalty where a parameter is a row of a larger table. change: the squared change of the weights behind
    indirect parameters (the regulariser's convention function). trains_text: the conditioning changes while
    training."""

    parameters: dict[str, Tensor]
    save: Callable[[Path], None]
    counts: dict[str, int] = field(default_factory=dict)
    change: Callable[[], Tensor] | None = None
    trains_text: bool = False


def full(pipe: DiffusionPipeline) -> Space:
    """Every tensor of the network, as DreamBooth does."""
    net = network(pipe).requires_grad_(True)

    def save(folder: Path) -> None:
        name = "transformer" if backbone_of(pipe) == "sd3" else "unet"
        with atomic_path(folder / name) as place:
            net.save_pretrained(place)

    return Space(dict(net.named_parameters()), save)


# -------------------------------------------------------------------------------------------------- Custom Diffusion


def custom_diffusion(pipe: DiffusionPipeline, word: str, initializer: str) -> Space:
    """Keys and values of all cross-attention (SD3: of the image stream of its joint attention, with biases), and in SD
    and SDXL one new word, which starts as the mean of the initializer's tokens.

    As in Custom Diffusion's code, the first token's keys and values let no gradient through. The official code trains
    the word table with the gradients of all other rows zeroed; here only the word's row is trained, and the penalty
    still divides by the table's size.
    """
    net, sd3 = network(pipe), backbone_of(pipe) == "sd3"
    layers = {f"{name}.{part}": getattr(module, part) for name, module in net.named_modules()
              if isinstance(module, Attention) and (sd3 or module.is_cross_attention)
              for part in ("to_k", "to_v")}  # fmt: skip
    if not layers:
        raise InputError("this network has no cross-attention to train; take --parameter_space full")
    parameters: dict[str, Tensor] = {}
    for name, layer in layers.items():
        _compute_in_float32(layer)
        if not sd3:  # there the tokens of the prompt have projections of their own
            layer.register_forward_hook(_hold_first_token)
        layer.requires_grad_(True)
        parameters |= {f"{name}.{part}": tensor for part, tensor in layer.named_parameters()}
    words, counts = [], {}
    for encoder_name, tokenizer, encoder in () if sd3 else text_parts(pipe):
        row, table = add_word(pipe, tokenizer, encoder, word, initializer)
        words.append(row)
        parameters[f"{encoder_name}.{word}"], counts[f"{encoder_name}.{word}"] = row, table

    def save(folder: Path) -> None:
        with atomic_path(folder / CUSTOM_DIFFUSION_FILE) as path:
            save_file(custom_diffusion_file(net, layers), path)
        if words:
            names = [word] if len(words) == 1 else WORD_KEYS
            with atomic_path(folder / f"{word}.safetensors") as path:
                save_file({name: row.detach().cpu().clone() for name, row in zip(names, words, strict=True)}, path)

    return Space(parameters, save, counts, trains_text=bool(words))


def _compute_in_float32(layer: torch.nn.Module) -> None:
    """The layer in float32, inside of a network of any number format."""
    dtype = layer.weight.dtype
    layer.to(torch.float32)
    layer.register_forward_pre_hook(lambda layer, inputs: tuple(value.float() for value in inputs))
    layer.register_forward_hook(lambda layer, inputs, output: output.to(dtype))


def _hold_first_token(layer, inputs, output: Tensor) -> Tensor:
    """No gradient through the first token's keys and values."""
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)


def custom_diffusion_file(net: torch.nn.Module, layers: dict[str, torch.nn.Module]) -> dict[str, Tensor]:
    """The trained layers under diffusers' names of Custom Diffusion; its loader wants the other processors listed, too,
    and empty."""
    found = {}
    for name, layer in layers.items():
        owner, _, part = name.rpartition(".")
        for kind, tensor in layer.named_parameters():
            key = f"{owner}.processor.{part}_custom_diffusion.{kind}"
            found[key] = tensor.detach().float().cpu().contiguous().clone()
    trained = {key.split(".processor.")[0] for key in found}
    others = [name for name in getattr(net, "attn_processors", {}) if name.removesuffix(".processor") not in trained]
    return found | {name: torch.zeros(0) for name in others}


def text_parts(pipe) -> list[tuple[str, object, torch.nn.Module]]:
    """(name, tokenizer, model) of the CLIP text encoders of SD (one) and SDXL (two)."""
    parts = [("text_encoder", pipe.tokenizer, pipe.text_encoder)]
    if backbone_of(pipe) == "sdxl":
        parts.append(("text_encoder_2", pipe.tokenizer_2, pipe.text_encoder_2))
    return parts


def add_word(pipe, tokenizer, encoder, word: str, initializer: str | Tensor) -> tuple[torch.nn.Parameter, int]:
    """Make `word` one token of the encoder, and return its vector [D] as a parameter and the size of the whole table.

    initializer: a vector [D], or text whose tokens are averaged. From then on a hook puts the parameter in the place of
    the token's row. Raises InputError if the word is known already.
    """
    embedding = encoder.get_input_embeddings()
    if isinstance(initializer, str):
        ids = tokenizer(initializer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"--initializer_token {initializer!r} is no word; give one that the model knows")
        initializer = embedding.weight[torch.tensor(ids, device=embedding.weight.device)].float().mean(0)
    if {word, f"{word.lower()}</w>", f"▁{word}"} & tokenizer.get_vocab().keys():  # CLIP's and T5's whole words
        raise InputError(f"the word {word!r} is known to this model already; take a new one, such as <new1>")
    pipe.load_textual_inversion({word: initializer}, tokenizer=tokenizer, text_encoder=encoder)
    embedding, number = encoder.requires_grad_(False).get_input_embeddings(), tokenizer.convert_tokens_to_ids(word)
    row = torch.nn.Parameter(initializer.detach().to(embedding.weight.device, torch.float32).clone())
    put_rows(embedding, [number], [row])
    return row, embedding.weight.numel()


def put_rows(embedding: torch.nn.Embedding, numbers: Sequence[int], rows: Sequence[Tensor]) -> None:
    """From now on these vectors [D], which may be trained, stand in the place of these rows of the table."""

    def put(layer, inputs, output: Tensor) -> Tensor:
        for number, row in zip(numbers, rows, strict=True):
            output = torch.where((inputs[0] == number)[..., None], row.to(output), output)
        return output

    embedding.register_forward_hook(put)


# --------------------------------------------------------------------------------------------------------------- LoRA


def lora(pipe: DiffusionPipeline, rank: int, alpha: float, targets: list[str], init: str = "gaussian") -> Space:
    """Low-rank additions alpha / rank * B A to the layers whose names end in one of `targets`, through peft.

    B begins at 0, A "gaussian", N(0, 1 / rank^2), or "kaiming", uniform in +-1 / sqrt(inputs).
    """
    from peft import LoraConfig, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    net, begin = network(pipe), {"gaussian": "gaussian", "kaiming": True}[init]
    ends = [f".{name}" for name, _ in net.named_modules()]
    if unknown := [target for target in targets if not any(name.endswith(f".{target}") for name in ends)]:
        raise InputError(f"no layer of this network is called {unknown[0]}; change --lora_targets")
    with refused_as("LoRA does not fit the layers of --lora_targets"):
        net.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=begin, target_modules=targets))
    parameters = {name: tensor for name, tensor in net.named_parameters() if tensor.requires_grad}
    for tensor in parameters.values():
        tensor.data = tensor.data.float()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        if not isinstance(layer.base_layer, torch.nn.Linear):
            kind = type(layer.base_layer).__name__
            raise InputError(f"the layer {name} is a {kind}, and LoRA here is of linear layers; change --lora_targets")

    def change() -> Tensor:
        return lora_change((layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
                           for layer in layers.values() for name in layer.active_adapters)  # fmt: skip

    def save(folder: Path) -> None:
        # Loaders differ in where they look for alpha: it is folded into B, and every one of them is right.
        part = "transformer" if backbone_of(pipe) == "sd3" else "unet"
        state = get_peft_model_state_dict(net)
        write_lora(folder, part, {key: value.detach().float() * (alpha / rank if ".lora_B." in key else 1.0)
                                  for key, value in state.items()})  # fmt: skip

    return Space(parameters, save, change=change)
