"""The editing engines, in the order in which tables and pages show them. Imports nothing heavy.

A new one is a file here, named as its entry, with two functions, and an entry below:
edit(drawing, z, prompts, **settings) -> latents [len(prompts), 4, h, w], source first, from sampling.start's drawing;
check(pipe, prompts, steps, latent_size, **settings), which raises InputError for what does not go together.
"""

from dataclasses import dataclass, field
from importlib import import_module

from common.flags import number
from spdinv.flags import Setting, setting, word_number


@dataclass(frozen=True)
class Entry:
    """title: in tables. settings: keyword arguments of `edit`, with flags. picture: those that belong to one picture.
    batch: the size of the UNet's batch; sees: which of its items see the source and the target prompt."""

    name: str
    title: str
    settings: tuple[Setting, ...] = ()
    picture: tuple[str, ...] = ()
    batch: int = 4
    sees: dict[str, int] = field(default_factory=lambda: {"source": 2, "target": 3})

    def __call__(self, pipe, schedule, inversion, prompts, guidance_scale=7.5, source_guidance_scale=None, **settings):
        """The engine itself: latents [len(prompts), 4, h, w], source branch (the reconstruction) first.
        source_guidance_scale: of the source branch, where it is another (released SPDInv under MasaCtrl: 1). Raises
        InputError as `check` does, and where the UNet lacks the layers that the engine reaches into."""
        from spdinv.sampling import start

        drawing, z = start(pipe, schedule, inversion, prompts, guidance_scale, source_guidance_scale)
        return import_module(f"spdinv.engines.{self.name}").edit(drawing, z, prompts, **settings)

    def check(self, pipe, prompts, steps, latent_size, source_guidance_scale=None, **settings) -> None:
        """Raises InputError where the engine cannot do what it is asked to with this UNet and these prompts."""
        import_module(f"spdinv.engines.{self.name}").check(pipe, prompts, steps, latent_size, **settings)


def _fraction(name: str, default: float, help: str) -> Setting:
    start = "fraction of the steps, from the noisy end, with the source's"
    return setting(name, default, f"{start} {help}", number(float, 0, 1))


def _seen(half: str) -> Setting:
    return setting(half, "src", f"whose keys and values the target sees in the {half.split('_')[1]}itional half: "
                   "the source's, both, its own", choices=("src", "joint", "none"))  # fmt: skip


_source_scale = setting("source_guidance_scale", None, "guidance scale of the source branch; none is "
                        "--guidance_scale", number(float, 0))  # fmt: skip

ENTRIES = (
    Entry("none", "no engine", batch=2, sees={"source": 1}),
    Entry("p2p", "P2P", (
        setting("controller", "refine", "refine: tokens aligned (PIE-Bench and the released SPDInv); replace: word "
                "for word", choices=("refine", "replace")),
        setting("cross_replace_steps", 0.4, "fraction of the steps, from the noisy end, with the source's "
                "cross-attention, and of words of the target prompt that have their own (PIE-Bench: 0.4)",
                word_number(0, 1, bare="default_"), nargs="+", metavar="FRACTION|WORD=FRACTION"),
        _fraction("self_replace_steps", 0.6, "self-attention (PIE-Bench: 0.6)"),
        _source_scale,
    ), ("blended_words", "substruct_words", "equalizer")),
    Entry("masactrl", "MasaCtrl", (
        setting("start_step", 4, "first step under control, counted from 0", number(int, 0)),
        setting("start_layer", None, "first self-attention layer under control, counted from 0 as they are called; "
                "none is 10 of Stable Diffusion's 16, and as deep in other UNets", number(int, 0)),
        _seen("inject_uncond"),
        _seen("inject_cond"),
        _source_scale,
    ), ("mask_words", "source_mask", "target_mask")),
    Entry("pnp", "PnP", (
        _fraction("feature_steps", 0.8, "features"),
        _fraction("attention_steps", 0.5, "self-attention queries and keys"),
        setting("negative_prompt", "ugly, blurry, black, low res, unrealistic",
                "unconditional text of the target"),
        setting("source_latents", None, "where the source's latents come from: the inversion's trajectory, or a "
                "reconstruction from its noise; none: the first for all but ddim, as published",
                choices=("trajectory", "reconstruction")),
    ), batch=3, sees={"target": 2}),  # its source item is told nothing
)  # fmt: skip
ENGINES = {entry.name: entry for entry in ENTRIES}
