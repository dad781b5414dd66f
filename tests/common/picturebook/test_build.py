"""The command line of the trainings: wrong input is refused before anything is drawn or loaded."""

import pytest

from common.picturebook import checks
from common.picturebook.build import CHECKS, STEPS, parse


@pytest.mark.parametrize("words", [
    "--steps 5", "vae --steps 0", "clip --from_shipped", "--scenes 10", "sculpture", "--check --samples 1",
    "--threads 0", "--check --only beauty", "--only vae",
])  # fmt: skip
def test_wrong_input_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words.split())
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_every_stage_is_accepted_and_every_check_can_be_asked_for_alone():
    assert all(parse([stage, "--steps", "7"]).steps == 7 for stage in STEPS)
    assert all(parse([stage, "--from_shipped"]).from_shipped for stage in ("unet", "inpaint"))
    assert CHECKS == tuple(checks.CHECKS)
    assert parse(["--check", "--only", "vae", "twins"]).only == ["vae", "twins"]
