"""Several processes on CPUs: a training repeats itself bit for bit, and shards make the table of a single process; and
one that is killed, which ends as undisturbed (tests/kills.py).

    python -m tests.test_processes              all of them; prints a line each
    python -m tests.test_processes svdiff.lora  one

A process is forked from this one with what torchrun and accelerate launch tell theirs, so that no library is imported
twice.
"""

import io
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {  # evaluations that take --shard: with which flags beside those of tests.kills
    "pixels.eval": [], "spdinv.eval": [], "lipschitz.eval": [], "image_inpaint.eval": [],
    "svdiff.eval": ["--figure", "7", "--items_dir", "../data/bench", "--items", "2"],
}  # fmt: skip
TWICE = {  # trainings: on how many processes
    "svdiff.shifts": 2, "svdiff.lora": 3, "svdiff.full": 2, "lipschitz.full": 3, "lipschitz.prior": 2,
    "lipschitz.custom_diffusion": 2, "image_inpaint.lora": 2, "image_inpaint.full": 2, "textual_inversion": 2, "oft": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["tests.test_processes"], ["tests.kills", "--times", "1"]], ids=lambda words: words[0]
)
def test_several_processes_and_one_that_was_killed_give_what_one_does(words):
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def together(commands: list[tuple], place: Path) -> None:
    """Run (function, its arguments) in a process each, all at once."""
    from tests.kills import start, wait

    codes = [wait(process) for process in [start(run, words, place) for run, words in commands]]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}\n{(place / 'log.txt').read_text()[-2000:]}")


def ranked(main, rank: int, count: int, port: int):
    """`main` as the `rank`-th of `count` processes of torchrun."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}

    def run(words: list[str]):
        os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
        return main(words)

    return run


def trained(name: str, count: int, place: Path) -> dict[str, str]:
    """What two steps of a training on `count` processes leave."""
    from tests.kills import RUNS, state_of

    script, words = RUNS[name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    main = import_module(script).main
    together([(ranked(main, rank, count, port), [*words, "--max_train_steps", "2"]) for rank in range(count)], place)
    return state_of(place)


def scored(name: str, count: int, place: Path) -> dict[str, str]:
    """What an evaluation in `count` shards leaves: two are told by --shard, three by torchrun."""
    from tests.kills import RUNS, state_of

    script, words = RUNS[name]
    words, main = [*words, *SHARED[name]], import_module(script).main
    if count == 2:
        together([(main, ["--shard", f"{part}/2", *words]) for part in (1, 2)], place)
    else:
        together([(ranked(main, rank, count, 0), words) for rank in range(count)], place)
    return state_of(place)


def main(names: list[str]) -> int:
    from tests import kills

    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        os.environ["STEERING_CACHE"] = f"{root}/cache"
        with redirect_stdout(io.StringIO()):
            kills.write_data(Path(root))
        kills.shorten()
        for name in names or [*TWICE, *SHARED]:
            made = [scored(name, count, Path(root) / f"{name}.{count}") for count in (1, 2, 3) if name in SHARED]
            made += [trained(name, TWICE[name], Path(root) / f"{name}.{time}") for time in range(2 * (name in TWICE))]
            keys = {key for one in made for key in one}
            differing = sorted(key for key in keys if len({one.get(key) for one in made}) > 1)
            wrong += bool(differing)
            end = differing or f"equal in {len(made[0])} files"
            print(f"{name:28} {TWICE.get(name, '1, 2, 3')} processes: {end}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
