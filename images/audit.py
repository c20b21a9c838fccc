"""Ask pip-audit whether a pin of the images has a known vulnerability. No answer is no good answer.

Exit code: 0 all pins were looked up and none is known to be vulnerable, 1 some are, 2 they were NOT CHECKED.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = [HERE / f"{name}.lock" for name in ("build", "operator", "trainer")]
VULNERABLE, NOT_CHECKED = 1, 2


def main(auditor: list[str]) -> int:
    """Look up each lock file with `auditor`, the command of pip-audit."""
    ends = [audit(auditor, lock) for lock in LOCKS]
    return NOT_CHECKED if NOT_CHECKED in ends else max(ends)


def audit(auditor: list[str], lock: Path) -> int:
    """Look up one lock file and say what was found."""
    command = [*auditor, "--requirement", str(lock), "--disable-pip", "--require-hashes", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    pins = {line.split(";")[0].split()[0].partition("==")[0] for line in lock.read_text().splitlines() if "==" in line}
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        rows = []
    looked_up = {row["name"] for row in rows if "skip_reason" not in row}
    if missing := pins - looked_up:
        skipped = [row["skip_reason"] for row in rows if "skip_reason" in row]  # pip-audit itself ends with 0 then
        last = (skipped[:1] or done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"])[0]
        sys.stdout.write(f"{lock.name}: NOT CHECKED, {len(missing)} of {len(pins)} pins were not looked up: {last}\n")
        return NOT_CHECKED
    found = [(row["name"], row["version"], bug) for row in rows for bug in row["vulns"]]
    for name, version, bug in found:
        fixed = ", ".join(bug["fix_versions"]) or "no version"
        sys.stdout.write(f"{lock.name}: {name} {version}: {bug['id']}, fixed in {fixed}\n")
    sys.stdout.write(f"{lock.name}: {len(pins)} pins looked up, {len(found)} known vulnerabilities\n")
    return VULNERABLE if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [sys.executable, "-m", "pip_audit"]))
