"""The two-dimensional experiment of Sec. 4.3 (Fig. 1): what a sixth cluster does to a model of five.

    python -m lipschitz_personalize.reproduction.toy          # 40,000 small steps; writes toy.png and metrics.json

A diffusion model of five Gaussian clusters is fine-tuned on a sixth in three ways: naive; with real samples of one old
class beside (prior preservation); with the penalty. Settings are those of the released code.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common.flags import number, show_config
from common.runs import atomic_path, make_parser, measure, script, write_config, write_json
from lipschitz_personalize.regularizer import make_regularizer

METHODS = ("naive", "prior", "ours")
CLASSES, POINTS, SPREAD, RADIUS = 6, 1000, 0.5, 3.0  # class 5 is the new one, in the middle of the pentagon
STEPS, WIDTH, EMBEDDING, BATCH, LEARNING_RATE = 100, 96, 8, 512, 2e-3


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser("Fine-tune a 2-D diffusion model of five clusters on a sixth: naive, prior, ours (Fig. 1).")
    add = parser.add_argument
    add("--l2_reg_weight", type=number(float, 0), default=50.0, help="lambda of ours, convention mean_sum (released)")
    add("--prior_loss_weight", type=number(float, 0), default=100.0, help="of the real samples of class 0 (released)")
    add("--pretrain_epochs", type=number(int, 1), default=1000, help="on the five old classes (released)")
    add("--finetune_epochs", type=number(int, 1), default=5000, help="on the new class (released)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=42, help="released: 42")
    add("--output_dir", default="outputs/lipschitz_personalize/reproduction/toy",
        help="folder for toy.png, metrics.json, config.json")  # fmt: skip
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    return parser.parse_args(argv)


def centres():
    """[6, 2]: a regular pentagon from angle 0, and its middle."""
    angles = torch.arange(5) * 2 * math.pi / 5
    return torch.cat([RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1), torch.zeros(1, 2)])


def sample_data(generator):
    """Points [6, 1000, 2] of the true distribution, class by class."""
    return centres()[:, None] + SPREAD * torch.randn(CLASSES, POINTS, 2, generator=generator)


def alpha_bar_table():
    """Cosine schedule (Nichol & Dhariwal, Eq. 17, offset 0.008), [100]; floored at 1e-5, for its last beta is all but
    1."""
    level = torch.cos((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    return (level[1:] / level[0]).clamp(min=1e-5).float()


class Denoiser(nn.Module):
    """eps_theta(x, t, c): 12,178 parameters."""

    def __init__(self):
        super().__init__()
        self.time, self.label = nn.Embedding(STEPS, EMBEDDING), nn.Embedding(CLASSES, EMBEDDING)
        self.body = nn.Sequential(
            nn.Linear(2 + 2 * EMBEDDING, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
        )

    def forward(self, x, t, c):
        return self.body(torch.cat([x, self.time(t), self.label(c)], dim=1))


def denoising_loss(model, alpha_bar, x, c, generator):
    """E ||eps - eps_theta(x_t, t, c)||^2, the mean over numbers, t uniform. x [B, 2], c [B]."""
    t = torch.randint(STEPS, (len(x),), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    a = alpha_bar[t][:, None]
    return (model(a.sqrt() * x + (1 - a).sqrt() * eps, t, c) - eps).square().mean()


def train(model, optimizer, alpha_bar, x, c, epochs: int, generator, prior=None, regularizer=None) -> None:
    """Epochs over points x [n, 2] of classes c [n]. prior: (real points of class 0 [m, 2], weight of their loss)."""
    for _ in tqdm(range(epochs), "epochs", disable=None):
        for picked in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = denoising_loss(model, alpha_bar, x[picked], c[picked], generator)
            if prior:
                points, weight = prior
                real = points[torch.randint(len(points), (len(picked),), generator=generator)]
                old = torch.zeros(len(real), dtype=torch.long)
                loss = loss + weight * denoising_loss(model, alpha_bar, real, old, generator)
            optimizer.zero_grad()
            loss.backward()
            if regularizer:
                regularizer.add_gradient()  # + lambda times the sum of the tensors' mean squares
            optimizer.step()


def pretrain(args: argparse.Namespace):
    """(points, alpha-bar, a model of the five old clusters, its optimiser, the generator of all that comes)."""
    torch.manual_seed(args.seed)  # the model's first weights
    generator = torch.Generator().manual_seed(args.seed)
    data, alpha_bar, model = sample_data(generator), alpha_bar_table(), Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    old = torch.arange(CLASSES - 1).repeat_interleave(POINTS)
    train(model, optimizer, alpha_bar, data[:-1].flatten(0, 1), old, args.pretrain_epochs, generator)
    return data, alpha_bar, model, optimizer, generator


def copy_of(model, optimizer):
    """(model, optimiser) to go on with; Adam keeps its moments, as released."""
    own = copy.deepcopy(model)
    tuner = torch.optim.Adam(own.parameters(), LEARNING_RATE, fused=True)
    tuner.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return own, tuner


def fine_tune(method: str, args: argparse.Namespace, model, optimizer, alpha_bar, data, generator) -> None:
    """One of METHODS, on class 5 alone (prior: and on real points of class 0). Model and optimiser are changed."""
    new = torch.full((POINTS,), CLASSES - 1)
    prior = (data[0], args.prior_loss_weight) if method == "prior" else None
    weight = args.l2_reg_weight if method == "ours" else 0.0
    regularizer = make_regularizer(dict(model.named_parameters()), weight)  # None at 0
    train(model, optimizer, alpha_bar, data[-1], new, args.finetune_epochs, generator, prior, regularizer)


def draw(model, alpha_bar, generator):
    """Ancestral sampling with variance beta_t, 1000 points per class: [6, 1000, 2]. NaN becomes 0, as released."""
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    alpha = alpha_bar / before
    x = torch.randn(CLASSES * POINTS, 2, generator=generator)
    c = torch.arange(CLASSES).repeat_interleave(POINTS)
    with torch.no_grad():
        for t in reversed(range(STEPS)):
            eps = model(x, torch.full((len(x),), t), c)
            x = (x - (1 - alpha[t]) / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()
            if t > 0:
                x = x + (1 - alpha[t]).sqrt() * torch.randn(x.shape, generator=generator)
            x = x.nan_to_num()
    return x.reshape(CLASSES, POINTS, 2)


def knn_divergence(p, q, neighbour: int = 5) -> float:
    """KL(P || Q) in nats from samples p [n, d] and q [m, d]: mean of d log(nu / rho) + log(m / (n - 1)), where rho and
    nu are the distances from a point of p to its k-th neighbour in p and in q (Wang, Kulkarni & Verdu, 2009, Eq.
    17)."""
    rho = torch.cdist(p.double(), p.double()).kthvalue(neighbour + 1, dim=1).values  # the nearest is the point itself
    nu = torch.cdist(p.double(), q.double()).kthvalue(neighbour, dim=1).values
    gap = (nu.clamp(min=1e-12) / rho.clamp(min=1e-12)).log()
    return p.shape[1] * gap.mean().item() + math.log(len(q) / (len(p) - 1))


def divergences(data, drawn) -> dict[str, float]:
    """KL(p* || p_theta) of class and point together over the five old classes, which Theorem 1 speaks of (classes are
    equally likely, so it is the mean of theirs), and of the new class to its own truth."""
    found = [knn_divergence(data[c], drawn[c]) for c in range(CLASSES)]
    return {"kl_old": sum(found[:-1]) / (CLASSES - 1), "kl_new": found[-1]}


def picture(panels: dict, path: Path) -> None:
    """Points [6, 1000, 2] per panel, one colour per class."""
    from matplotlib.figure import Figure

    figure = Figure((3 * len(panels), 3.4), layout="constrained")
    for axis, (title, points) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for cluster, colour in zip(points, ("C0", "C1", "C2", "C4", "C5", "C3"), strict=False):
            axis.scatter(*cluster.T.numpy(), s=1, color=colour)
        axis.set(title=title, xlim=(-5, 5), ylim=(-5, 5), aspect="equal", xticks=[], yticks=[])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args):
        return
    with measure() as cost:
        data, alpha_bar, model, optimizer, generator = pretrain(args)
        pretrained = draw(model, alpha_bar, generator)
        panels = {"data": data, "pretrained": pretrained[:-1]}
        metrics = {"pretrained": {**divergences(data, pretrained), "kl_new": math.nan}}  # it was never shown class 5
        for method in METHODS:
            own, tuner = copy_of(model, optimizer)
            fine_tune(method, args, own, tuner, alpha_bar, data, generator)
            panels[method] = draw(own, alpha_bar, generator)
            metrics[method] = divergences(data, panels[method])
    output = Path(args.output_dir)
    picture(panels, output / "toy.png")  # Fig. 1
    write_config(output, args)
    write_json(output / "metrics.json", {**metrics, "seconds": cost.seconds})
    for name, found in metrics.items():
        print(f"{name:11}" + "  ".join(f"{key} {value:6.2f}" for key, value in found.items()))
    print(f"{cost.seconds:.0f} s; {output / 'toy.png'}")


if __name__ == "__main__":
    main()
