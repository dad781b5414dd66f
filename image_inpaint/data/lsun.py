"""Pictures of a domain: LSUN's LMDB (values are webp or jpeg files), or any folder of pictures, nested or not."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.images import is_picture, load_image
from common.runs import InputError


class Folder:
    """Every picture file under a folder, by name."""

    def __init__(self, folder: Path):
        self.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                            if is_picture(path) and path.is_file())  # fmt: skip
        self.folder = folder
        if not self.names:
            raise InputError(f"{folder} holds no picture, nor an LMDB (data.mdb); give LSUN's folder, or pictures")

    def read(self, name: str) -> Image.Image:
        return load_image(self.folder / name)

    def size(self) -> int:
        """Bytes in all: content would take hours to hash."""
        return sum((self.folder / name).stat().st_size for name in self.names)


class Lmdb:
    """LSUN as it is downloaded: bedroom_train_lmdb/ with data.mdb. Listing three million keys takes a minute."""

    def __init__(self, folder: Path):
        try:
            import lmdb
        except ImportError:
            raise InputError(f"{folder} is an LMDB, and the package lmdb is missing: pip install lmdb") from None
        try:
            self.store = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
            with self.store.begin() as reader:
                self.names = [key.decode("latin-1") for key in reader.cursor().iternext(values=False)]
        except lmdb.Error as problem:
            raise InputError(f"{folder} cannot be read as an LMDB: {problem}; download it again") from None
        self.folder = folder
        if not self.names:
            raise InputError(f"the LMDB {folder} is empty; download it again")

    def size(self) -> int:
        return (self.folder / "data.mdb").stat().st_size

    def read(self, name: str) -> Image.Image:
        with self.store.begin() as reader:
            data = reader.get(name.encode("latin-1"))
        return load_image(self.folder / name, data)


def open_pictures(folder: str | Path) -> Folder | Lmdb:
    """The pictures of a folder. Raises InputError if there are none."""
    folder = Path(folder)
    nested = [folder, *sorted(folder.glob("*_lmdb"))]
    place = next((place for place in nested if (place / "data.mdb").is_file()), None)
    return Lmdb(place) if place else Folder(folder)


def random_sample(names: list[str], count: int, seed: int) -> list[str]:
    """`count` of the names (all, if there are fewer), in an order of their own, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[k] for k in order]
