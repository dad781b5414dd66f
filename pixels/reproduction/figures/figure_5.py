"""Figure 5: exemplar and words together."""

from tqdm import tqdm

from pixels.frames import to_picture
from pixels.reproduction.figures.sheet import finish, inputs
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair

PAPER_PROMPTS = ["", "boat", "watercolor style", "low poly aesthetic, big monster"]
PICTUREBOOK_PROMPTS = ["", "at night", "a pencil sketch", "a red boat by the sea"]
TEXT_GUIDANCE = 7.5  # at least so much where there is a prompt: without guidance the words hardly count


def figure_5(bench: Bench, pairs: list[Pair]) -> None:
    """Rows: pairs; columns: prompts, --prompts or the defaults."""
    on_picturebook = bench.args.dataset in ("picturebook", "compositions")
    prompts = bench.args.prompts or (PICTUREBOOK_PROMPTS if on_picturebook else PAPER_PROMPTS)
    guidance = max(bench.sampling.guidance_scale, TEXT_GUIDANCE)
    sheet = []
    for pair in tqdm(pairs[:4], "figure 5", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = [bench.edit("pixels", loaded, prompt=p, **({"guidance_scale": guidance} if p else {})) for p in prompts]
        sheet.append([*inputs(loaded, bench.size), *map(to_picture, edits)])
    labels = ["source", "exemplar", "map", *(repr(prompt) for prompt in prompts)]
    finish(bench, "figure_5", sheet, [pair.id for pair in pairs[:4]], labels, {"prompts": prompts})
