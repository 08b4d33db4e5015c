"""A trace: the sealed directory that records which experts every token was sent to.

Documents with their routing come in; a `Trace` comes out. The format is described in docs/formats.md.

- `writer` appends shards and seals (`sealing`); `shard` checks one shard and turns it into tables; `resume` continues an
  interrupted trace; `parts` checks that its shards are whole, `part_files` names and reads their files.
- `reader` opens a trace and loads only what is asked for; `tokens` its documents and tokens; `chunks` pieces of it, shard
  by shard; `rows` chosen tokens, `ids` the distinct ones; `usage` counts, summed while they are read; `stored` token
  strings as text; `sampled` which tokens have vectors.
- `opened` the files of a trace, opened and compared with its manifest; `tables` the columns of its tables.
- `merge` joins traces, the parts of one corpus or those of several; `mergeable` which belong together.
- `verify` finds damage by checksums, `agreement` counts that disagree.
- `checks` refuses what is no routing: repeated experts, gate weights, ids past the end.
- `facts` what a trace contains, in words; `annotated` routing as AnnData.
- `files` the names of the files, which only this folder knows, and the manifest.
"""

from moe_probe.recording.trace.chunks import RoutingChunk
from moe_probe.recording.trace.facts import trace_facts
from moe_probe.recording.trace.merge import merge_traces
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.verify import verify
from moe_probe.recording.trace.writer import TraceWriter

__all__ = ["RoutingChunk", "Trace", "TraceWriter", "merge_traces", "trace_facts", "verify"]
