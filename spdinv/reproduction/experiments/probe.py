"""How much of the source prompt can be read off a noise code: a linear probe for what the prompt says.

The paper asks CLIP how well noise fits the prompt (supplement A, Table 1); a CLIP has never seen noise. A linear probe
is trained on the codes themselves: where the noise is independent of the prompt, as the ideal noise is, it can only
guess.
"""

from collections import Counter
from typing import Any

import numpy as np

FOLDS = 5
STRENGTHS = np.logspace(0, 6, 13)  # of the ridge penalty, chosen within each training fold
LEAST = 10  # members that a class must have


def attributes(item) -> dict[str, str]:
    """What a picturebook item's source prompt says of its scene; {} for other items. The first thing is meant."""
    if "edit" not in item.extras:
        return {}
    scene = item.extras["edit"]["source"]
    thing = scene["things"][0]
    told = {name: thing[name] for name in ("kind", "color", "material")}
    told |= {name: scene[name] for name in ("background", "style")}
    return {"number of things": str(len(scene["things"])), **told}


def read_off(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a ridge classifier reads each label off its code, trained on the other folds; bool [N]. codes: float [N,
    D], standardised per dimension within the training folds. Folds are stratified and always the same."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(STRENGTHS))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(probe, codes.astype(np.float64), labels, cv=folds) == labels


def probe_all(codes: dict[str, np.ndarray], said: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Per attribute {"n", "chance": what always naming the commonest label gets right, "kept": bool [N], the items of a
    class of at least LEAST, "right": {name of the codes: bool [n]}}. Attributes without two such classes are left out.

    codes: by name [N, ...] for the same N items; said: the items' attributes.
    """
    found = {}
    for attribute in dict.fromkeys(name for one in said for name in one):
        labels = np.array([one.get(attribute, "") for one in said])
        sizes = {label: count for label, count in Counter(labels.tolist()).items() if count >= LEAST}
        kept = np.isin(labels, list(sizes))
        if len(sizes) > 1:
            right = {name: read_off(all_.reshape(len(all_), -1)[kept], labels[kept]) for name, all_ in codes.items()}
            n = int(kept.sum())
            found[attribute] = {"n": n, "chance": max(sizes.values()) / n, "kept": kept, "right": right}
    return found


def shares_read(probes: dict[str, dict[str, Any]], count: int) -> dict[str, np.ndarray]:
    """By name of the codes, [count]: of the attributes probed in an item, the share that was read right."""
    found: dict[str, list[np.ndarray]] = {}
    for probe in probes.values():
        for name, right in probe["right"].items():
            whole = np.full(count, np.nan)
            whole[probe["kept"]] = right
            found.setdefault(name, []).append(whole)
    with np.errstate(all="ignore"):
        return {name: np.nansum(all_, 0) / np.isfinite(all_).sum(0) for name, all_ in found.items()}
