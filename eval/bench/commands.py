"""What a reader waits for: `make demo` with nothing made before, and the tests. For make bench, when it is named."""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from common.files import CACHE_VARIABLE
from common.runs import ROOT, InputError
from eval.bench.ratios import against

# name -> (words after python -m, seconds that it may take on two cores)
COMMANDS = {"make demo": (["eval.compare"], 540),
            "make test": (["pytest", "-q", "-n", "2", "--dist", "loadfile", "tests"], 600)}  # fmt: skip


def run(pipe, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each, printed. Raises InputError where one fails."""
    found = {}
    for name, (words, most) in COMMANDS.items():
        with tempfile.TemporaryDirectory() as cache:
            began = time.time()
            done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=os.environ | {CACHE_VARIABLE: cache},
                                  capture_output=True)  # fmt: skip
            found[name] = time.time() - began
        if done.returncode:
            raise InputError(f"{name} ended with exit code {done.returncode}")
        print(f"{name}, nothing kept from before: {found[name]:.0f} s{against([found[name]], most)}", flush=True)
    return found
