"""What rows of an evaluation were made with: those of a later run join them only where that is the same."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.files import InputError, read_object
from common.shards import run_rows


def subject_of(item: str) -> str:
    """The "cat" of "cat/03" and of "cat|3", pictures of one training; an item that stands alone is its own."""
    return item.replace("|", "/").partition("/")[0]


def digest_of_data(told: Any, files: Iterable[str | Path] = (), *more: bytes) -> str:
    """Twelve digits of what is told of an item, of its files' bytes, and of further bytes."""
    digest = hashlib.sha256(json.dumps(told, default=str).encode())
    for content in [*(Path(file).read_bytes() for file in files), *more]:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]


def resolved(value: Any) -> Any:
    """The one spelling of a path that is there; anything else, such as a name, as it is."""
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def joined_config(
    folder: str | Path, flags: Mapping[str, Any], same: Iterable[str], rows: list[dict] | None = None,
    **settings: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What config.json of an evaluation's folder is to hold, once rows made with `flags` join those that lie there.

    same: the flags of which a folder knows one value. settings: what is told per method or item, by name, such as
    methods={"ddim": {…}}; what the folder told of others is kept. rows: those in the folder, run_rows by default.
    Raises InputError if such a flag, or what is told of a method or item that has rows, was another one.
    """
    file, rows = Path(folder) / "config.json", run_rows(folder) if rows is None else rows
    before = read_object(file) if rows or file.is_file() else {}
    now = json.loads(json.dumps({**flags, **settings}, default=str))
    known = [name for name in same if name != "weights" or before.get(name)]  # earlier runs told a picturebook's alone
    changed = [f"{'other weights' if name == 'weights' else 'another --' + name} ({before.get(name)})"
               for name in known if resolved(before.get(name)) != resolved(now[name])]  # fmt: skip
    measured = {row[key] for row in rows for key in ("method", "item")}
    measured |= {name for row in rows for name in subject_of(row["item"]).split("+")}  # SVDiff's "cat+dog|3" is of two
    kept = {}
    for kind in settings:
        earlier = before.get(kind, {})
        if not isinstance(earlier, dict) or not all(isinstance(told, dict | str) for told in earlier.values()):
            raise InputError(f"{file} is damaged: its {kind} are no objects {{…}}; take another --output_dir")
        for name in [name for name in now[kind] if name in earlier and name in measured]:
            then, own = earlier[name], now[kind][name]
            if isinstance(then, dict) and isinstance(own, dict):
                changed += [f"another {key} of {name} ({then.get(key)})" for key in own if then.get(key) != own[key]]
            elif then != own:
                changed.append(f"other {kind} of {name}")
        kept[kind] = earlier | now[kind]
    if rows and changed:
        raise InputError(f"{folder} holds results with {changed[0]}; take the same, or another --output_dir")
    return {**flags, **kept}
