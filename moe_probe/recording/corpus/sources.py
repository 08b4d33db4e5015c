"""What a corpus is made of: a file, files of a folder or a glob, folders of text, a data set of `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.text import some_of
from moe_probe.core.textfiles import expand, format_of, read_json, read_text
from moe_probe.recording.corpus.document import BadRowError
from moe_probe.recording.corpus.readers import TABLES, Row, named_classes, read_rows

#: Files in which `datasets` describes what it saved.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_NOTICES = re.compile(r"(readme|licen[cs]e|changelog|notice)\b", re.IGNORECASE)
_WANTED = "a .jsonl, .csv or .parquet file, a folder of topic/subtopic/*.txt, or datasets:NAME"


@dataclass(frozen=True)
class Source:
    """Rows of a corpus, and what there is to say on the choice of files.

    Attributes
    ----------
    rows : callable
        Begins a new iteration over the rows, each with file and line.
    notes : tuple of str
        Files that were left out, and how folders were read.
    """

    rows: Callable[[], Iterator[Row]]
    notes: tuple[str, ...] = ()


def open_source(source: str | Path, *, name: str | None = None, split: str | None = None) -> Source:
    """Find out what a corpus is made of.

    Parameters
    ----------
    source : str or Path
        A file; a glob; a folder of such files (to any depth), of ``topic/subtopic/*.txt``, or written by
        ``save_to_disk`` of `datasets`; or ``datasets:NAME`` for :func:`datasets.load_dataset`.
        Hidden files and folders and ``__MACOSX`` are passed over.
    name, split : str, optional
        Configuration and split of a `datasets` data set.

    Returns
    -------
    Source

    Raises
    ------
    MoeProbeError
        When there is nothing to read at `source`, or `datasets` is needed and not installed.
    """
    spec = str(source)
    if spec.startswith("datasets:"):
        dataset = spec.removeprefix("datasets:")
        need_corpus_extra(spec)
        if _is_saved(Path(dataset)):
            return open_source(dataset, split=split)
        return Source(partial(_datasets_rows, dataset, name=name, split=split))
    path = Path(source)
    if not spec:
        raise MoeProbeError("the name of the corpus is empty", "a variable of the shell may be unset", _WANTED)
    try:
        is_file, is_there = path.is_file(), path.exists()
    except OSError as error:
        raise MoeProbeError(f"there is no corpus at {spec[:200]}", error.strerror or str(error), _WANTED) from error
    if is_file:
        return Source(partial(read_rows, path))
    if not is_there and not re.search(r"[*?\[]", spec):
        raise MoeProbeError(f"there is no corpus at {path}", "no such file or folder", _WANTED)
    if _is_saved(path):
        return _saved(path, split)
    listed = expand(source)
    files = [file for file in listed.files if file.name.lower() not in _DESCRIPTIONS]
    tables = [file for file in files if format_of(file) in TABLES]
    # a lone .json among other tables or texts describes them
    texts = [file for file in files if format_of(file) == ".txt"]
    if any(format_of(file) != ".json" for file in tables) or texts:
        tables = [file for file in tables if format_of(file) != ".json"]
    hidden = [file for file in listed.hidden if format_of(file) in (*TABLES, ".txt")]
    passed_over = (f"{_counted(hidden)} hidden or in a hidden folder, and passed over: {some_of(hidden)}",) if hidden else ()
    if tables:
        return Source(partial(_tables_rows, tables), _left_out(set(files) - set(tables), spec) + passed_over)
    folder = _folder(path if path.is_dir() else _fixed_part(spec), texts, files, spec)
    return Source(folder.rows, folder.notes + passed_over)


def _tables_rows(files: Iterable[Path]) -> Iterator[Row]:
    for file in files:
        yield from read_rows(file)


def _left_out(files: Iterable[Path], spec: str) -> tuple[str, ...]:
    if not (left := sorted(files)):
        return ()
    return (
        f"{_counted(left)} left out of {spec}, since the format or the place is not that of a document: {some_of(left)}",
    )


def _counted(files: list[Path]) -> str:
    return "1 file is" if len(files) == 1 else f"{len(files)} files are"


def _fixed_part(spec: str) -> Path:
    """Folder before the first sign of a glob."""
    parts = Path(spec).parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    return Path(*parts[:first]) if first else Path()


def _folder(root: Path, texts: list[Path], files: list[Path], spec: str) -> Source:
    """``topic/subtopic/*.txt`` or ``topic/*.txt``: folder names are the labels."""
    taken = [file for file in texts if len(file.relative_to(root).parts) > 1 and not _NOTICES.match(file.name)]
    if not taken:
        raise MoeProbeError(
            f"there is no corpus in {spec}",
            "no .jsonl, .csv, .parquet or topic/*.txt in it",
            "name the file, or lay texts out as topic/subtopic/NAME.txt",
        )
    notes = _left_out(set(files) - set(taken), spec)
    deep = [file for file in taken if len(file.relative_to(root).parts) > 3]
    if deep:
        what = "1 text lies" if len(deep) == 1 else f"{len(deep)} texts lie"
        notes += (f"{what} deeper than topic/subtopic; the first two folders are the labels: {deep[0]}",)
    return Source(partial(_text_rows, root, taken), notes)


def _text_rows(root: Path, files: Iterable[Path]) -> Iterator[Row]:
    for path in files:
        parts = path.relative_to(root).parts
        try:
            text = read_text(path)
        except MoeProbeError as error:
            yield str(path), BadRowError.of(error)
            continue
        row = {
            "id": re.sub(r"\.txt(\.\w+)?$", "", "/".join(parts), flags=re.IGNORECASE),
            "topic": parts[0],
            "text": text,
            "subtopic": parts[1] if len(parts) > 2 else "",
        }
        yield str(path), row


def _is_saved(path: Path) -> bool:
    """Whether `datasets` wrote the folder (``save_to_disk``)."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved(path: Path, split: str | None) -> Source:
    """Arrow files of a folder that `datasets` wrote, in the order of its ``state.json``."""
    if (path / "dataset_dict.json").is_file():
        description = read_json(path / "dataset_dict.json")
        splits = [str(s) for s in description.get("splits", [])] if isinstance(description, dict) else []
        chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
        if chosen is None or chosen not in splits:
            what, why = f"{path} has no split '{chosen or 'train'}'", f"it has {', '.join(splits) or 'none'}"
            raise MoeProbeError(what, why, "--dataset-split with one of them")
        others = [s for s in splits if s != chosen]
        notes = (f"split {chosen} of {path} is read; {', '.join(others)} left out (--dataset-split)",) if others else ()
        return Source(_saved(path / chosen, None).rows, notes)
    incomplete = f"{path} is not a whole data set"
    if not (path / "state.json").is_file():
        raise MoeProbeError(incomplete, "state.json is missing", "save_to_disk again")
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise MoeProbeError(incomplete, "its state.json names no files", "save_to_disk again")
    if state.get("_indices_data_files"):
        raise MoeProbeError(
            f"{path} is a selection of rows of another data set",
            "its rows are in the order of an index",
            "flatten_indices() before save_to_disk()",
        )
    files = [path / Path(str(entry.get("filename", ""))).name for entry in state["_data_files"] if isinstance(entry, dict)]
    try:
        missing = [file.name for file in files if not file.is_file()]
    except (OSError, ValueError) as error:  # no name of a file: too long, or with NUL
        raise MoeProbeError(
            incomplete, f"its state.json names no files: {error_text(error)}", "save_to_disk again"
        ) from error
    if missing:
        raise MoeProbeError(incomplete, f"{missing[0]} is missing", "copy or download it again")
    return Source(partial(_tables_rows, files))


def _datasets_rows(dataset: str, *, name: str | None, split: str | None) -> Iterator[Row]:
    import datasets

    number = 0
    try:
        rows = datasets.load_dataset(dataset, name, split=split or "train", streaming=True)
        classes = {
            key: list(kind.names)
            for key, kind in (rows.features or {}).items()
            if isinstance(kind, datasets.ClassLabel) and kind.names
        }
        for row in rows:
            number += 1
            yield named_classes(dict(row), classes, f"datasets:{dataset}, row {number}")
    except Exception as error:  # `datasets` raises whatever its back-ends raise: name it all the same
        what = f"cannot be read after row {number}" if number else "cannot be loaded"
        raise MoeProbeError(
            f"data set '{dataset}' {what}",
            f"{type(error).__name__}: {error}",
            "check name, configuration and split, or give a local file",
        ) from error
