"""Look up the packages of a hashed requirements file among known vulnerabilities.

Exit 1 if one is known. pip-audit also exits 0 when its advisory service knew none of the packages; that, and a
service that cannot be reached, is said loudly here, and fails too where AUDIT=required is set (a release should).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def audit(requirements: str) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package (empty if it could not say anything), and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", f"--requirement={requirements}", "--require-hashes"]
        command += ["--disable-pip", "--progress-spinner=off", "--timeout=10", "--format=json", f"--output={report}"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            return [], "no answer within five minutes"
        return (json.loads(report.read_text())["dependencies"] if report.exists() else []), run.stderr


def main(requirements: str) -> int:
    """Print the findings; the exit code says whether any of them must stop a build."""
    packages, said = audit(requirements)
    vulnerable = [package for package in packages if package.get("vulns")]
    audited = [package for package in packages if "vulns" in package]
    for package in vulnerable:
        for finding in package["vulns"]:
            fixed = ", ".join(finding["fix_versions"]) or "none yet"
            print(f"{package['name']} {package['version']}: {finding['id']}, fixed in {fixed}")
    print(f"audit: {len(audited)} of {len(packages)} packages looked up, {len(vulnerable)} vulnerable")
    incomplete = not packages or len(audited) < len(packages)
    if incomplete:
        skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
        reason = (skipped or said.strip().splitlines() or ["pip-audit gave no reason"])[-1]
        unknown = f"{len(packages) - len(audited)} packages" if packages else "all packages"
        print(f"\n*** NOT AUDITED: {unknown} of {requirements}: {reason} ***\n", file=sys.stderr)
    return int(bool(vulnerable) or (incomplete and os.environ.get("AUDIT") == "required"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
