"""The inversions, in the order in which tables and pages show them. Imports nothing heavy.

A new one is a file here, named as its entry, with a function
invert(pipe, schedule, latents [B,4,h,w], cond, **settings) -> result.Inversion,
and an entry below: then it has its flags, runs in infer, eval and every experiment, is tested by the tests of all
inversions, and has its title on the page.
"""

from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

from common.flags import number
from spdinv.flags import Setting, setting


@dataclass(frozen=True)
class Entry:
    """title: in tables. source: where the settings' defaults come from, for --help. settings: keyword arguments of
    `invert`, with flags.

    way_back: what the sampler gets beside the trajectory. "plain": nothing. "guided": something that its guided steps
    take in, step by step. "own": a sampling step in the place of the guided one.
    fitted: `invert` wants the guidance_scale of the source branch on the way back.
    """

    name: str
    title: str
    source: str = ""
    settings: tuple[Setting, ...] = ()
    way_back: str = "plain"
    fitted: bool = False

    def __call__(self, pipe, schedule, latents, cond, **settings):
        """The inversion itself, its cost counted: result.Inversion of clean latents [B,4,h,w] under prompts `cond`."""
        from spdinv.inversions.result import counted

        invert = import_module(f"spdinv.inversions.{self.name}").invert
        with counted(pipe.unet, latents) as cost:
            found = invert(pipe, schedule, latents, cond, **settings)
        return replace(found, cost=cost)


_count, _scale = number(int, 0), number(float, 0)
_nti, _aidi, _nmg, _prox, _fpi, _edict, _exact, _spd = (partial(setting, owner=name) for name in (
    "null_text", "aidi", "nmg", "proximal", "fixed_point", "edict", "exact", "spd"))  # fmt: skip
_interpolation = setting("interpolation", 0.0, "unconditional text: 0 the source prompt, 1 the null text",
                         number(float, 0, 1), "negative_prompt")  # fmt: skip

ENTRIES = (
    Entry("ddim", "DDIM"),
    Entry("null_text", "NTI", "released code", (
        _nti("inner_steps", 10, "Adam steps per sampling step, at most", _count),
        _nti("learning_rate", 1e-2, "at sampling step 0; falls from there", _scale),
        _nti("threshold", 1e-5, "loss to stop at, at step 0; grows by 2e-5 per step; 0 never stops early", _scale),
    ), way_back="guided", fitted=True),
    Entry("negative_prompt", "NPI", "released code", (_interpolation,), way_back="guided"),
    Entry("aidi", "AIDI", "unofficial port; there is no official code", (
        _aidi("mode", "anderson", "AIDI_A or AIDI_E", choices=("anderson", "empirical")),
        _aidi("rounds", 5, "after the first evaluation; 0 is DDIM inversion", _count),
        _aidi("threshold", 0.0, "mean square to stop at; 0 never stops early", _scale),
    )),
    Entry("nmg", "NMG", "released code", (
        _nmg("gradient_scale", 5000.0, "s_g, at 64x64 latents and kept elsewhere", _scale),
        _nmg("noise_map_scale", 10.0, "guidance by the noise map", _scale),
        _nmg("reference", "current", "level that the steered latent is compared with: as released, or its own (paper)",
             choices=("current", "previous")),
    ), way_back="own"),
    Entry("direct", "DirectINV", way_back="guided", fitted=True),
    Entry("proximal", "ProxEdit", "the recipe in its released README", (
        _interpolation,
        _prox("guidance", "inversion", "how unedited places are held to the picture: by the inversion's latents, by "
              "z_0, or not", choices=("inversion", "reconstruction", "none")),
        *(_prox(name, default) for name, default in  # flags of the extras of the same name, see presets.EXTRAS
          {"mode": "soft", "quantile": 0.7, "recon_lr": 1.0, "recon_t": 400, "dilation": 1}.items()),
    ), way_back="guided"),
    Entry("fixed_point", "FPI", "released demo", (
        _fpi("rounds", 19, "after the first evaluation; 0 is DDIM inversion", _count),
        _fpi("guidance_scale", 2.0, "while inverting; reconstructs with the same --guidance_scale", _scale),
        _fpi("threshold", 0.0, "as --aidi_threshold", _scale),
    )),
    Entry("edict", "EDICT", "released code", (
        _edict("mixing", 0.93, "p", number(float, 0.5, 1)),
        _edict("guidance_scale", 3.0, "while inverting; reconstructs exactly with the same --guidance_scale", _scale),
    ), way_back="own"),
    Entry("exact", "exact", "this project's control", (
        _exact("rounds", 50, "evaluations per timestep, at most", _count),
        _exact("threshold", 1e-10, "mean square of the residual to stop at", _scale),
        _exact("guidance_scale", 1.0, "while inverting", _scale),
    )),
    Entry("spd", "SPDInv", "paper, Alg. 1", (
        setting("solver", "adamw", "adamw: the released code; sgd: the printed lines 4 and 5, with "
                "--spd_guess t-1 line 2; descent: fewer evaluations, step lengths of its own; anderson: no gradient",
                choices=("adamw", "sgd", "descent", "anderson")),
        _spd("guess", "t", "timestep that the network is shown for the guess of line 2: t, as released, or t-1, as "
             "printed (adamw and sgd)", choices=("t", "t-1")),
        _spd("rounds", 25, "K (paper, Sec. 4.4); 0 is DDIM inversion", _count),
        _spd("learning_rate", 1e-3, "eta (paper, Sec. 4.4)", _scale),
        _spd("threshold", 5e-6, "delta (paper, Sec. 4.4); 0 never stops early", _scale),
    )),
)  # fmt: skip
INVERSIONS = {entry.name: entry for entry in ENTRIES}
OWN = "spd"  # the paper's
