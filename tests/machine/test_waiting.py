"""How torch's threads wait: soon asleep, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gradsift.machine.waiting import SPIN_COUNT, USERS_OWN, wait_politely

WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
"""
"""Prints the setting when torch is about to be loaded."""


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in USERS_OWN:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)


def test_waiting_threads_sleep_soon() -> None:
    wait_politely()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNT)


@pytest.mark.parametrize("name", USERS_OWN)
def test_the_users_word_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {**os.environ, name: "7"}
    monkeypatch.setenv(name, "7")
    wait_politely()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "code",
    ["import gradsift; gradsift.load_config", "import gradsift.cli; gradsift.cli.main(['store', 'info', 'nowhere'])"],
)
def test_it_is_said_before_torch_is_loaded(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(SPIN_COUNT)]
