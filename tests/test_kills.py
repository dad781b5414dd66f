"""Every training and evaluation is killed once, at a random moment, and ends as undisturbed (see tests/kills.py)."""

import subprocess
import sys

import pytest

from tests.kills import RUNS

ROOT = __file__.rsplit("/tests/", 1)[0]


@pytest.mark.slow
def test_a_killed_script_ends_as_if_it_had_not_been():
    command = [sys.executable, "-m", "tests.kills", "--times", "1", *RUNS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
