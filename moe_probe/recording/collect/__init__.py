"""A corpus and a model in, a sealed trace out.

- `windows` tokenizes documents and cuts long ones into overlapping windows; `tables` their rows in the trace's tables.
- `batches` puts the windows of a shard into padded batches; `passes` runs them through the model; `packing` copies what was
  recorded to the host, without the device waiting; `arrays` has the shard's arrays, one row per token; `memory` chooses the
  size of batches.
- `pipeline` does all of that, tokenizing and writing side by side.
- `blocks` cuts the corpus into blocks of documents, one a shard, and shares them out among processes.
- `collect` appends shard after shard to the trace, and resumes an interrupted one (`recording/trace/resume` checks
  that it is the same).
- `ray_collect` shares the blocks out among Ray workers, whose parts lie in the folder that `parts` describes.
- `stage` the stage ``collect`` of a run: it is done again when model or corpus changed.
"""

from moe_probe.recording.collect.collect import collect_trace
from moe_probe.recording.collect.windows import EncodedDocument, Encoder, Window
from moe_probe.recording.settings import CollectOptions

__all__ = ["CollectOptions", "EncodedDocument", "Encoder", "Window", "collect_trace"]
