"""Text of token ids, from the folder of the model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers.token_record import TokenRecord


class TokenTexts:
    """The tokenizer of the model whose routing is imported.

    Parameters
    ----------
    path : Path
        Folder of a checkpoint or of its tokenizer alone. Nothing is downloaded.

    Raises
    ------
    MoeProbeError
        When there is no tokenizer that transformers can load from there.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        from moe_probe.models import tokenizer_hash
        from moe_probe.recording.collect.windows import Encoder

        if not path.is_dir():
            raise MoeProbeError(
                f"there is no tokenizer at {path}",
                "no such folder",
                "the folder with the model's tokenizer.json and tokenizer_config.json",
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise many kinds, Exception itself among them
            raise MoeProbeError(
                f"the tokenizer at {path} cannot be loaded",
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                "the folder with the model's tokenizer.json",
            ) from error
        self.path, self.size = path, len(self.tokenizer)
        self.hash = tokenizer_hash(self.tokenizer)
        self._encoder = Encoder(self.tokenizer, max_length=1 << 20, overlap=0)  # texts as collecting writes them
        #: What the trace's manifest says of its tokens' texts, as collecting does.
        self.settings: dict[str, str] = {"token_text": self._encoder.token_text}

    def fill(self, record: TokenRecord) -> TokenRecord:
        """Give a record's tokens the text of their ids, and mark special ones.

        Raises
        ------
        MoeProbeError
            When the tokenizer does not have an id, naming the row.
        """
        ids = record.token_id
        past = (ids < 0) | (ids >= self.size)
        if past.any():
            token = int(past.argmax())
            raise MoeProbeError(
                f"{record.where(token)} has the token id {int(ids[token])}",
                f"the tokenizer at {self.path} has {self.size:,} tokens",
                "the tokenizer of the recorded model",
            )
        return record._replace(
            tokens=[self._encoder.string(int(i)) for i in ids], special=np.isin(ids, self._encoder.special_ids)
        )
