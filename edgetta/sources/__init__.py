"""Where frames come from: image files, arrays, video files, cameras and network streams, behind one contract."""

from edgetta.sources.opening import open_source
from edgetta.sources.source import Frame, FrameSource, Skipped, Source, SourceError, batches

__all__ = ["Frame", "FrameSource", "Skipped", "Source", "SourceError", "batches", "open_source"]
