"""From one scene to another along a ramp, at several strengths: no figure of the paper, but what its section on local
strength says (summer to winter), in pictures. `--dataset compositions` has a true picture for it."""

from tqdm import tqdm

from pixels.frames import to_picture
from pixels.reproduction.figures.sheet import finish, inputs
from pixels.reproduction.measures import transition
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, full_map, load_pair

STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def gradient(bench: Bench, pairs: list[Pair]) -> None:
    """Six pairs; the numbers: the share of the way to the true picture (or exemplar) that each edit goes, per band
    of greys, from black to white."""
    sheet, numbers = [], []
    for pair in tqdm(pairs[:6], "gradient", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = {strength: bench.edit("pixels", loaded, strength=strength, denoising_start=None).cpu()
                 for strength in STRENGTHS}  # fmt: skip
        if loaded["truth"] is not None:
            edits["truth"] = loaded["truth"]
        target = loaded["exemplars"][-1] if loaded["truth"] is None else loaded["truth"]
        given = loaded["source"], target, full_map(loaded, bench.size)
        shares = {str(name): transition(picture, *given).tolist() for name, picture in edits.items()}
        numbers.append({"item": pair.id, "share": shares})
        pasted = bench.edit("paste", loaded)
        sheet.append([*inputs(loaded, bench.size), to_picture(pasted), *map(to_picture, edits.values())])
    columns = ["source", "exemplar", "map", "pasted", *(f"strength {s}" for s in STRENGTHS)]
    columns += ["true picture"] * (len(sheet[0]) - len(columns))
    finish(bench, "gradient", sheet, [pair.id for pair in pairs[:6]], columns, numbers)
