"""Engines by name. Each: engine(pipe, schedule, inversion, prompts, guidance_scale, **options) -> latents
[len(prompts), 4, h, w], the source branch first."""

from spdinv.engines import masactrl, p2p, pnp, sampling

ENGINES = {"none": sampling.sample, "p2p": p2p.edit, "masactrl": masactrl.edit, "pnp": pnp.edit}
