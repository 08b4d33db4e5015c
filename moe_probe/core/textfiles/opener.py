"""Text of a file whatever its compression, or a sentence on why it cannot be read."""

from __future__ import annotations

import gzip
import io
import re
import shlex
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles.filelist import COMPRESSED, from_shell
from moe_probe.core.textfiles.limits import PER_BYTE, line_limit, text_limit, too_long

_OTHER_PACKING = (
    (b"PK\x03\x04", "a ZIP archive", "unzip"),
    (b"BZh", "bzip2-compressed", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"PAR1", "a Parquet file", None),
)
# UTF-32 first: its little-endian mark begins with that of UTF-16
_OTHER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
#: What the standard input is called in sentences.
_STDIN = Path("standard input")


class BadLineError(MoeProbeError):
    """A line of a text file that cannot be read; the lines after it can.

    Attributes
    ----------
    line : int
        Its number, counted from 1.
    """

    line: int = 0

    @classmethod
    def at(cls, line: int, what: str, why: str = "", hint: str = "") -> BadLineError:
        """Make the error for a line.

        Parameters
        ----------
        line : int
            Number of the line, counted from 1.
        what, why, hint : str
            As `MoeProbeError` takes them.

        Returns
        -------
        BadLineError
        """
        error = cls(what, why, hint)
        error.line = line
        return error


class _Bytes(io.RawIOBase):
    """Unpacked bytes of a file; what goes wrong in unpacking becomes a sentence."""

    def __init__(self, path: Path, inner: IO[bytes], packed: io.BufferedReader) -> None:
        self._path, self._inner, self._packed = path, inner, None if inner is packed else packed
        self._n = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: pyarrow's, of Zstandard
            raise MoeProbeError(f"{self._path} is damaged or cut off", str(error), "copy or download it again") from error
        buffer[: len(data)] = data
        self._n += len(data)
        if self._packed is not None and self._packed.seekable():  # a small file of long lines, or of very many
            limit = text_limit() + PER_BYTE * self._packed.tell()
            if self._n > limit:
                raise too_long(str(self._path), limit, "bytes")
        return len(data)


class TextFile(io.TextIOWrapper):
    """UTF-8 text that names file, line and byte where the bytes are something else.

    Parameters
    ----------
    path : Path
    bytes_ : buffered reader
        Its unpacked bytes.
    newline : str or None
        As for :func:`open`.
    packed : bool
        Whether the file is compressed: then the length of a line, and of the whole text, is limited.

    Attributes
    ----------
    limit : int or None
        Characters that a line may have.
    """

    def __init__(self, path: Path, bytes_: io.BufferedReader[Any], newline: str | None, *, packed: bool) -> None:
        super().__init__(bytes_, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        self._path, self._lines_before = path, 0
        self.limit = line_limit() if packed else None

    def _checked(self, text: str) -> str:
        # bytes that are not UTF-8 arrive as surrogates, which UTF-8 itself never yields
        before = self._lines_before
        self._lines_before += text.count("\n")
        bad = None if text.isascii() else _SURROGATE.search(text)
        if bad is None:
            return text
        line = before + text.count("\n", 0, bad.start()) + 1
        byte = len(text[text.rfind("\n", 0, bad.start()) + 1 : bad.start()].encode()) + 1
        raise BadLineError.at(
            line,
            f"{self._path}, line {line}, byte {byte} is not UTF-8 text",
            f"it is 0x{ord(bad.group()) - 0xDC00:02X}; the file may be Windows-1252 or Latin-1",
            _iconv(self._path, "WINDOWS-1252", plain=self._path.suffix.lower() not in COMPRESSED),
        )

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """Read a line; iteration comes through here too."""
        if self.limit is None or 0 <= size <= self.limit:
            return self._checked(super().readline(size))
        line = super().readline(self.limit + 1)
        if len(line) > self.limit:
            raise too_long(f"{self._path}, line {self._lines_before + 1}", self.limit)
        return self._checked(line)

    def read(self, size: int | None = -1, /) -> str:
        """Read some characters, or all that are left."""
        if self.limit is None or (size is not None and 0 <= size <= self.limit):
            return self._checked(super().read(size))
        limit = text_limit()
        text = super().read(limit + 1)
        if len(text) > limit:
            raise too_long(str(self._path), limit)
        return self._checked(text)


@contextmanager
def open_text(path: str | Path, *, newline: str | None = None) -> Iterator[TextFile]:
    """Open a text file whatever its compression, as UTF-8 without a byte-order mark.

    Parameters
    ----------
    path : str or Path
    newline : str, optional
        As for :func:`open`; "" for the csv module.

    Yields
    ------
    TextFile
        A line that is not UTF-8 raises `BadLineError` when it is read; reading may go on after it.

    Raises
    ------
    MoeProbeError
        When the file cannot be read, is damaged, is packed in another way (ZIP, xz), or is
        UTF-16 or UTF-32; when it is a pipe or a device; when more is read of a compressed file than
        `limits` allows.

    Examples
    --------
    >>> with open_text("corpus.jsonl.zst") as lines:
    ...     first = next(lines)
    """
    path = Path(path)
    with _open_file(path) as packed, _text_of(path, packed, newline) as text:
        yield text


def _text_of(path: Path, packed: io.BufferedReader, newline: str | None) -> TextFile:
    unpacked = _unpack(path, packed)
    bytes_ = io.BufferedReader(_Bytes(path, unpacked, packed), buffer_size=1 << 16)
    head = bytes_.peek(1024)[:1024]
    if unpacked is not packed and (_is_gzip(head) or _is_zstd(head) or _other_packing(head)):
        raise MoeProbeError(
            f"{path} is compressed more than once",
            "its unpacked content is an archive or compressed again",
            f"unpack it first: {'gunzip' if path.suffix.lower() == '.gz' else 'unzstd'} {path.name}",
        )
    _refuse_other_encodings(path, head, plain=unpacked is packed)
    return TextFile(path, bytes_, newline, packed=unpacked is not packed)


def _open_file(path: Path) -> io.BufferedReader:
    try:
        refuse_no_file(path)
        return path.open("rb")
    except OSError as error:
        raise MoeProbeError(
            f"{path} cannot be read", error.strerror or str(error), "check the path and its permissions"
        ) from error


def refuse_no_file(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which would be waited for without end, or a folder.

    Parameters
    ----------
    path : Path
        What the shell hands over (``<(command)``) is not refused.

    Raises
    ------
    MoeProbeError
    OSError
        When it cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not from_shell(path):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise MoeProbeError(f"{path} cannot be read", f"it is {kind}", "the path of a file")


def _unpack(path: Path, packed: io.BufferedReader) -> IO[bytes]:
    """Choose the decompressor by the first bytes: names lie, and come in capitals."""
    try:
        head = packed.peek(8)[:8]
    except OSError as error:
        raise MoeProbeError(f"{path} cannot be read", str(error), "check the file and its permissions") from error
    other = _other_packing(head)
    if other is not None:
        what, command = other
        raise MoeProbeError(
            f"{path} is {what}",
            "a text file is expected, plain or compressed with gzip or zstd",
            f"unpack it first: {command} {path.name}" if command else "name the file NAME.parquet",
        )
    if _is_gzip(head):
        return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]
    if _is_zstd(head):
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise MoeProbeError(
                f"{path} is zstd-compressed", "this build of pyarrow has no zstd", f"unpack it first: unzstd {path.name}"
            )
        stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
        return stream
    return packed


def _other_packing(head: bytes) -> tuple[str, str | None] | None:
    """Recognise what is neither text nor packed with gzip or zstd; return its name and the command that unpacks it."""
    return next(((what, command) for magic, what, command in _OTHER_PACKING if head.startswith(magic)), None)


def _is_gzip(head: bytes) -> bool:
    return head.startswith(b"\x1f\x8b\x08")


def _is_zstd(head: bytes) -> bool:
    # a stream of frames may begin with a skippable one (pzstd writes them)
    return head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F)


def _refuse_other_encodings(path: Path, head: bytes, *, plain: bool) -> None:
    name = next((name for mark, name in _OTHER_MARKS if head.startswith(mark)), None)
    if name is None and len(head) >= 8 and head.count(0) > len(head) / 4:
        name = "UTF-16"  # without a mark: every second byte of Western text is NUL
    if name is not None:
        raise MoeProbeError(f"{path} is {name} text", "text files must be UTF-8", _iconv(path, name, plain=plain))


def _iconv(path: Path, encoding: str, *, plain: bool = True) -> str:
    if path == _STDIN:
        return f"iconv -f {encoding} -t UTF-8 before it"
    name = path.name if plain else path.stem
    return (
        f"{'' if plain else 'unpack it, then '}iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > "
        f"{shlex.quote('utf8-' + name)}"
    )


def read_text(path: str | Path) -> str:
    """Read a whole file; see :func:`open_text` for what is unpacked and what is refused."""
    with open_text(path) as file:
        return file.read()


def read_stdin() -> str:
    """Read the whole standard input as a file would be read."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # replaced by a program that runs this one
        return sys.stdin.read()
    packed = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)
    return _text_of(_STDIN, packed, None).read()
