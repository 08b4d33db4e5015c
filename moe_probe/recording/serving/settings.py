"""Settings of collecting from a serving engine."""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import model_validator

from moe_probe.core.errors import UsageError
from moe_probe.core.http import check_address, check_key
from moe_probe.core.settings import Settings, flag_of, setting

ENGINES = ("auto", "vllm", "sglang")
#: An address that could be used, for messages.
EXAMPLE = "http://localhost:8000"


class ServerSettings(Settings):
    """Which server runs the model, and how it is asked.

    Attributes
    ----------
    server : str or None
        Address, with or without ``/v1``; None where the model runs here.
    server_model : str or None
        Name of the model at the server.
    engine : str
        One of `ENGINES`.
    concurrency : int
        Requests under way at once.
    max_new_tokens : int
        Tokens of each answer at most. With 1 the servers return the routing of the whole prompt and of nothing else.
    keep_answer : bool
        Record the answers too, as documents of their own.
    request_timeout : float
        Seconds of one request.
    retries : int
        Further attempts of a request that failed.
    max_left_out : float
        Share of the documents that may stay without routing.
    api_key_env : str or None
        Environment variable with the key.
    num_experts, top_k : int or None
        Experts, and experts per token, of a model that transformers does not know.
    layers : tuple of int
        Its MoE layers.
    """

    panel: ClassVar[str] = "Serving engine"

    server: str | None = setting(
        None, "address of a vLLM or SGLang server that runs the model; MODEL then only names its tokenizer and config.json"
    )
    server_model: str | None = setting(None, "the model's name at the server; by default the only one it serves")
    engine: str = setting("auto", "auto, vllm or sglang")
    concurrency: int = setting(32, "requests under way at once", ge=1, le=1024)
    max_new_tokens: int = setting(1, "tokens that are generated for each text; with 1 the prompt alone is recorded", ge=1)
    keep_answer: bool = setting(False, "record what is generated too, as documents NAME#answer with the label part")
    request_timeout: float = setting(600.0, "seconds that a request may take", gt=0)
    retries: int = setting(6, "further attempts of a request that failed", ge=0)
    max_left_out: float = setting(0.05, "share of the documents that may stay without routing", ge=0, lt=1)
    api_key_env: str | None = setting(None, "environment variable with the server's API key", flag="--server-key-env")
    num_experts: int | None = setting(None, "experts of a layer, where config.json does not tell", ge=1)
    top_k: int | None = setting(None, "experts per token, where config.json does not tell", ge=1)
    layers: tuple[int, ...] = setting((), "MoE layers, as 1-23, where config.json does not tell")

    @model_validator(mode="after")
    def _check(self) -> ServerSettings:
        if self.server is None:
            if given := sorted(self.model_fields_set - {"server"}):
                raise UsageError(
                    f"{flag_of(type(self), given[0])} needs --server",
                    "it says how a serving engine is asked",
                    f"add --server {EXAMPLE}, or omit it",
                )
            return self
        check_address(self.server, "the server", f"--server {EXAMPLE}")
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine} is not known", "", ", ".join(ENGINES))
        if self.keep_answer and self.max_new_tokens < 2:
            raise UsageError(
                "--keep-answer would keep nothing",
                "servers return no routing for the last token that they generate, and --max-new-tokens is 1",
                "--max-new-tokens 128",
            )
        return self

    @property
    def root(self) -> str:
        """The server's address without ``/v1``."""
        return (self.server or "").rstrip("/").removesuffix("/v1").rstrip("/")

    def api_key(self) -> str:
        """Read the key from the environment.

        Returns
        -------
        str
            "" where none is needed.

        Raises
        ------
        UsageError
            When the variable is not set.
        MoeProbeError
            When the key cannot be sent.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UsageError(
                f"--server-key-env {self.api_key_env} names no key",
                "the environment variable is empty or not set",
                f"export {self.api_key_env}=... first",
            )
        check_key(key)
        return key
