"""Install PyTorch into the running environment: its CPU wheels where there is no GPU, else the default index.

The CPU index is asked first with a short time limit; where it does not answer, the default index is taken at once.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--index", help="package index to use instead of choosing one")
    parsed = parser.parse_args()
    if installed(parsed.version):
        return 0
    wanted = f"torch=={parsed.version}"
    if parsed.index:
        return pip(wanted, "--index-url", parsed.index)
    if shutil.which("nvidia-smi") is None and answers(f"{CPU_INDEX}/torch/") and pip(wanted, "--index-url", CPU_INDEX) == 0:
        return 0
    return pip(wanted)


def installed(version: str) -> bool:
    """True when this environment has that release of torch, whatever its build."""
    from importlib import metadata

    try:
        return metadata.version("torch").partition("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=PROBE_SECONDS) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def pip(*arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments])


if __name__ == "__main__":
    sys.exit(main())
