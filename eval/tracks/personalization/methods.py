"""Every method of the arena under one interface: train on a subject into a folder, load the folder as a pipeline.

Trainings are the scripts' own `main`, with the flags that a user would type; nothing is trained here.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.data import Subject
from common.flags import is_picturebook_folder
from common.runs import write_json
from lipschitz_personalize.reproduction.plan import as_flags, recipe

TOKEN, WORD = "sks", "<new1>"  # the rare token of diffusers and of the paper's code; Custom Diffusion's new word
LIPSCHITZ, SVDIFF = "lipschitz_personalize.train", "svdiff.train"
TEXTUAL_INVERSION, OFT = "eval.baselines.textual_inversion", "eval.baselines.oft"
NEVER = 10**9  # a training that is interrupted is begun anew, so that its time is that of one piece
REFERENCE = "reference.json"  # what an encoder-based method is given of a subject


@dataclass(frozen=True)
class Method:
    """paper: the folder that owns it, or "baselines". script: of its training; None where nothing is trained.
    load(folder, model, device) -> (pipeline, token): what the subject is called in prompts.
    own: flags that make the script this method. names_class: whether prompts keep the class word beside the token.
    needs: what it needs beyond the model that all others share, and the picturebook does not have."""

    title: str
    paper: str
    script: str | None
    load: Callable[..., tuple[Any, str]]
    own: dict[str, Any]
    token: str = TOKEN
    names_class: bool = True
    needs: str = ""

    def own_flags(self, model: str) -> dict[str, Any]:
        """The flags that make the script this method; on real models with the baselines' own recipes, which the
        trainer's defaults, those of the penalty, are not."""
        if self.own.get("l2_reg_weight") == 0:
            return {**self.own, **recipe(self.own["parameter_space"], model)}
        return self.own

    def flags(self, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int) -> list[str]:
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
        if self.script == TEXTUAL_INVERSION:
            given["initializer_token"] = subject.class_name.split()[-1]  # of "stuffed animal": one token is needed
        return as_flags(given)

    def train(self, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int) -> None:
        """Train into `folder`; nothing to do where the method has no training but what it is shown."""
        if self.script:
            importlib.import_module(self.script).main(self.flags(subject, folder, model, settings, seed))
        elif self.needs:
            about = {"pictures": [str(path.resolve()) for path in subject.paths], "class": subject.class_name}
            write_json(folder / REFERENCE, about)


# ---------------------------------------------------------------------------------------------------------- loading


def load_base(folder: Path, model: str, device: str | None = None):
    from lipschitz_personalize.objectives import load_backbone

    return load_backbone(model, device), ""


def load_trained(folder: Path, model: str, device: str | None = None, token: str = TOKEN, strength: float = 1.0):
    """The base model with the weights, the LoRA, or Custom Diffusion's projections and word of a training; strength:
    how far from the base's weights to the trained ones."""
    from lipschitz_personalize.loading import load_trained

    return load_trained(folder, model, device, strength), token


def load_svdiff(folder: Path, model: str, device: str | None = None):
    from svdiff.merging import load, write_into

    pipe, _ = load_base(folder, model, device)
    write_into(pipe, load(pipe, folder))
    return pipe, TOKEN


def load_own(module: str, folder: Path, model: str, device: str | None = None, **kwargs: Any):
    return importlib.import_module(module).load(folder, model, device, **kwargs)


REAL_WEIGHTS = "needs weights: an encoder trained for Stable Diffusion 1.5, which has no counterpart in the picturebook"
ENCODERS = {"ip_adapter": "eval.baselines.ip_adapter_subject", "blip_diffusion": "eval.baselines.blip_diffusion"}
PRIOR = {"with_prior_preservation": True}
FULL, CUSTOM, LORA = ({"parameter_space": name} for name in ("full", "custom_diffusion", "lora"))
PLAIN = {"l2_reg_weight": 0}
load_word = partial(load_trained, token=WORD)

METHODS = {
    "base": Method("Base model, class word", "baselines", None, load_base, {}, token=""),
    "textual_inversion": Method("Textual Inversion", "baselines", TEXTUAL_INVERSION,
                                partial(load_own, TEXTUAL_INVERSION), {}, token="<sks>", names_class=False),
    "oft": Method("OFT", "baselines", OFT, partial(load_own, OFT, token=TOKEN), PRIOR),
    "ip_adapter": Method("IP-Adapter", "baselines", None, partial(load_own, ENCODERS["ip_adapter"]), {}, token="",
                         needs=REAL_WEIGHTS),
    "blip_diffusion": Method("BLIP-Diffusion", "baselines", None, partial(load_own, ENCODERS["blip_diffusion"]), {},
                             token="", needs=REAL_WEIGHTS),
    "svdiff": Method("SVDiff", "svdiff", SVDIFF, load_svdiff, {}),
    "custom_diffusion+prior": Method("Custom Diffusion", "lipschitz_personalize", LIPSCHITZ, load_word,
                               CUSTOM | PLAIN | PRIOR, token=WORD),
    "lipschitz_custom_diffusion": Method("Custom Diffusion + penalty", "lipschitz_personalize", LIPSCHITZ, load_word,
                                         CUSTOM, token=WORD),
    "lora+prior": Method("DreamBooth-LoRA", "lipschitz_personalize", LIPSCHITZ, load_trained, LORA | PLAIN | PRIOR),
    "lipschitz_lora": Method("DreamBooth-LoRA + penalty", "lipschitz_personalize", LIPSCHITZ, load_trained, LORA),
    "dreambooth": Method("DreamBooth", "lipschitz_personalize", LIPSCHITZ, load_trained, FULL | PLAIN),
    "dreambooth+prior": Method("DreamBooth + prior", "lipschitz_personalize", LIPSCHITZ, load_trained,
                               FULL | PLAIN | PRIOR),
    "lipschitz": Method("DreamBooth + penalty (Lipschitz)", "lipschitz_personalize", LIPSCHITZ, load_trained, FULL),
}  # fmt: skip
