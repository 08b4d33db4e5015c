"""Sums of counts against numbers of tokens: how many experts a token selects, and how many tokens a document has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError


class TokenFit(NamedTuple):
    """Sums of counts that are to be explained by tokens.

    Attributes
    ----------
    where : list of str
        Name of each document.
    layers : list of int
        Number of each layer.
    sums : ndarray of int64, shape (n_documents, n_layers)
        Selections.
    kept : ndarray of bool, shape (n_documents,)
        Documents with a selection.
    """

    where: list[str]
    layers: list[int]
    sums: np.ndarray
    kept: np.ndarray

    def without_tokens(self, top_k: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Find the experts per token of each layer and the tokens of each document, from the sums alone.

        Parameters
        ----------
        top_k : int or None
            Experts per token.

        Returns
        -------
        top_k : ndarray of int, shape (n_layers,)
        n_tokens : ndarray of int64, shape (n_documents,)

        Raises
        ------
        MoeProbeError
            When the sums differ between layers, or are no multiple of `top_k`.
        UsageError
            When `top_k` is missing.
        """
        if top_k is None:
            raise UsageError(
                "the number of experts per token is not known",
                "neither the file nor a column 'tokens' of the documents says it",
                "--top-k K, or a column 'tokens' beside the labels",
            )
        unlike = self.sums != self.sums[:, :1]
        if unlike.any():
            row, column = (int(i) for i in np.argwhere(unlike)[0])
            raise MoeProbeError(
                f"{self.where[row]} has {self.sums[row, column]:,} selections in layer {self.layers[column]} and "
                f"{self.sums[row, 0]:,} in layer {self.layers[0]}",
                "every token passes through every layer",
                "correct counts; for a model that drops tokens, --top-k and a column 'tokens' beside the labels",
            )
        odd = self.sums[:, 0] % top_k != 0
        if odd.any():
            row = int(odd.argmax())
            raise MoeProbeError(
                f"{self.where[row]} has {self.sums[row, 0]:,} selections in layer {self.layers[0]}",
                f"that is no multiple of --top-k {top_k}",
                "the right --top-k, or correct counts",
            )
        return np.full(len(self.layers), top_k), self.sums[:, 0] // top_k

    def with_tokens(self, tokens: np.ndarray, top_k: int | None, warnings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Find the experts per token of each layer, where the tokens of each document are known.

        Parameters
        ----------
        tokens : ndarray of int64, shape (n_documents,)
        top_k : int or None
            Experts per token as the user gave it. Then sums may be smaller: some models drop tokens.
        warnings : list of str
            Is extended.

        Returns
        -------
        top_k : ndarray of int, shape (n_layers,)
        n_tokens : ndarray of int64, shape (n_documents,)

        Raises
        ------
        MoeProbeError
            When the sums are no whole multiple of the tokens, one multiple per layer; or more than `top_k` per token.
        """
        if (self.kept & (tokens < 1)).any():
            row = int((self.kept & (tokens < 1)).argmax())
            raise MoeProbeError(f"{self.where[row]} has selections and no tokens", "its number of tokens is 0", "correct it")
        if top_k is None:
            first = int(self.kept.argmax())
            k = self.sums[first] // tokens[first]
            unlike = self.kept[:, None] & ((self.sums != tokens[:, None] * k) | (k < 1))
            if unlike.any():
                row, column = (int(i) for i in np.argwhere(unlike)[0])
                raise MoeProbeError(
                    f"{self.where[row]} has {self.sums[row, column]:,} selections by {tokens[row]:,} tokens in layer "
                    f"{self.layers[column]}",
                    f"that is {self.sums[row, column] / tokens[row]:.6g} per token"
                    + (f"; {self.where[first]} has {k[column]}" if row != first else ", and no whole number"),
                    "correct counts or tokens; for a model that drops tokens, --top-k",
                )
            return k, tokens
        most = tokens[:, None] * top_k
        over = self.sums > most
        if over.any():
            row, column = (int(i) for i in np.argwhere(over)[0])
            raise MoeProbeError(
                f"{self.where[row]} has {self.sums[row, column]:,} selections in layer {self.layers[column]}",
                f"its {tokens[row]:,} tokens select {top_k} experts each, {most[row, 0]:,} together",
                "the right --top-k, or correct counts and tokens",
            )
        missing = int((most - self.sums)[self.kept].sum())
        if missing:
            total = int(most[self.kept].sum()) * len(self.layers)
            warnings.append(
                f"{missing:,} of {total:,} selections ({missing / total:.2%}) are missing: taken for tokens that reached "
                "fewer experts, as in models that drop tokens"
            )
        return np.full(len(self.layers), top_k), tokens

    def check_most(self, largest: np.ndarray, n_tokens: np.ndarray) -> None:
        """Refuse an expert with more selections than there are tokens.

        Parameters
        ----------
        largest : ndarray of int, shape (n_documents, n_layers)
            Selections of the commonest expert.
        n_tokens : ndarray of int, shape (n_documents,)

        Raises
        ------
        MoeProbeError
            Naming document and layer.
        """
        over = largest > n_tokens[:, None]
        if over.any():
            row, column = (int(i) for i in np.argwhere(over)[0])
            raise MoeProbeError(
                f"{self.where[row]} has an expert with {largest[row, column]:,} selections in layer {self.layers[column]}",
                f"it has {n_tokens[row]:,} tokens, and a token selects an expert once",
                "the right --top-k, or correct counts",
            )
