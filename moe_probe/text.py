"""Text from files as something safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace control characters by their codes: names and tokens must not steer a terminal or a page."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
