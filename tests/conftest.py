"""No test downloads anything, and all of them run on two threads, or in several processes on one thread each."""

import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # which has inherited the number of the process that started it
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

_connect = socket.socket.connect


def _local_only(self: socket.socket, address: object) -> None:
    """Let worker processes of one machine talk to each other, and nothing else."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"a test reached for the network: {address}")
    return _connect(self, address)


socket.socket.connect = _local_only


@pytest.fixture
def refused(capsys):
    """refused(words, call, …): the call ends in one sentence that holds the words, and in exit code 2. Returns it."""

    def check(words, call, *arguments, **named):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call(*arguments, **named)
        said = capsys.readouterr().err
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 2 and words in sentence and "Traceback" not in said
        return sentence

    return check


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small random Stable Diffusion in a folder: 16x16 latents, 64x64 pictures."""
    from tests.tiny import tiny_sd

    folder = tmp_path_factory.mktemp("tiny")
    tiny_sd(folder)
    return folder


@pytest.fixture(scope="module")
def pipe():
    """The same in memory."""
    from tests.tiny import tiny_sd

    return tiny_sd()


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Copies of the encoders of PIE-Bench, small and random."""
    from tests.small_data import write_pie_encoders

    return write_pie_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory):
    """A PIE-Bench folder of three noise pictures of 64 pixels, with true edits; the second may change everywhere."""
    from tests.small_data import write_benchmark

    return write_benchmark(tmp_path_factory.mktemp("bench"))
