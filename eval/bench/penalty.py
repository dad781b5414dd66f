"""What the Lipschitz penalty costs: its gradient against one training step, and a whole run against prior preservation.

Everything is measured in turn and compared round by round; the median is printed with the least and the most.
"""

from collections.abc import Callable

import torch

from common.runs import measure
from common.training import step_generator
from eval.bench.ratios import against, middle, rounds
from lipschitz_personalize.objectives import add_noise, encode_text, network, predict, squared_error
from lipschitz_personalize.regularizer import make_regularizer

PROMPT, CLASS_PROMPT = "a sks cat", "a cat"
STEPS, CLASS_PICTURES = 200, 40  # of the whole run
GOALS = {"general": 6.5, "preset": 5.0, "bf16": None}  # percent of a step


def run(pipe, args) -> dict[str, list[dict]]:
    """The part "penalty" of eval.bench, on a pipeline of its own, for it is trained; {name in bench.json: rows}.
    pipe: of the other parts, left as it is."""
    from common.pipelines import load_pipeline

    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    if args.training_shapes == "sd15":
        found = {"penalty": step_rows(sd15_shapes(pipe), args.repeats)}
    else:
        found = {"penalty": step_rows(pipe, args.repeats),
                 "prior": run_rows(pipe, args.repeats, args.num_inference_steps)}  # fmt: skip
    for name, goal in GOALS.items():
        shares = [100 * row[f"{name}_seconds"] / row["step_seconds"] for row in found["penalty"]]
        print(f"Penalty, {name}: {middle(shares)} % of a step at batch 1{against(shares, goal)}")
    passes = [100 * row["pass_seconds"] / row["step_seconds"] for row in found["penalty"]]
    print(f"  One pass over all gradients and weights takes {middle(passes)} % of a step; the penalty needs two, "
          "in the preset one and Adam's decay")  # fmt: skip
    if rows := found.get("prior"):
        print(f"Run with the penalty / with prior preservation: {middle([r['ours'] / r['prior'] for r in rows])}")
    return found


def step_rows(pipe, repeats: int, batch_size: int = 1) -> list[dict]:
    """A row per round: seconds of a plain step of full fine-tuning (forward, backward, Adam), and what the penalty adds
    to it: in general; in the published preset, where Adam's own decay does half of the work; with a 16-bit copy. pass:
    of the least that can be done with the memory, one addition to every gradient. And the MiB of both copies."""
    net, backward = _training(pipe, batch_size)
    parameters = dict(net.named_parameters())
    penalties = {"general": make_regularizer(parameters, 1.0), "preset": make_regularizer(parameters, 1.0),
                 "bf16": make_regularizer(parameters, 1.0, base_dtype=torch.bfloat16)}  # fmt: skip
    plain = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0, fused=True)  # the weights stay
    decaying = torch.optim.Adam(penalties["preset"].adam_groups(), lr=0.0, fused=True)
    decaying.state = plain.state
    rows, base = [], penalties["general"].base

    def add_base() -> None:
        torch._foreach_add_([tensor.grad for tensor in parameters.values()], [base[name] for name in parameters])

    for number in range(repeats + 1):  # the first round warms up
        row = {}
        for name, penalty in penalties.items():
            row["backward"] = _seconds(backward, number)
            row[f"{name}_seconds"] = _seconds(penalty.add_gradient)
            finish = _seconds((decaying if name == "preset" else plain).step)
            if name == "preset":
                row["preset_seconds"] += finish - row["adam"]
            else:
                row["adam"] = finish
            plain.zero_grad()
        backward(number)
        row["pass_seconds"] = _seconds(add_base)
        plain.zero_grad()
        row["step_seconds"] = row.pop("backward") + row.pop("adam")
        rows.append(row | {f"{name}_mb": sum(tensor.nbytes for tensor in penalties[name].base.values()) / 2**20
                           for name in ("general", "bf16")})  # fmt: skip
    return rows[1:]


def run_rows(pipe, repeats: int, num_inference_steps: int = 50) -> list[dict]:
    """Seconds of a whole run, from its parts measured in turn: "ours" is STEPS steps of one picture with the penalty;
    "prior" is as many steps of two, without, and the drawing of CLASS_PICTURES."""
    net, one = _training(pipe, 1)
    _, two = _training(pipe, 2)
    penalty = make_regularizer(dict(net.named_parameters()), 1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def step(number: int, backward, more: Callable[[], object]) -> None:
        backward(number)
        more()
        optimizer.step()
        optimizer.zero_grad()

    parts = {
        "ours": lambda number: step(number, one, penalty.add_gradient),
        "double": lambda number: step(number, two, lambda: None),
        "drawing": lambda number: _draw(pipe, number, num_inference_steps),
    }
    return [{"ours": STEPS * row["ours_seconds"],
             "prior": STEPS * row["double_seconds"] + CLASS_PICTURES * row["drawing_seconds"]}
            for row in rounds(parts, repeats)]  # fmt: skip


def _training(pipe, batch_size: int) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """(network, backward): backward(number) leaves the loss's gradient of a step in .grad."""
    net = network(pipe).requires_grad_(True)
    with torch.no_grad():
        cond = encode_text(pipe, [PROMPT, CLASS_PROMPT])[[number % 2 for number in range(batch_size)]]
        width = getattr(net.config, "cross_attention_dim", None) or cond.embeds.shape[-1]
        cond = cond.with_embeds(cond.embeds.repeat(1, 1, width // cond.embeds.shape[-1]))  # sd15_shapes
    side = net.config.sample_size
    latents = torch.randn(batch_size, net.config.in_channels, side, side, generator=step_generator(0, 0))
    latents = latents.to(pipe.device)

    def backward(number: int) -> None:
        noisy = add_noise(pipe, latents, step_generator(0, number))
        squared_error(predict(pipe, noisy.z, noisy.t, cond), noisy).mean().backward()

    return net, backward


@torch.no_grad()
def _draw(pipe, seed: int, num_inference_steps: int) -> None:
    pipe.set_progress_bar_config(disable=True)
    pipe(CLASS_PROMPT, num_inference_steps=num_inference_steps, generator=step_generator(seed, 0))


def _seconds(work: Callable[..., object], *given: object) -> float:
    with measure() as cost:
        work(*given)
    return cost.seconds


def sd15_shapes(pipe):
    """The pipeline with a random UNet of Stable Diffusion 1.5's shapes in place of its own, on 64x64 latents; text
    states are repeated to its width. For timings only: the pictures are noise. Needs some 24 GB."""
    from diffusers import UNet2DConditionModel

    with torch.device(pipe.device):
        pipe.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the rest are diffusers' defaults
    return pipe
