"""Attack the program from outside: killed at random moments, damaged files, two writers at once, folders of strangers.

    python scripts/attack.py --trials 100      (kills every stage; each run is continued and compared with an undisturbed one)
    python scripts/attack.py --fuzz 10000      (mutations of the input of each reader)
    python scripts/attack.py --resume-damage 600   (damage between an interruption and --resume)
    python scripts/attack.py --writers         (two writers of one folder, for every command that writes)
    python scripts/attack.py --hostile         (run folders of strangers, every command)

Attacks are seeded: equal seeds, equal attacks. The status is 1 when one of them succeeds. The tables of the last full run are
in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from attacks.common import Options, Table

#: Option of the command line: the module of `attacks`.
ATTACKS = {
    "trials": "kills",
    "fuzz": "fuzz",
    "resume_damage": "resume_damage",
    "writers": "writers",
    "hostile": "hostile",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, metavar="N", help="kill every stage N times")
    parser.add_argument("--fuzz", type=int, metavar="N", help="N mutations for each reader")
    parser.add_argument("--resume-damage", type=int, metavar="N", help="N damaged unfinished traces")
    parser.add_argument("--writers", action="store_const", const=1, help="two writers at once")
    parser.add_argument("--hostile", action="store_const", const=1, help="hostile run folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="stages or readers, separated by commas")
    parser.add_argument("--short", action="store_true", help="fewer places, as continuous integration runs them")
    given = parser.parse_args()
    asked = {name: getattr(given, name) for name in ATTACKS if getattr(given, name)}
    if not asked:
        parser.error("say which attack: " + ", ".join(f"--{name.replace('_', '-')}" for name in ATTACKS))
    only = tuple(part for part in given.only.split(",") if part)
    failed = False
    for name, number in asked.items():
        with tempfile.TemporaryDirectory() as work:
            options = Options(Path(work), given.seed, number, only, given.short)
            started = time.monotonic()
            table: Table = importlib.import_module(f"attacks.{ATTACKS[name]}").attack(options)
        print(table.markdown(), f"\n\n{time.monotonic() - started:.0f} s, seed {given.seed}", flush=True)
        failed |= bool(table.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
