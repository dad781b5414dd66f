"""Each backbone on small random weights: under a black map surgery is diffusers' own img2img of the exemplar."""

import json
import logging
import shutil

import diffusers
import pytest
import torch

from common.runs import InputError
from pixels.backbones import bind, load_model, select_timesteps
from pixels.backbones.loading import SCHEDULERS, make_scheduler
from pixels.options import SCHEDULER_NAMES, Sampling
from pixels.surgery import Surgery, edit
from tests.pixels.tiny_models import LATENT, write_kandinsky, write_refiner, write_sd2, write_sdxl
from tests.refusing import refuses
from tests.tiny_encoders import pictures

SOURCE, EXEMPLAR = pictures(2, size=64).split(1)
BLACK, WHITE = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
SIZE = (64, 64)


def bound(model, batch=1, seed=0, exemplar=None, **told):
    return bind(model, Sampling(**told), SIZE, batch, seed, exemplar)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def edited(model, source=SOURCE, exemplar=EXEMPLAR, edit_map=BLACK, **told):
    return edit(bound(model, **told), source, [exemplar], [edit_map], generator=seeded()).edited


def img2img(pipe, scheduler, generator=None, **told):
    """The exemplar through a pipeline of diffusers' own."""
    pipe.scheduler = scheduler
    return pipe(image=EXEMPLAR, generator=generator or seeded(), output_type="pt", **told).images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    decoder, prior = write_kandinsky(root)
    return {"sd2": write_sd2(root / "sd2"), "sdxl": write_sdxl(root / "sdxl"), "refiner": write_refiner(root / "ref"),
            "decoder": decoder, "prior": prior}  # fmt: skip


def test_stable_diffusion_2_runs_pndm_as_released(folders):
    model = load_model(folders["sd2"], device="cpu")
    assert model.kind == "sd" and model.native_resolution == 32
    assert type(model.scheduler) is diffusers.PNDMScheduler
    backbone = bound(model, guidance_scale=0, num_inference_steps=3)
    assert backbone.start().tolist() == [667, 334, 334, 1]
    ours = edit(backbone, SOURCE, [EXEMPLAR], [BLACK], generator=seeded())
    assert ours.tau.tolist() == [0, 0.25, 0.5, 0.75]
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**model.pipe.components)
    theirs = img2img(pipe, diffusers.PNDMScheduler.from_config(model.scheduler.config), prompt="", strength=1.0,
                     num_inference_steps=3, guidance_scale=0)  # fmt: skip
    assert (ours.edited - theirs).abs().max() < 1e-5


def test_stable_diffusion_with_text_and_guidance(folders):
    model = load_model(folders["sd2"], "ddim", device="cpu")
    told = dict(negative_prompt="a dog", guidance_scale=7.5, num_inference_steps=10, strength=0.5)
    ours = edited(model, prompt="a red cat", **told)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**model.pipe.components)
    theirs = img2img(pipe, diffusers.DDIMScheduler.from_config(model.scheduler.config), prompt="a red cat", **told)
    assert (ours - theirs).abs().max() < 1e-5
    assert (edited(model, prompt="a house", **told) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("negative", [None, "", "blurry"])
@pytest.mark.parametrize("name, prompt", [("sdxl", ""), ("sdxl", "a cat"), ("refiner", "")])
def test_sdxl_and_its_refiner_alone(folders, name, prompt, negative):
    """denoising_start as in the released demo; the empty prompt is encoded, a negative prompt not given is zeros."""
    model = load_model(folders[name], device="cpu")
    told = dict(prompt=prompt, negative_prompt=negative, guidance_scale=17.5, num_inference_steps=10)
    backbone = bound(model, denoising_start=0.6, **told)
    assert backbone.start().tolist() == [301, 201, 101, 1] and backbone.discarded_draws == (torch.float32,)
    assert bound(model, strength=0.5).discarded_draws == (torch.float32, torch.float32)  # without denoising_start
    parts = {key: part for key, part in model.pipe.components.items()
             if key not in ("image_encoder", "feature_extractor")}  # fmt: skip
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=name == "refiner", force_zeros_for_empty_prompt=name == "sdxl",
        add_watermarker=False,
    )  # fmt: skip
    late = seeded()
    torch.randn(1, 4, 16, 16, generator=late)  # latents that the released SDXL pipeline draws and throws away
    theirs = img2img(pipe, diffusers.EulerDiscreteScheduler.from_config(model.scheduler.config), late, strength=0.41,
                     **told)  # fmt: skip
    assert (edited(model, denoising_start=0.6, **told) - theirs).abs().max() < 2e-4


def test_sdxl_base_then_refiner_share_one_loop(folders):
    def run(refiner_start, refiner=folders["refiner"]):
        model, seen = load_model(folders["sdxl"], device="cpu", refiner=refiner), []
        for number, stage in enumerate(model.stages):
            stage.unet.register_forward_pre_hook(lambda unet, inputs, number=number: seen.append(number))
        told = dict(num_inference_steps=10, strength=0.5, refiner_start=refiner_start)
        return edited(model, edit_map=WHITE / 3, **told), seen

    both, seen = run(0.8)
    assert seen == [0, 0, 0, 1, 1]  # 401, 301, 201 are not below 200; 101 and 1 are
    assert torch.equal(run(1.0)[0], run(0.8, refiner=None)[0])
    assert run(0.0)[1] == [1] * 5 and (both - run(1.0)[0]).abs().max() > 1e-3


def test_kandinsky(folders):
    """Against diffusers' img2img with DDPM's own draws: ours draws the source's noise in between."""
    model = load_model(folders["decoder"], prior=folders["prior"], device="cpu")
    assert model.kind == "kandinsky" and model.native_resolution == 64
    settings = dict(guidance_scale=4.0, num_inference_steps=20, strength=0.3, seed=4)
    ours = edited(model, **settings)
    drawn = model.prior([""], negative_prompt=[""], generator=seeded(4))
    pipe = diffusers.KandinskyV22Img2ImgPipeline(model.pipe.unet, model.scheduler, model.pipe.movq)

    random = seeded()
    noise = torch.randn(1, 4, 8, 8, generator=random)  # the exemplar's
    torch.randn(1, 4, 8, 8, generator=random)  # the source's
    steps = pipe.scheduler
    latents = model.pipe.movq.encode(EXEMPLAR * 2 - 1).latents
    steps.set_timesteps(20)
    timesteps = steps.timesteps[14:]
    z = steps.add_noise(latents, noise, timesteps[:1])
    for t in timesteps:
        e_u, e_c = (model.pipe.unet(z, t, None, added_cond_kwargs={"image_embeds": embeds}).sample
                    for embeds in (drawn.negative_image_embeds, drawn.image_embeds))  # fmt: skip
        guided = e_u[:, :4] + 4 * (e_c[:, :4] - e_u[:, :4])
        z = steps.step(torch.cat([guided, e_c[:, 4:]], 1), t, z, generator=random).prev_sample
    theirs = model.pipe.movq.decode(z, force_not_quantize=True).sample / 2 + 0.5
    assert (ours - theirs.clamp(0, 1)).abs().max() < 1e-5

    plain = load_model(folders["decoder"], "ddim", prior=folders["prior"], device="cpu")  # no learned variance
    ours = edited(plain, **settings)
    pipe.scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample_range=2.0)
    theirs = pipe(image=EXEMPLAR, image_embeds=drawn.image_embeds, negative_image_embeds=drawn.negative_image_embeds,
                  height=64, width=64, num_inference_steps=20, strength=0.3, guidance_scale=4.0, generator=seeded(),
                  output_type="pt").images  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-5


def test_kandinsky_may_see_the_exemplar(folders):
    model = load_model(folders["decoder"], prior=folders["prior"], device="cpu")
    seen = []
    model.pipe.unet.register_forward_pre_hook(
        lambda unet, inputs, kwargs: seen.append(kwargs["added_cond_kwargs"]["image_embeds"]), with_kwargs=True
    )
    for shown in ("prior", "exemplar"):
        told = dict(image_embedding=shown, num_inference_steps=10, strength=0.3)
        edit(bound(model, exemplar=EXEMPLAR, **told), SOURCE, [EXEMPLAR], [BLACK], generator=seeded())
    assert torch.equal(seen[0][0], seen[-1][0]) and not torch.equal(seen[0][1], seen[-1][1])
    refuses("needs its prior", bound, load_model(folders["decoder"], device="cpu"))


def test_a_white_map_keeps_the_source_to_the_last_step(folders):
    """Whatever the exemplar, and as little noise as the last step has."""
    model = load_model(folders["sd2"], "ddim", device="cpu")
    backbone = bound(model, guidance_scale=1, num_inference_steps=10)
    caught = []
    object.__setattr__(backbone, "decode", lambda z: caught.append(z) or torch.zeros_like(SOURCE))
    for exemplar in (EXEMPLAR, 1 - EXEMPLAR):
        edit(backbone, SOURCE, [exemplar], [WHITE], Surgery(posterior="mean", noise="shared"), seeded())
    assert torch.equal(*caught)
    noise_left = caught[0] - backbone.encode(SOURCE, False, None)
    assert 0 < noise_left.std() < 0.1  # sigma is 0.041 at the last timestep


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "decoder"])
def test_batches_give_what_single_pictures_give(folders, kind):
    model = load_model(folders[kind], "ddim", device="cpu", prior=folders["prior"])
    settings = dict(prompt="a cat", num_inference_steps=4, strength=0.5, guidance_scale=3.0)
    sources, exemplars = torch.cat([SOURCE, EXEMPLAR]), torch.cat([EXEMPLAR, SOURCE])
    if kind == "decoder":  # one prior's draw belongs to a batch; the exemplars' embeddings do not
        settings |= {"image_embedding": "exemplar", "exemplar": exemplars}
    together = edit(bound(model, 2, **settings), sources, [exemplars], [WHITE * 0.4],
                    generator=[seeded(1), seeded(2)]).edited  # fmt: skip
    assert together.shape == (2, 3, 64, 64) and together.isfinite().all()
    if kind != "decoder":
        alone = edit(bound(model, **settings), EXEMPLAR, [SOURCE], [WHITE * 0.4], generator=[seeded(2)]).edited
        assert (together[1:] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["own", "ddim", "euler", "ddpm", "pndm", "DPMSolverMultistep", "UniPCMultistep"])
def test_schedulers_with_a_memory_are_warned_of(caplog, name):
    """Those offered have none, but for PNDM, which runs as released; a model's own may have one."""
    warned, own = name.endswith("Multistep"), diffusers.DDIMScheduler(**LATENT)
    if warned:
        name, own = "own", getattr(diffusers, f"{name}Scheduler").from_config(own.config)
    with caplog.at_level(logging.WARNING):
        scheduler = make_scheduler(name, own)
    assert ("belong to another latent" in caplog.text) == warned
    assert torch.allclose(scheduler.alphas_cumprod, own.alphas_cumprod)
    backbone_steps = select_timesteps(scheduler, "cpu", Sampling(num_inference_steps=10, strength=0.4))
    assert 4 <= len(backbone_steps) <= 5 and backbone_steps[0] > backbone_steps[-1]
    if name in SCHEDULERS:  # spaced as released, though the model's own config is silent about its spacing
        assert backbone_steps[-1] == 1
    z = scheduler.step(torch.zeros(1, 4, 2, 2), backbone_steps[0], torch.ones(1, 4, 2, 2)).prev_sample
    assert z.isfinite().all()


@pytest.mark.parametrize("kind, corrected", [("StableDiffusion", True), ("StableDiffusionXL", False)])
def test_an_old_config_is_set_right_where_the_released_pipeline_does(folders, tmp_path, kind, corrected):
    """Stable Diffusion's pipeline corrects two entries of its scheduler's config, SDXL's takes them as they are; the
    class is the one that the model's index names."""
    folder = shutil.copytree(folders["sd2" if corrected else "sdxl"], tmp_path / "old")
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    old = {name: value for name, value in LATENT.items() if name != "steps_offset"} | {"_class_name": "PNDMScheduler"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(old))
    theirs = getattr(diffusers, f"{kind}Pipeline").from_pretrained(folder).scheduler
    for scheduler in (theirs, *(load_model(folder, name, device="cpu").scheduler for name in ("own", "ddim"))):
        assert type(scheduler) is diffusers.DDIMScheduler
        assert (scheduler.config.steps_offset, scheduler.config.clip_sample) == (int(corrected), not corrected)


def test_strength_and_start_as_released():
    assert SCHEDULER_NAMES == ("own", *SCHEDULERS)
    scheduler = diffusers.EulerDiscreteScheduler(**LATENT, timestep_spacing="leading")
    pndm = diffusers.PNDMScheduler(**LATENT, skip_prk_steps=True)
    chosen = select_timesteps(scheduler, "cpu", Sampling(num_inference_steps=100, strength=0.1, denoising_start=0.6))
    assert len(chosen) == 40 and chosen[0] == 391 and chosen[-1] == 1  # strength is ignored
    assert len(select_timesteps(scheduler, "cpu", Sampling(num_inference_steps=100, strength=0.29))) == 28  # int() cuts
    firsts = [select_timesteps(pndm, "cpu", Sampling(num_inference_steps=n))[0].item()
              for n in (1, 2, 3, 4, 5, 10, 20, 50, 100)]  # fmt: skip
    assert firsts == [1, 501, 667, 751, 801, 901, 951, 981, 991]
    for wrong in ({"strength": 0.009}, {"denoising_start": 1.0}):
        with pytest.raises(InputError, match="leaves none of 100 steps"):
            select_timesteps(scheduler, "cpu", Sampling(num_inference_steps=100, **wrong))
    for scheduler, steps in ((diffusers.DDIMScheduler(100), 101), (diffusers.PNDMScheduler(), 1)):
        refuses(f"has no {steps} steps", select_timesteps, scheduler, "cpu", Sampling(num_inference_steps=steps))


def test_folders_that_do_not_belong_together(folders):
    for name, more, said in (("sd2", {"refiner": "refiner"}, "a refiner follows an SDXL base"),
                             ("decoder", {"prior": "sd2"}, "supported are KandinskyV22PriorPipeline"),
                             ("prior", {}, "supported are")):  # fmt: skip
        refuses(said, load_model, folders[name], device="cpu", **{part: folders[other] for part, other in more.items()})
