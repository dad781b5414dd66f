"""Every method of the arena, one entry each: how it is trained, loaded, tuned and called on the page.

A further method is a file with `main(argv)`, which takes the usual flags, and `load(folder, model, device)`, which
gives the personalised pipeline, and one line in METHODS. Nothing is trained here, and nothing heavy imported.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.flags import as_flags
from common.runs import write_json
from lipschitz_personalize.options import NEW_WORD, TOKEN
from lipschitz_personalize.reproduction import plan

if TYPE_CHECKING:
    from common.data import Subject

REFERENCE = "reference.json"  # what an encoder-based method is given of a subject


@dataclass(frozen=True)
class Method:
    """title: on the page. script: the module that trains it; "" where nothing is trained. flags: that make the script
    this method. loader: "module:function", (folder, model, device) -> pipeline; by default the script's `load`. token:
    what the subject is called in prompts; names_class: whether the class word stays beside it; class_flag: a flag that
    is told the class. tries: flag -> values that the tuning goes through. paper: the folder that owns it. needs: what
    it needs beyond the model that all others share, and the picturebook does not have."""

    title: str
    script: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    loader: str = ""
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

    def command(self, subject: "Subject", folder: Path, model: str, settings: dict[str, Any], seed: int) -> list[str]:
        """The command line of one training. settings: of the method, over the script's own defaults."""
        given = {
            "pretrained_model_name_or_path": model,
            **plan.subject_flags(subject, model, self.token, folder, self.names_class),
            "class_data_dir": folder / "class_pictures",  # made only where the method wants them
            "num_validation_images": 1,
            **plan.with_recipe(self.flags, model),
            **settings,
            "seed": seed,
        }
        if self.class_flag:
            given[self.class_flag] = subject.class_name.split()[-1]  # of "stuffed animal": one token is needed
        return as_flags(given)

    def train(self, subject: "Subject", folder: Path, model: str, settings: dict[str, Any], seed: int) -> None:
        """Train into `folder`; nothing to do where the method has no training but what it is shown."""
        if self.script:
            importlib.import_module(self.script).main(self.command(subject, folder, model, settings, seed))
        elif self.needs:
            about = {"pictures": [str(path.resolve()) for path in subject.paths], "class": subject.class_name}
            write_json(folder / REFERENCE, about)

    def load(self, folder: Path, model: str, device: str | None = None, **strength: float):
        """The personalised pipeline. strength: how far from the base's weights to the trained ones, for trainings of
        lipschitz_personalize."""
        module, _, name = (self.loader or f"{self.script}:load").partition(":")
        return getattr(importlib.import_module(module), name)(folder, model, device, **strength)


def load_base(folder: Path, model: str, device: str | None = None):
    from lipschitz_personalize.objectives import load_backbone

    return load_backbone(model, device)


def load_svdiff(folder: Path, model: str, device: str | None = None):
    from svdiff.merging import load, write_into

    pipe = load_base(folder, model, device)
    write_into(pipe, load(pipe, folder))
    return pipe


ALL, FEW, WORD = (1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3), (2e-3, 7e-3, 2e-2)  # rates for all weights, few, a word
LAMBDAS = {"full": (5.0, 50.0), "custom_diffusion": (0.5, 5.0), "lora": (1e-6, 1e-5)}
SCHEDULES = ("constant", "cosine")
REAL_WEIGHTS = "needs weights: an encoder trained for Stable Diffusion 1.5, which has no counterpart in the picturebook"


def own(title: str, name: str, rates: tuple[float, ...]) -> Method:
    """A method of lipschitz_personalize.train. name: in its plan.METHODS."""
    flags = plan.METHODS[name]
    second = {"lr_scheduler": SCHEDULES}
    if "l2_reg_weight" not in flags:  # the penalty, whose weight is tuned
        second = {"l2_reg_weight": LAMBDAS[flags["parameter_space"]]}
    token = NEW_WORD if flags["parameter_space"] == "custom_diffusion" else TOKEN
    return Method(title, "lipschitz_personalize.train", flags, "lipschitz_personalize.loading:load_trained", token,
                  tries={"learning_rate": rates, **second}, paper="lipschitz_personalize")  # fmt: skip


def other(title: str, script: str, rates: tuple[float, ...], **more: Any) -> Method:
    """A method with a training script of its own."""
    return Method(title, script, tries={"learning_rate": rates, "lr_scheduler": SCHEDULES}, **more)


def shown(title: str, loader: str) -> Method:
    """A method that is only shown its subject, by weights trained for it."""
    return Method(title, loader=f"eval.baselines.shown:{loader}", token="", needs=REAL_WEIGHTS)


METHODS = {  # in the order of the page, which compares the first with the last
    "dreambooth+prior": own("DreamBooth + prior", "dreambooth+prior", ALL),
    "dreambooth": own("DreamBooth", "dreambooth", ALL),
    "base": Method("Base model, class word", loader=f"{__name__}:load_base", token=""),
    "textual_inversion": other("Textual Inversion", "eval.baselines.textual_inversion", WORD, token="<sks>",
                               names_class=False, class_flag="initializer_token"),
    "oft": other("OFT", "eval.baselines.oft", (1e-3, 3e-3, 1e-2), flags={"with_prior_preservation": True}),
    "ip_adapter": shown("IP-Adapter", "load_ip_adapter"),
    "blip_diffusion": shown("BLIP-Diffusion", "load_blip"),
    "svdiff": other("SVDiff", "svdiff.train", (2e-3, 6e-3, 2e-2), loader=f"{__name__}:load_svdiff", paper="svdiff"),
    "custom_diffusion+prior": own("Custom Diffusion + prior", "custom_diffusion+prior", FEW),
    "custom_diffusion+penalty": own("Custom Diffusion + penalty", "custom_diffusion+penalty", FEW),
    "lora+prior": own("DreamBooth-LoRA + prior", "lora+prior", FEW),
    "lora+penalty": own("DreamBooth-LoRA + penalty", "lora+penalty", FEW),
    "dreambooth+penalty": own("DreamBooth + penalty", "dreambooth+penalty", ALL),
}  # fmt: skip
TRAINED = {name: method for name, method in METHODS.items() if method.script}
