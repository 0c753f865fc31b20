"""Look for known advisories on the pinned versions, where an advisory source can be reached.

    python scripts/audit.py

Asks OSV through pip-audit. Where OSV cannot be reached it says so and points at the dated list in docs/security.md: that is no
pass. Exceptions are named here; docs/security.md gives the reason for each.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "api.osv.dev"
# file of pinned versions -> advisories that are excepted in it
EXCEPTED = {
    "constraints.txt": ("PYSEC-2026-139",),
    "export/optimum/requirements.txt": ("CVE-2026-1839", "CVE-2026-4372", "CVE-2026-5241", "CVE-2026-9856"),
}


def main() -> int:
    """Exit status of pip-audit, the higher one of its files; 0 with a message where no source can be reached."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    try:
        socket.create_connection((SOURCE, 443), timeout=10).close()
    except OSError as error:
        print(
            f"NOT AUDITED: {SOURCE} cannot be reached ({error}); the last list, with its date, is in docs/security.md"
        )
        return 0
    return max(_audit(ROOT / file, excepted) for file, excepted in EXCEPTED.items())


def _audit(requirements: Path, excepted: tuple[str, ...]) -> int:
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--disable-pip", "--no-deps"]
    command += ["--requirement", str(requirements)]
    for name in excepted:
        command += ["--ignore-vuln", name]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
