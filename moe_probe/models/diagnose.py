"""Explain in one sentence what transformers raises when reading a model fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moe_probe.core.errors import MoeProbeError

#: What transformers and huggingface_hub raise where the hub does not answer.
_UNREACHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}


@contextmanager
def explained(name: str, *, part: str) -> Iterator[None]:
    """Turn what transformers raises while reading one part of a model into a MoeProbeError.

    Parameters
    ----------
    name : str
        Folder or repository of the model.
    part : {"configuration", "weights", "tokenizer"}

    Yields
    ------
    None

    Raises
    ------
    MoeProbeError
        For every error that reading a file, a hub or a class of transformers can raise.
    """
    try:
        yield
    except MoeProbeError:
        raise
    except Exception as error:  # whatever a library makes of files of strangers ends here: tokenizers raises bare Exceptions
        placed = _placement_diagnosis(name, error) if part == "weights" else None
        raise placed or _diagnosis(name, part, error) from error


def _diagnosis(name: str, part: str, error: BaseException) -> MoeProbeError:
    text, kinds = " ".join(str(error).split()), _kinds(error)
    first = text.split(". ")[0][:200]
    if "GatedRepoError" in kinds or "gated repo" in text:
        return MoeProbeError(
            f"{name} may not be downloaded", "its authors ask for an agreement first", "log in with `hf auth login`"
        )
    if "RevisionNotFoundError" in kinds:
        return MoeProbeError(f"{name} has no such revision", first, "omit --revision, or pass a commit")
    if kinds & _UNREACHED or "couldn't connect" in text or "connection error" in text:
        return _not_here(name, part)
    if "RepositoryNotFoundError" in kinds or "not a valid model identifier" in text:
        return MoeProbeError(
            f"there is no model {name}", "neither a folder nor a public repository has this name", "check the spelling"
        )
    if "trust_remote_code" in text:
        return MoeProbeError(
            f"{name} needs Python code of its own",
            "code from a checkpoint is run on request only",
            "pass --trust-remote-code, if you trust its authors",
        )
    if "ImportError" in kinds and "accelerate" in text.lower():
        return MoeProbeError(
            f"the {part} of {name} need{'' if part == 'weights' else 's'} the package accelerate",
            "not installed",
            "pip install 'moe-probe[quantized]'",
        )
    if "ignore_mismatched_sizes" in text:
        return MoeProbeError(
            f"config.json and the weights of {name} do not belong together",
            "they disagree on the sizes of tensors",
            "copy both from the same place",
        )
    if part == "configuration" and ("does not recognize" in text or "Unrecognized model" in text):
        return MoeProbeError(
            f"the installed transformers does not know the kind of model in {name}",
            first,
            "install a newer version of transformers",
        )
    if part == "tokenizer":
        return MoeProbeError(
            f"{name} has no tokenizer that can be read",
            first,
            "put tokenizer.json and tokenizer_config.json beside the weights",
        )
    return MoeProbeError(f"the {part} of {name} could not be read", first, "check that the files are complete")


def _not_here(name: str, part: str) -> MoeProbeError:
    """Say why the hub did not help: it was not asked, or did not answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return MoeProbeError(
            f"the {part} of {name} is not on this machine",
            "the hub is asked only for a model that the command line names, and not where HF_HUB_OFFLINE is set",
            f"--model {name}, if you want it from the hub",
        )
    return MoeProbeError(
        f"the {part} of {name} could not be downloaded",
        "the hub cannot be reached and there is no local copy",
        "check the connection, or pass a folder that has the model",
    )


def _placement_diagnosis(name: str, error: BaseException) -> MoeProbeError | None:
    """Explain what keeps weights from the devices they should go on; None where it is something else."""
    text, kinds = " ".join(str(error).split()), _kinds(error)
    first = text.split(". ")[0][:200]
    if "ImportError" in kinds and "accelerate" not in text.lower():
        return MoeProbeError(f"the weights of {name} need a package that is not installed", first, "install it")
    if "offload_folder" in text or "offload_dir" in text:
        return MoeProbeError(
            f"the weights of {name} do not fit on the devices",
            "the rest would go to disk, and no folder was named for it",
            "--offload-folder FOLDER, or more in --max-memory",
        )
    if "OutOfMemoryError" in kinds:
        return MoeProbeError(
            f"the weights of {name} do not fit on the device", first, "--device-map auto, which uses all GPUs and memory"
        )
    if "_plan`" in text:
        return MoeProbeError(
            f"{name} cannot be split over processes in this way", first, "the other --tp-plan, or --device-map"
        )
    return None


def _kinds(error: BaseException | None) -> set[str]:
    """Class names (with bases) of an error and of what caused it."""
    kinds: set[str] = set()
    while error is not None:
        kinds |= {cls.__name__ for cls in type(error).__mro__}
        error = error.__cause__ or error.__context__
    return kinds
