"""--force and --resume remove what the program wrote, by its own list; notes and folders of people stay."""

from __future__ import annotations

import ast
import itertools
import json
import shutil
from pathlib import Path

import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import TRACE_FOLDER, check_output_folder
from moe_probe.core.own_files import CHECKPOINT_FILES, SAE_FILES, TRACE_FILES
from moe_probe.recording.collect.parts import Parts
from moe_probe.recording.importers import ImportOptions, import_arrays
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.report import sections as figure_sections
from moe_probe.report.compose import SECTIONS as SECTIONS_OF_REPORT
from moe_probe.runs import pipeline
from moe_probe.runs.config import RunConfig
from moe_probe.runs.own_files import FIGURES, SECTIONS, result_names, run_folder

CONFIG = RunConfig.model_validate({"model": "none", "corpus": "none"})
#: What people leave in a trace.
NOTES = ("notes.md", "routing/notes.txt", "hidden/layer_00/mine.csv", "parts/00000/read me", "figures/load.png", "mine/a/b")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    path = tmp_path_factory.mktemp("arrays") / "law.npz"
    np.savez(path, experts=np.arange(24).reshape(6, 2, 2) % 4, document=np.repeat([0, 1], 3))
    return path


@pytest.fixture(scope="module")
def sealed(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "one"
    make(arrays, path)
    return path


@pytest.fixture
def trace(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "trace"))


def make(arrays: Path, path: Path, mode: str = "new") -> Trace:
    return import_arrays(arrays, path, topic="law", options=ImportOptions(num_experts=4), mode=mode)


def leave(root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"mine: {name}")
    return {name: (root / name).read_bytes() for name in names}


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("mode", ["force", "resume"])
def test_notes_in_a_trace_stay(arrays: Path, sealed: Path, trace: Path, mode: str) -> None:
    mine = leave(trace, NOTES)
    make(arrays, trace, mode)
    assert files(trace) == files(sealed) | mine


def test_an_interrupted_trace_is_resumed_beside_notes(arrays: Path, sealed: Path, trace: Path) -> None:
    manifest = Trace.open(trace).manifest.model_copy(update={"shards": (), "files": (), "n_documents": 0, "n_tokens": 0})
    shutil.rmtree(trace)
    writer = TraceWriter.create(trace, manifest)
    mine = leave(trace, NOTES)
    left = (
        "routing/00000.safetensors",
        "routing/.tmpAb12Cd",
        "parts/00000/tokens.parquet.partial",
        "tokens.parquet.partial",
    )
    leave(trace, left)
    assert writer.manifest.status == "writing"
    make(arrays, trace, "resume")
    assert files(trace) == files(sealed) | mine


@pytest.mark.parametrize("only", ["trace.json.sha256", "trace.json.partial", "trace.json.sha256.partial"])
def test_a_trace_killed_at_its_first_file_is_resumed(arrays: Path, sealed: Path, tmp_path: Path, only: str) -> None:
    leave(tmp_path / "trace", (only, "notes.md"))
    make(arrays, tmp_path / "trace", "resume")
    assert set(files(tmp_path / "trace")) == set(files(sealed)) | {"notes.md"}


def test_without_its_manifest_a_trace_is_begun_anew_and_the_advice_is_true(arrays: Path, sealed: Path, trace: Path) -> None:
    mine = leave(trace, ("notes.md",))
    (trace / "trace.json").unlink()
    before = files(trace)
    for mode in ("resume", "new"):
        with pytest.raises(MoeProbeError, match=r"has no trace\.json: .* Try: --force to start over"):
            make(arrays, trace, mode)
        assert files(trace) == before
    make(arrays, trace, "force")
    assert files(trace) == files(sealed) | mine


@pytest.mark.parametrize("mode", ["new", "force", "resume"])
@pytest.mark.parametrize(
    "name", ["documents.parquet", "tokens.parquet", "notes.md", "mine/trace.json", "routing/law.safetensors"]
)
def test_a_folder_of_other_files_is_no_trace(arrays: Path, tmp_path: Path, name: str, mode: str) -> None:
    leave(tmp_path / "data", (name,))
    with pytest.raises(MoeProbeError, match=r"already contains other files: refusing to overwrite\. Try: another --out"):
        make(arrays, tmp_path / "data", mode)
    assert set(files(tmp_path / "data")) == {name}


@pytest.mark.parametrize("name", ["routing", "trace.json", "tokens.parquet", "routing/00000.safetensors"])
def test_a_link_in_a_trace_is_refused_before_anything_is_removed(arrays: Path, trace: Path, name: str) -> None:
    elsewhere = trace.with_name("elsewhere")
    (trace / name).rename(elsewhere)
    (trace / name).symlink_to(elsewhere)
    before = files(trace.parent)
    with pytest.raises(MoeProbeError, match=r"is a link to .*; nothing was changed\. Try: remove the link first"):
        make(arrays, trace, "force")
    assert files(trace.parent) == before
    (trace / name).unlink()  # the advice
    make(arrays, trace, "force")


def test_links_of_people_are_theirs(arrays: Path, trace: Path) -> None:
    leave(trace.with_name("elsewhere"), ("trace.json",))
    (trace / "mine").symlink_to(trace.with_name("elsewhere"))
    make(arrays, trace, "force")
    assert (trace / "mine" / "trace.json").read_text() == "mine: trace.json"


def test_a_linked_trace_is_not_removed(arrays: Path, trace: Path) -> None:
    link = trace.with_name("link")
    link.symlink_to(trace)
    before = files(trace)
    with pytest.raises(MoeProbeError, match=r"link is a link to .*Try: the folder that it leads to"):
        make(arrays, link, "force")
    assert files(trace) == before
    make(arrays, trace, "force")  # the advice


@pytest.mark.parametrize("mode", ["new", "resume", "force"])
def test_a_linked_folder_is_refused_before_anything_is_computed(tmp_path: Path, mode: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(MoeProbeError, match=r"link is a link to .*written into the folder itself.*Try: the folder that it"):
        check_output_folder(tmp_path / "link", mode, TRACE_FOLDER)
    check_output_folder(tmp_path / "there", mode, TRACE_FOLDER)  # the advice


def test_a_checksum_of_two_moments_is_tidied(arrays: Path, trace: Path) -> None:
    """The process was killed between the sealed manifest and the last line of its checksum."""
    checksum = trace / "trace.json.sha256"
    one = checksum.read_text()
    checksum.write_text(one + "0" * 64 + "\n")
    make(arrays, trace, "resume")
    assert checksum.read_text() == one
    checksum.write_text(("0" * 64 + "\n") * 2)
    with pytest.raises(MoeProbeError, match="was changed"):
        make(arrays, trace, "resume")
    assert checksum.read_text() == ("0" * 64 + "\n") * 2


def test_a_folder_at_the_place_of_a_file_is_refused(arrays: Path, trace: Path) -> None:
    (trace / "usage.parquet").unlink()
    leave(trace, ("usage.parquet/notes",))
    with pytest.raises(MoeProbeError, match=r"usage.parquet is a folder: .* nothing was changed"):
        make(arrays, trace, "force")
    assert (trace / "trace.json").exists()


@pytest.fixture
def run(trace: Path, tmp_path: Path) -> Path:
    """Every kind of file that a run can have."""
    root = tmp_path / "run"
    root.mkdir()
    trace.rename(root / "trace")
    leave(
        root,
        (
            *("run.yaml", "report.html", "report.md", "logs/stages.json", "logs/llm_cache.jsonl"),
            *(f"results/{name}.{ending}" for name in result_names() for ending in ("json", "parquet")),
            *(f"figures/{name}.png" for name in FIGURES),
            *(f"report/{name}.md" for name in SECTIONS),
            "report_appendix.html",
            *(f"results/asked/ablation.{ending}" for ending in ("json", "parquet")),
            *(f"sae/layer_01/width_00064{more}/{name}" for more in ("", "-residual_b") for name in ("cfg.json",)),
            *("sae/layer_01/width_00064/sae_weights.safetensors", "results/layers.json.partial"),
            *("sae/training/layer_01-router_input/state.safetensors", "sae/training/layer_01-router_input.lease"),
            *("logs/error-20260101-000000-12.log", "results/.moe-probe.staged/layers.parquet"),
        ),
    )
    return root


MINE = (
    *("notes.md", "mine/a", "results/notes.md", "results/mine/layers.parquet", "figures/mine.png", "logs/mine.log"),
    "report/notes.md",
    *("sae/notes.md", "sae/layer_01/width_00064/notes.md", "sae/mine/cfg.json", "trace/notes.md", "results/mine.parquet"),
)


def test_a_run_is_removed_whole_and_notes_stay(run: Path) -> None:
    mine = leave(run, MINE)
    pipeline._begin(CONFIG, run, "force")
    assert set(files(run)) == set(mine) | {"run.yaml"}
    assert all((run / name).read_bytes() == content for name, content in mine.items())
    assert not (run / "sae" / "training").exists()


@pytest.mark.parametrize(
    "name", ["results", "trace", "sae", "figures", "logs", "report.md", "results/layers.json", "run.yaml"]
)
def test_a_link_in_a_run_stops_force_before_anything_is_removed(run: Path, name: str) -> None:
    elsewhere = run.with_name("elsewhere")
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = files(run.parent)
    with pytest.raises(MoeProbeError, match=r"is a link to .*nothing was changed"):
        pipeline.run(CONFIG, run, mode="force")
    assert files(run.parent) == before


def test_every_figure_of_a_report_is_known() -> None:
    """Without a ledger a figure of another name would outlive its run."""
    sections = Path(figure_sections.__file__).parent
    calls = (node for path in sections.glob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    names = {
        node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])
        for node in calls
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Picture"
    }
    assert names and names <= set(FIGURES)


def test_every_section_of_a_report_is_known() -> None:
    assert SECTIONS == SECTIONS_OF_REPORT


def test_what_a_ledger_lists_is_removed_and_nothing_outside(run: Path) -> None:
    leave(run, ("results/of_2031.parquet", "notes.md", "logs/mine"))
    leave(run.parent, ("outside.json",))
    named = ["results/of_2031.parquet", "notes.md", "../outside.json", "results/../../outside.json", "logs/mine", 7]
    (run / "logs" / "stages.json").write_text(json.dumps({"analyze": {"files": named}}))
    pipeline._begin(CONFIG, run, "force")
    assert set(files(run)) == {"run.yaml", "notes.md", "logs/mine"}
    assert (run.parent / "outside.json").exists()


@pytest.mark.parametrize("ledger", ["", "[", "[]", "7", '{"a": 1}', '{"a": {}}', '{"a": {"files": 7}}', "[" * 9999])
def test_a_damaged_ledger_stops_nothing(run: Path, ledger: str) -> None:
    (run / "logs" / "stages.json").write_text(ledger)
    pipeline._begin(CONFIG, run, "force")
    assert set(files(run)) == {"run.yaml"}


def test_a_folder_that_was_no_run_is_refused(tmp_path: Path) -> None:
    mine = leave(tmp_path / "mine", ("report.md", "report.html", "figures/load.png", "results/table.parquet", "trace/x"))
    for mode in ("new", "force", "resume"):
        with pytest.raises(MoeProbeError, match="already contains other files"):
            pipeline.run(CONFIG, tmp_path / "mine", mode=mode)
        assert files(tmp_path / "mine") == mine


def test_what_a_kill_leaves_of_locks_makes_no_folder_a_full_one(tmp_path: Path) -> None:
    leave(tmp_path, (".moe-probe.lock", ".moe-probe.holder.json", "trace/.moe-probe.lock"))
    check_output_folder(tmp_path, "new", run_folder(tmp_path))
    check_output_folder(tmp_path / "trace", "new", TRACE_FOLDER)


def test_a_run_killed_before_it_locked_its_trace_is_begun_anew(tmp_path: Path) -> None:
    leave(tmp_path, (".moe-probe.lock", ".moe-probe.holder.json"))
    (tmp_path / "trace").mkdir()
    for mode in ("new", "resume", "force"):
        check_output_folder(tmp_path, mode, run_folder(tmp_path))
    (tmp_path / ".moe-probe.lock").unlink()
    (tmp_path / ".moe-probe.holder.json").unlink()
    with pytest.raises(MoeProbeError, match="already contains other files"):
        check_output_folder(tmp_path, "new", run_folder(tmp_path))


def test_parts_of_workers_are_removed_without_what_others_put_there(trace: Path, tmp_path: Path) -> None:
    parts = Parts.of(tmp_path / "of").begin()
    parts.settle(2, 64)
    for i in range(2):
        shutil.copytree(trace, parts.folder(i, 2))
        parts.lease(i, 2).write_text("")
    (parts.folder(0, 2) / "notes.md").write_text("mine")
    (parts.root / "parts.json").write_text("damaged")
    with pytest.raises(MoeProbeError, match="--force to start over"):
        parts.settle(2, 64)
    parts.remove()  # the advice
    assert set(files(parts.root)) == {"00000-of-00002/notes.md"}


def test_parts_with_a_link_stay_as_they_are(trace: Path, tmp_path: Path) -> None:
    parts = Parts.of(tmp_path / "of").begin()
    parts.settle(2, 64)
    shutil.copytree(trace, parts.folder(0, 2))
    parts.folder(1, 2).symlink_to(trace)
    before = files(tmp_path)
    with pytest.raises(MoeProbeError, match="is a link to"):
        parts.remove()
    assert files(tmp_path) == before


def test_notes_beside_an_sae_stay(tmp_path: Path) -> None:
    leave(tmp_path, ("cfg.json", "sae_weights.safetensors", "state.safetensors", "notes.md", "mine/cfg.json", ".tmpAb12Cd"))
    SAE_FILES.remove_folder(tmp_path)
    CHECKPOINT_FILES.remove_folder(tmp_path)
    assert set(files(tmp_path)) == {"notes.md", "mine/cfg.json"}


def test_a_file_is_own_only_in_folders_that_are_own() -> None:
    """Otherwise it would not be seen when a folder is listed."""
    names = ["trace.json", "parts", "routing", "hidden", "layer_00", "00000", "00000.json", "00000.safetensors", "x", ".."]
    own = {
        "/".join(path)
        for n in (1, 2, 3, 4)
        for path in itertools.product(names, repeat=n)
        if TRACE_FILES.is_own("/".join(path))
    }
    assert own == {"trace.json", "parts/00000.json", "routing/00000.safetensors", "hidden/layer_00/00000.safetensors"}
    assert all("/" not in path or TRACE_FILES.folders.fullmatch(path.rpartition("/")[0]) for path in own)


def test_a_new_run_that_nothing_came_of_leaves_nothing(tmp_path: Path) -> None:
    """After a typing error the next try is a new run again."""
    (tmp_path / "run").mkdir()
    for _ in range(2):
        with pytest.raises(MoeProbeError, match="there is no corpus"):
            pipeline.run(CONFIG, tmp_path / "run")
        assert files(tmp_path / "run") == {}
