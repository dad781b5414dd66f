"""Every method of the arena, one entry each: how it is trained, loaded, tuned and called on the page.

A further method is a file with `main(argv)`, which takes the usual flags, and `load(folder, model, device)`, which
gives the personalised pipeline, and one line in METHODS. Nothing is trained here, and nothing heavy imported.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data import Subject
from common.flags import is_picturebook_folder
from common.runs import write_json
from lipschitz_personalize.options import as_flags
from lipschitz_personalize.reproduction.plan import recipe

TOKEN = "sks"  # the rare token of diffusers and of the paper's code
NEVER = 10**9  # a training that is interrupted is begun anew, so that its time is that of one piece
REFERENCE = "reference.json"  # what an encoder-based method is given of a subject


@dataclass(frozen=True)
class Method:
    """title: on the page. script: the module that trains it; "" where nothing is trained. flags: that make the script
    this method. loader: (folder, model, device) -> pipeline; by default the script's `load`. token: what the subject is
    called in prompts; names_class: whether the class word stays beside it; class_flag: a flag that is told the class.
    tries: flag -> values that the tuning goes through. paper: the folder that owns it. needs: what it needs beyond the
    model that all others share, and the picturebook does not have."""

    title: str
    script: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    loader: Callable[..., Any] | None = None
    token: str = TOKEN
    names_class: bool = True
    class_flag: str = ""
    tries: dict[str, tuple] = field(default_factory=dict)
    paper: str = "baselines"
    needs: str = ""

    @property
    def family(self) -> str:
        """What the page can filter by."""
        space = {"custom_diffusion": "Custom Diffusion", "lora": "LoRA"}.get(self.flags.get("parameter_space"))
        return space or ("DreamBooth" if self.paper == "lipschitz_personalize" else "others")

    def own_flags(self, model: str) -> dict[str, Any]:
        """The flags that make the script this method; on real models with the baselines' own recipes, which the
        trainer's defaults, those of the penalty, are not."""
        if self.flags.get("l2_reg_weight") == 0:
            return {**self.flags, **recipe(self.flags["parameter_space"], model)}
        return self.flags

    def command(self, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int) -> list[str]:
        """The command line of one training. settings: of the method, over the script's own defaults."""
        called = f"{self.token} {subject.class_name}" if self.names_class else self.token
        start = "a" if is_picturebook_folder(model) else "a photo of a"  # no caption of the picturebook says "photo"
        given = {
            "pretrained_model_name_or_path": model,
            "instance_data_dir": subject.paths[0].parent,
            "instance_prompt": f"{start} {called}",
            "class_prompt": f"{start} {subject.class_name}",
            "class_data_dir": folder / "class_pictures",  # made only where the method wants them
            "checkpointing_steps": NEVER,
            "num_validation_images": 1,
            **self.own_flags(model),
            **settings,
            "seed": seed,
            "output_dir": folder,
        }
        if self.class_flag:
            given[self.class_flag] = subject.class_name.split()[-1]  # of "stuffed animal": one token is needed
        return as_flags(given)

    def train(self, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int) -> None:
        """Train into `folder`; nothing to do where the method has no training but what it is shown."""
        if self.script:
            importlib.import_module(self.script).main(self.command(subject, folder, model, settings, seed))
        elif self.needs:
            about = {"pictures": [str(path.resolve()) for path in subject.paths], "class": subject.class_name}
            write_json(folder / REFERENCE, about)

    def load(self, folder: Path, model: str, device: str | None = None, **strength: float):
        """The personalised pipeline. strength: how far from the base's weights to the trained ones, for trainings of
        lipschitz_personalize."""
        loader = self.loader or importlib.import_module(self.script).load
        return loader(folder, model, device, **strength)


def load_base(folder: Path, model: str, device: str | None = None):
    from lipschitz_personalize.objectives import load_backbone

    return load_backbone(model, device)


def load_trained(folder: Path, model: str, device: str | None = None, strength: float = 1.0):
    from lipschitz_personalize.loading import load_trained

    return load_trained(folder, model, device, strength)


def load_svdiff(folder: Path, model: str, device: str | None = None):
    from svdiff.merging import load, write_into

    pipe = load_base(folder, model, device)
    write_into(pipe, load(pipe, folder))
    return pipe


def load_shown(module: str) -> Callable[..., Any]:
    """The loader of a method that is only shown its subject."""
    return lambda *given: importlib.import_module(module).load(*given)


def own(title: str, space: str, rates: tuple[float, ...], token: str = TOKEN, **flags: Any) -> Method:
    """A method of lipschitz_personalize.train. flags: l2_reg_weight 0 for a baseline; none for the penalty."""
    tries = {"learning_rate": rates, **(SCHEDULES if flags else {"l2_reg_weight": LAMBDAS[space]})}
    return Method(title, "lipschitz_personalize.train", {"parameter_space": space, **flags}, load_trained, token,
                  tries=tries, paper="lipschitz_personalize")  # fmt: skip


REAL_WEIGHTS = "needs weights: an encoder trained for Stable Diffusion 1.5, which has no counterpart in the picturebook"
PLAIN, PRIOR = {"l2_reg_weight": 0}, {"l2_reg_weight": 0, "with_prior_preservation": True}
ALL, FEW = (1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3)  # rates for all weights of the network, and for few
WORD, SCHEDULES = "<new1>", {"lr_scheduler": ("constant", "cosine")}
LAMBDAS = {"full": (5.0, 50.0), "custom_diffusion": (0.5, 5.0), "lora": (1e-6, 1e-5)}

METHODS = {  # in the order of the page, which compares the first with the last
    "dreambooth+prior": own("DreamBooth + prior", "full", ALL, **PRIOR),
    "dreambooth": own("DreamBooth", "full", ALL, **PLAIN),
    "base": Method("Base model, class word", loader=load_base, token=""),
    "textual_inversion": Method("Textual Inversion", "eval.baselines.textual_inversion", token="<sks>",
                                names_class=False, class_flag="initializer_token",
                                tries={"learning_rate": (2e-3, 7e-3, 2e-2), **SCHEDULES}),
    "oft": Method("OFT", "eval.baselines.oft", {"with_prior_preservation": True},
                  tries={"learning_rate": (1e-3, 3e-3, 1e-2), **SCHEDULES}),
    "ip_adapter": Method("IP-Adapter", loader=load_shown("eval.baselines.ip_adapter_subject"), token="",
                         needs=REAL_WEIGHTS),
    "blip_diffusion": Method("BLIP-Diffusion", loader=load_shown("eval.baselines.blip_diffusion"), token="",
                             needs=REAL_WEIGHTS),
    "svdiff": Method("SVDiff", "svdiff.train", loader=load_svdiff, paper="svdiff",
                     tries={"learning_rate": (2e-3, 6e-3, 2e-2), **SCHEDULES}),
    "custom_diffusion+prior": own("Custom Diffusion + prior", "custom_diffusion", FEW, WORD, **PRIOR),
    "custom_diffusion+penalty": own("Custom Diffusion + penalty", "custom_diffusion", FEW, WORD),
    "lora+prior": own("DreamBooth-LoRA + prior", "lora", FEW, **PRIOR),
    "lora+penalty": own("DreamBooth-LoRA + penalty", "lora", FEW),
    "dreambooth+penalty": own("DreamBooth + penalty", "full", ALL),
}  # fmt: skip
TRAINED = {name: method for name, method in METHODS.items() if method.script}
