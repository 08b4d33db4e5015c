"""A trace: the sealed directory that records which experts every token was sent to.

`TraceWriter` appends shards, seals and resumes (`writer`, `shard`, `resume`); `Trace` reads, and loads only what is asked for
(`reader`, `chunks`, `stored` for token texts, `annotated` for AnnData, `facts`); `verify` finds damage; `checks` refuses what
is no routing. Only this folder knows the names of the files (`files`). The format is described in docs/formats.md.
"""

from moe_probe.recording.trace.chunks import RoutingChunk
from moe_probe.recording.trace.facts import trace_facts
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.verify import verify
from moe_probe.recording.trace.writer import TraceWriter

__all__ = ["RoutingChunk", "Trace", "TraceWriter", "trace_facts", "verify"]
