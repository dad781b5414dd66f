"""What the shipped weights are measured by: a function of the number of pictures per check, under its name."""

from collections.abc import Callable, Iterator

from common.picturebook.checks import encoders, inpainting, realism, sampling, unet
from common.picturebook.quality import Result

CHECKS: dict[str, Callable[[int], Iterator[Result]]] = {
    "size": encoders.size,
    "classifier": encoders.classifier,
    "vae": encoders.vae,
    "clip": encoders.clip,
    "dino": encoders.dino,
    "distances": encoders.distances,
    "denoising": unet.denoising,
    "attention": unet.attention,
    "inversion": unet.inversion,
    "seconds": unet.seconds,
    "one": sampling.one_thing,
    "two": sampling.two_things,
    "unseen": sampling.unseen_pairs,
    "everything": sampling.everything,
    "anatomy": realism.anatomy,
    "frechet": realism.frechet,
    "inpainting": inpainting.in_the_hole,
    "twins": inpainting.twins,
}
