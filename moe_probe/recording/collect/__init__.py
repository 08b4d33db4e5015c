"""Model + corpus -> trace: documents windowed, run in batches, their routing appended shard by shard."""

from moe_probe.recording.collect.collect import CollectOptions, collect_trace
from moe_probe.recording.collect.windows import EncodedDocument, Encoder, Window

__all__ = ["CollectOptions", "EncodedDocument", "Encoder", "Window", "collect_trace"]
