"""Make the case studies of published routing again: traces, analyses, reports, the tables in their pages, the table of models.

    python scripts/case_studies --data FOLDER [--runs runs/case_studies] [--only mixtral esft]

FOLDER has the public records, as docs/case_studies names them:

- ``mixtral-mmlu/fractions.npz, documents.parquet``   ajtejankar/mixtral-vis-moe
- ``glm-5.2-domains/usage.npz, documents.parquet``    Dorijan10/glm-expert-pruning
- ``esft-deepseek/{law,intent}.npz, *_summary.json, *_config.json``   deepseek-ai/ESFT
- ``olmoe-counts/expert_counts.json``                 allenai/OLMoE
- ``gpt-oss-20b/routing.parquet``                     AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting

Every table of a page stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` and is written by this script; the sentences
around it are not. Each record is checked before it is used: a check that fails ends the script. Findings and numbers go into
the repository, the records' texts and arrays do not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from records import STUDIES, Study, Tables

from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace
from moe_probe.studies.verdicts import UNTESTED

ROOT = Path(__file__).resolve().parents[2]


def run_program(*words: object) -> None:
    """Run a Python program; what it says stays on the terminal."""
    print(*words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def moe_probe(*words: object) -> None:
    """Run a command of the package."""
    run_program("-m", "moe_probe", *words)


def lift_text(row: pd.Series) -> str:
    """Lift with its interval."""
    if pd.isna(row["log2_lift"]):
        return ""
    interval = "" if pd.isna(row["ci_low"]) else f" [{2 ** row['ci_low']:.2f}, {2 ** row['ci_high']:.2f}]"
    return f"{2 ** row['log2_lift']:.2f}{interval}"


def verdict_table(results: Path) -> pd.DataFrame:
    """One row per topic: verdict, unit, lift, and the lift that would have been found."""
    verdicts = Result.load(results, "verdicts").table
    pairs = Result.load(results, "expert_topics").table
    groups = pairs.groupby("topic")["n_groups"].first() if "n_groups" in pairs else pd.Series(dtype=int)
    best = pairs.sort_values("log2_lift", ascending=False).groupby("topic").first()
    rows = []
    for _, row in verdicts.iterrows():
        largest = best.loc[row["topic"]]
        grade = "" if row["grade"] in ("none",) else f" ({row['grade']})"
        found = row["detectable_log2_lift"]
        rows.append(
            {
                "topic": row["topic"],
                "units": int(groups.get(row["topic"], 0)),
                "verdict": f"{row['verdict']}{grade}",
                "layer": "" if pd.isna(row["layer"]) else int(row["layer"]),
                "experts": row["experts"],
                "share of the topic": "" if pd.isna(row["share"]) else f"{row['share']:.1%}",
                "lift [95 %]": lift_text(row),
                "q": "" if pd.isna(row["q_value"]) else f"{row['q_value']:.2g}",
                "detectable lift": "" if pd.isna(found) else f"{2**found:.2f}",
                "largest lift of any expert": f"{2 ** largest['log2_lift']:.2f} (layer {int(largest['layer'])}, "
                f"expert {int(largest['expert'])})",
            }
        )
    return pd.DataFrame(rows)


def layer_table(results: Path) -> pd.DataFrame:
    """Balance, information and decoding over the layers."""
    layers = Result.load(results, "layers").table
    rows = {
        "effective experts": ("effective_experts", "{:.2f}"),
        "bits of topic per selection, null removed": ("mi_topic_bits", "{:.4f}"),
        "null (bits under permuted topics)": ("mi_topic_null_bits", "{:.4f}"),
        "p of that information": ("mi_topic_p", "{:.3g}"),
        "decoding accuracy": ("decode_accuracy", "{:.1%}"),
        "decoding accuracy, shuffled topics": ("decode_baseline", "{:.1%}"),
        "commonest topic": ("decode_majority", "{:.1%}"),
    }
    out = []
    for name, (column, style) in rows.items():
        values = layers[column].dropna()
        if len(values):
            shown = [style.format(v) for v in (values.min(), values.median(), values.max())]
            out.append({"over the layers": name, "smallest": shown[0], "median": shown[1], "largest": shown[2]})
    return pd.DataFrame(out)


def markdown(table: pd.DataFrame) -> str:
    """Lay a table out in Markdown."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('_', ' ') for cell in line)} |" for line in lines)


def fill(page: Path, tables: Tables) -> None:
    """Replace the tables of a page; every table that the page names must have been made."""
    text = page.read_text(encoding="utf-8")

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{markdown(tables[match[2]])}\n{match[3]}"

    page.write_text(re.sub(r"(<!-- table: ([\w ]+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL), encoding="utf-8")


def make(study: Study, data: Path, runs: Path) -> None:
    """Import, analyse, report; fill the page and the table of models."""
    shutil.rmtree(runs / study.name, ignore_errors=True)
    run = runs / study.name / "topic"
    for words in study.imports(data, run / "trace"):
        moe_probe(*words)
    tables = study.check(data, Trace.open(run))
    for label in study.labels:
        folder = runs / study.name / label
        more = () if label == "topic" else ("--by", label, "--out", folder)
        moe_probe("analyze", run, *more)
        for name, made in (("verdicts", verdict_table), ("layers", layer_table)):
            tables[f"{name} {label}"] = made(folder / "results")
        if label != "topic" and (Result.load(folder / "results", "verdicts").table["grade"] == UNTESTED).all():
            continue  # no row that says nothing but that nothing can be tested
        run_program(
            "scripts/models_table.py",
            "--add",
            folder,
            "--name",
            study.names.get(label, study.model),
            "--corpus-note",
            study.corpus,
        )
    tables |= study.after(run / "results")
    moe_probe("report", run)
    report = ROOT / "reports" / study.name / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "report.html", report)
    assert report.stat().st_size <= 3_000_000, report.stat().st_size
    page = ROOT / "docs/case_studies" / f"{study.name}.md"
    if page.exists():
        fill(page, tables)
    for name, table in tables.items():
        print(f"\n{study.name}: {name}\n{table.to_string(index=False)}", flush=True)


def main() -> None:
    """Make all case studies, or some of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/case_studies")
    parser.add_argument("--only", nargs="+", choices=[study.name for study in STUDIES])
    options = parser.parse_args()
    for study in STUDIES:
        if options.only is None or study.name in options.only:
            make(study, options.data, options.runs.resolve())


if __name__ == "__main__":
    main()
