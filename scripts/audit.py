"""Known vulnerabilities of pinned packages, by pip-audit: `make audit`.

    python scripts/audit.py constraints.txt

The status is 0 where every package was looked up and none has an advisory, 1 where one has, 2 where the advisories could not
be had: pip-audit itself ends with 0 when it found none of the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(requirements: str) -> int:
    words = ["--requirement", requirements, "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        print(f"audit: nothing was audited, since pip-audit got no advisories from pypi.org: {last}", file=sys.stderr)
        return 2
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    for package in packages:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    known = sum(bool(package.get("vulns")) for package in packages)
    print(f"audit: {len(packages) - len(skipped)} of {len(packages)} packages were looked up, {known} have advisories")
    if skipped:
        print(f"audit: pypi.org did not answer for {len(skipped)}, such as {skipped[0]}", file=sys.stderr)
    return 1 if known else 2 if skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
