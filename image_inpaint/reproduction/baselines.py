"""What the paper compares with: inpainting that is told in words what to draw.

The baseline of Tables 2 and 3 is Stable Diffusion's inpainting model with a caption of the subject. A text-to-image
model, DreamBooth's or Textual Inversion's among them, inpaints too: after every step the source, noised to the level,
is put back outside of the hole. Both are diffusers' own StableDiffusionInpaintPipeline.
"""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from common.files import refused_as
from common.flags import chosen_device
from common.model_files import find_folder, inspect_folder, load_whole
from common.pipelines import load_pipeline
from image_inpaint.options import TEXT_GUIDANCE
from image_inpaint.painting import paint_windows

CAPTIONERS = {"blip": "Salesforce/blip-image-captioning-base", "vit-gpt2": "nlpconnect/vit-gpt2-image-captioning"}


def load_text_inpainting(name: str, device: str | None = None) -> StableDiffusionInpaintPipeline:
    """Stable Diffusion's inpainting model (nine channels), or a text-to-image model (four) to be used as one."""
    classes = {cls.__name__: cls for cls in (StableDiffusionInpaintPipeline, StableDiffusionPipeline)}
    folder = find_folder(name, accepted=classes)
    if inspect_folder(folder, classes)[0] is StableDiffusionPipeline:
        return from_text_to_image(load_pipeline(str(folder), device))
    pipe = load_whole(folder, classes, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(chosen_device(device))


def from_text_to_image(pipe: StableDiffusionPipeline) -> StableDiffusionInpaintPipeline:
    made = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def paint_from_text(
    pipe: StableDiffusionInpaintPipeline, pictures: Sequence[Image.Image], fills: Sequence[Tensor],
    prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int = 50, guidance_scale: float = TEXT_GUIDANCE,
    **how,
) -> list[Image.Image]:  # fmt: skip
    """As painting.paint, with a prompt in place of a reference. how: of painting.paint_windows."""

    def draw(rows: list[int], source: Tensor, fill: Tensor) -> Tensor:
        return pipe(
            [prompts[row] for row in rows], image=source, mask_image=fill, height=source.shape[2],
            width=source.shape[3], strength=1.0, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, output_type="pt",
            generator=[torch.Generator().manual_seed(seeds[row]) for row in rows],
        ).images.float().cpu()  # fmt: skip

    return paint_windows(pipe, pictures, fills, draw, **how)


class Captioner:
    """A caption of the reference picture: BLIP (Sec. 5.3) or vit-gpt2 (Sec. 5.4); the paper says both."""

    def __init__(self, name: str = "blip", device: str | None = None):
        import transformers as library

        place = CAPTIONERS.get(name, name)
        with refused_as(f"no captioner at {place}: give a folder or hub id; it said"):
            if "vit-gpt2" in place:
                self.model = library.VisionEncoderDecoderModel.from_pretrained(place)
                self.see = library.ViTImageProcessor.from_pretrained(place)
                self.words = library.AutoTokenizer.from_pretrained(place)
            else:
                self.model = library.BlipForConditionalGeneration.from_pretrained(place)
                self.see = self.words = library.BlipProcessor.from_pretrained(place)
        self.model.to(chosen_device(device)).eval()

    @torch.no_grad()
    def caption(self, picture: Image.Image) -> str:
        pixels = self.see(images=picture, return_tensors="pt")["pixel_values"].to(self.model.device)
        ids = self.model.generate(pixel_values=pixels, max_new_tokens=20)
        return self.words.batch_decode(ids, skip_special_tokens=True)[0].strip()
