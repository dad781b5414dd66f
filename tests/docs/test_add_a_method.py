"""What docs/ADD_A_METHOD.md prints is put where it says, in a copy of the project, and works."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    """The indented blocks of the page, in order: file and line of an inversion, both with a setting, a method's line, a
    threshold."""
    text = (ROOT / "docs" / "ADD_A_METHOD.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^(?: {4}.*)?\n)*^ {4}\S.*\n(?:(?: {4}.*)?\n)*", text, re.MULTILINE)
    return [textwrap.dedent(one).strip("\n") for one in found]


@pytest.fixture
def project(tmp_path):
    """The project, of which spdinv and the arena are copies that a test may change."""
    for entry in ROOT.iterdir():
        if entry.name not in ("spdinv", "eval", ".git", "outputs", "pixels") and not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    for name in ("spdinv", "eval", "pixels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def insert(file: Path, before: str, line: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name} has no single {before!r}"
    file.write_text(text.replace(before, line + before), encoding="utf-8")


def run(project: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("with_setting", [False, True])
def test_an_inversion(project, with_setting):
    """The tests of all inversions take it, and spdinv.eval knows it and its title."""
    source, line, setting, *_ = blocks()
    flag = []
    if with_setting:
        head, step, line = setting.split("\n\n")
        for start, new in (("def invert", head), ("        trajectory.append", step)):
            (old,) = [one for one in source.splitlines() if one.startswith(start)]
            source = source.replace(old, new)
        flag = ["--heun_weight", "0.25"]
    (project / "spdinv" / "inversions" / "heun.py").write_text(source)
    entries = project / "spdinv" / "inversions" / "__init__.py"
    insert(entries, '    Entry("null_text"', textwrap.indent(line, "    ") + "\n")
    tested = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "heun or entry",
                 "tests/spdinv/test_inversions_all.py")  # fmt: skip
    assert re.search(r"\d+ passed", tested)
    shown = run(project, "-m", "spdinv.eval", "--inversions", "heun", *flag, "--print_config")
    assert '"heun+p2p"' in shown and ('"weight": 0.25' in shown) == with_setting
    page = "from eval.tracks.text_editing import METHODS, grouped; print(grouped(['heun+p2p']), METHODS['heun+p2p'])"
    assert "[['heun+p2p']] Heun's rule + P2P" in run(project, "-c", page)


@pytest.mark.slow
def test_a_personalization_method(project):
    line = blocks()[3]
    insert(project / "eval" / "tracks" / "personalization" / "methods.py", '    "custom_diffusion+prior":',
           f"    {line.strip()},\n")  # fmt: skip
    shown = run(project, "-m", "eval.personalize", "--methods", "custom_diffusion", "--print_config")
    assert '"parameter_space": "custom_diffusion"' in shown and '"l2_reg_weight": 0' in shown


@pytest.mark.slow
def test_a_threshold(project):
    insert(project / "pixels" / "thresholds.py", '    "quadratic": lambda', f"    {blocks()[4]}\n")
    assert '"threshold": "cosine"' in run(project, "-m", "pixels.infer", "--threshold", "cosine", "--print_config")
    assert '"pixels_cosine"' in run(project, "-m", "pixels.eval", "--figure", "7", "--print_config")


def test_heuns_rule_against_its_equations_in_float64():
    """One step by hand, with the network that the toy is; and a way back nearer than DDIM's."""
    from common.ddim import ddim_step
    from spdinv.inversions import INVERSIONS
    from tests.spdinv.toy import LATENTS, MEANS, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule

    namespace: dict = {}
    exec(compile(blocks()[0], "heun.py", "exec"), namespace)
    pipe, schedule, cond, z = toy_pipe(), toy_schedule(20), toy_cond([MEANS["a cat"]]), LATENTS[:1]
    found = namespace["invert"](pipe, schedule, z, cond)

    def eps(x, t):
        return torch.from_numpy(naive_eps(x.detach().numpy(), t, MEANS["a cat"]))

    def gap(noise):
        for t in schedule.timesteps:
            noise = ddim_step(schedule, noise, eps(noise, t), t)
        return (noise - z).square().mean()

    t = schedule.timesteps[-1]
    c1, c2 = coefficients(schedule, t)
    by_hand = c1 * z + c2 * (eps(z, t) + eps(c1 * z + c2 * eps(z, t), t)) / 2
    assert torch.allclose(found.trajectory[1], by_hand, atol=1e-6) and len(found.trajectory) == 21
    assert gap(found.noise) < 0.5 * gap(INVERSIONS["ddim"](pipe, schedule, z, cond).noise)
