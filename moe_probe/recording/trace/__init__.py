"""The record: a sealed directory of who was sent where. The only code that knows file names.

`TraceWriter` appends shards, seals and resumes; `Trace` reads, and loads only what is asked for;
`verify` finds damage. The format is described in docs/formats.md.
"""

from moe_probe.recording.trace.chunks import RoutingChunk
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.verify import verify
from moe_probe.recording.trace.writer import TraceWriter

__all__ = ["RoutingChunk", "Trace", "TraceWriter", "verify"]
