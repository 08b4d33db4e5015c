"""Documents for which a server returned no routing: how many are borne, and what is said of them."""

from __future__ import annotations

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import some_of
from moe_probe.recording.serving.engines import SWITCH
from moe_probe.recording.serving.settings import ServerSettings

#: Names that are remembered for the message at the end.
_NAMED = 1000


class Losses:
    """Counts documents that are left out, and ends the collection where they are too many.

    Parameters
    ----------
    total : int
        Documents of the corpus, or of the part that is collected.
    settings : ServerSettings
    address : str
        Of the server, for messages.
    """

    def __init__(self, total: int, settings: ServerSettings, address: str) -> None:
        self.total, self.address, self.share = total, address, settings.max_left_out
        self.names: list[str] = []
        self.n, self._in_a_row, self._why = 0, 0, ""
        # as many as are sent at once may fail together; more mean that the server fails, not the documents
        self._most_in_a_row = max(4, 2 * settings.concurrency)

    def counts(self, document: str, why: str) -> bool:
        """Count a document.

        Parameters
        ----------
        document : str
            Its name.
        why : str
            Why it has no routing; "" where it has.

        Returns
        -------
        bool
            Whether it has routing.

        Raises
        ------
        MoeProbeError
            When more documents have none than the settings allow, or many in a row.
        """
        if not why:
            self._in_a_row = 0
            return True
        self.n, self._in_a_row, self._why = self.n + 1, self._in_a_row + 1, why
        self.names = [*self.names, document][:_NAMED]
        if self.n > self.share * self.total:
            raise MoeProbeError(
                f"{self.address} returned no routing for {self.n:,} of {self.total:,} documents ({some_of(self.names)})",
                why,
                f"the same command with --resume, once the server (started with {SWITCH}) returns it; or a --max-left-out "
                f"above {self.share:g}",
            )
        if self._in_a_row >= self._most_in_a_row:
            raise MoeProbeError(
                f"{self.address} stopped answering",
                f"{why}; {self._in_a_row} documents in a row",
                "the same command with --resume, once the server answers again: whole shards are kept",
            )
        return False

    def warnings(self, n_recorded: int) -> tuple[str, ...]:
        """Describe what is missing at the end.

        Parameters
        ----------
        n_recorded : int
            Documents in the trace, answers apart.

        Returns
        -------
        tuple of str
            Empty where nothing is.
        """
        n = self.total - n_recorded
        if n <= 0:
            return ()
        before = n - self.n
        earlier = f", {before:,} of them before the interruption" if before > 0 else ""
        named = f" ({some_of(self.names)}: {self._why})" if self.names else ""
        return (f"left out: {n:,} of {self.total:,} documents, without routing from the server{earlier}{named}",)
