"""Results that belong together: published at one moment, and refused where they are mixed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_json, write_text
from moe_probe.core.lock import locked, run_of_results
from moe_probe.core.publication import Publication, Published, read_object
from moe_probe.core.result_files import Generation
from moe_probe.core.results import Result, command_for
from moe_probe.core.text import listed

#: Results that several commands renew, each of which is a group of its own.
_ALONE = ("verdicts",)
#: The results that such a group is made from.
_RESTS_ON = {"verdicts": ("usage_verdicts", "carriers", "features", "ablation")}
#: Settings that all commands understand alike; results with different values of them answer different questions.
_SHARED = ("by", "strata", "alpha")
_ATTEMPTS = 3


def made_by(name: str) -> str:
    """Name the command whose results belong together with one; ``verdicts``, which several renew, stands for itself.

    Parameters
    ----------
    name : str
        Of a result.

    Returns
    -------
    str
        Without ``moe-probe`` and paths: ``analyze``, ``sae eval``, ``tree --depth-first auto``.
    """
    words = [
        word for word in command_for(name, "results").split()[1:] if word not in (".", "results", "RUN", "--out", "--force")
    ]
    return name if name in _ALONE else " ".join(words)


@locked(lambda directory, *_, **__: run_of_results(directory))
def save_together(
    directory: str | Path,
    results: Iterable[Result],
    *,
    settings: Mapping[str, Any] | None = None,
    remove: Collection[str] = (),
    texts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write results so that readers see all of them or none.

    Parameters
    ----------
    directory : str or Path
        Usually ``RUN/results``.
    results : iterable of Result
        All results that a command (or several) made of one input with one group of settings.
    settings : mapping, optional
        What decides the results beside their inputs (JSON values).
    remove : collection of str
        Names of results, or of files with their ending, that must not stay beside these.
    texts : mapping of str to str, optional
        Further files by name, with their text.

    Returns
    -------
    list of Path
        Files written: table and JSON of each result, then the further ones.

    Raises
    ------
    MoeProbeError
        When another process writes to the run; when the disk is full or refuses: the folder is as it was before.
    """
    made, folder = list(results), Path(directory)
    given = json.loads(json.dumps(dict(settings or {}), default=str))
    with Publication(folder) as publication:
        digests = {result.name: result.stage_table(publication) for result in made}
        generations = _generations([r for r in made if r.name not in _ALONE], digests, given)
        kept = [name for name in _RESTS_ON["verdicts"] if name not in digests and name not in remove]
        ids = {name: generations[made_by(name)].id for name in digests if name not in _ALONE} | _ids_in(folder, kept)
        for alone in (r for r in made if r.name in _ALONE):
            used = {"from": {name: ids[name] for name in _RESTS_ON[alone.name] if name in ids}}
            generations |= _generations([alone], digests, used)
        for result in made:
            result.stage_json(publication, digests[result.name], generations[made_by(result.name)])
        for name, text in (texts or {}).items():
            publication.add(name, lambda path, text=text: write_text(path, text))  # type: ignore[misc]
        for name in remove:
            publication.remove([name] if "." in name else [f"{name}.parquet", f"{name}.json"])
    files = [folder / f"{result.name}.{ending}" for result in made for ending in ("parquet", "json")]
    return [*files, *(folder / name for name in texts or {})]


def _generations(made: Iterable[Result], digests: Mapping[str, str], settings: dict[str, Any]) -> dict[str, Generation]:
    """One generation for each command whose results are among those given; its id follows from their content."""
    groups = defaultdict[str, list[Any]](list)
    for result in made:
        groups[made_by(result.name)].append([digests[result.name], result.meta()])
    keys = {command: sha256_json([command, settings]) for command in groups}
    return {
        command: Generation(command, keys[command], sha256_json([keys[command], contents]), settings)
        for command, contents in groups.items()
    }


def _ids_in(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Ids of results that stay in a folder, where they have one."""
    published, ids = Published.of(folder), dict[str, str]()
    for name in names:
        try:
            generation = Generation.from_json(read_object(published.path(f"{name}.json")).get("generation"))
        except (OSError, ValueError):
            continue  # not there, or not readable: whoever reads it says so
        if generation is not None:
            ids[name] = generation.id
    return ids


def read_together(directory: str | Path) -> dict[str, Result]:
    """Read all results of a folder.

    Parameters
    ----------
    directory : str or Path
        Usually ``RUN/results``.

    Returns
    -------
    dict of str to Result
        By name, in alphabetical order; empty where the folder has none.

    Raises
    ------
    MoeProbeError
        When one cannot be read, or when results of one command come from different runs of it.
    """
    for attempt in range(_ATTEMPTS):
        names = Published.of(Path(directory)).names(".parquet")  # a table without its JSON is refused as well
        results = {name: Result.load(directory, name) for name in (name.removesuffix(".parquet") for name in names)}
        mixed = _first_mix(results)
        if mixed is None:
            break
        time.sleep(0.05 * (attempt + 1))  # a writer may have published in between
    else:
        command, one, other = mixed  # type: ignore[misc]
        raise MoeProbeError(
            f"results in {directory} are mixed",
            f"{one} and {other} come from different runs of moe-probe {command}",
            command_for(one, directory),
        )
    return results


def _first_mix(results: Mapping[str, Result]) -> tuple[str, str, str] | None:
    seen: dict[str, tuple[str, str]] = {}
    for name, result in results.items():
        if result.generation is not None:
            command = made_by(name)
            first, same = seen.setdefault(command, (name, result.generation.id))
            if result.generation.id != same:
                return command, first, name
    return None


def differing_settings(results: Mapping[str, Result], directory: str | Path = "RUN/results") -> list[str]:
    """Name what does not fit together among results that may stand beside each other.

    Parameters
    ----------
    results : mapping of str to Result
    directory : str or Path
        Folder in the commands that are named.

    Returns
    -------
    list of str
        A sentence for each: a result saved apart from the others of its command, commands with different settings, verdicts
        older than what they rest on. Results without a generation (older ones) raise none.
    """
    known = {name: result.generation for name, result in results.items() if result.generation is not None}
    commands = {made_by(name): generation for name, generation in known.items()}
    apart = [name for name in results if name not in known and made_by(name) in commands]
    out = [
        f"{name} was saved apart from the other results of its command: {command_for(name, directory)}." for name in apart
    ]
    names = {made_by(name): name for name in known}
    first = "analyze" if "analyze" in commands else next(iter(commands), "")
    for command, generation in commands.items():
        base = commands[first].settings
        differ = [s for s in _SHARED if s in base and s in generation.settings and base[s] != generation.settings[s]]
        if differ:
            told = listed(f"{s} {base[s]} and {generation.settings[s]}" for s in differ)
            out.append(
                f"{first} and {command} ran with different settings ({told}): {command_for(names[command], directory)}."
            )
    verdicts = known.get("verdicts")
    rest_on = verdicts.settings.get("from") if verdicts is not None else None
    for name, used in rest_on.items() if isinstance(rest_on, dict) else ():
        if name in known and known[name].id != used:
            out.append(f"The verdicts are older than {name}: {command_for('usage_verdicts', directory)}.")
    return out
