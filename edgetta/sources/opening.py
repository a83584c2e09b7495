"""`open_source`: the right source for what the user wrote."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from glob import has_magic
from pathlib import Path

from edgetta.errors import UsageError
from edgetta.sources import arrays, images, video
from edgetta.sources.resize import Resize
from edgetta.sources.source import ARRAY_SUFFIXES, IMAGE_SUFFIXES, FrameSource, SourceError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".mjpeg")
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "http", "https")


def open_source(
    spec: str | Path, *, size: tuple[int, int] | Resize, resize: bool = True, loop: bool = False
) -> FrameSource:
    """Open what the user named.

    Kinds: a folder of images (and its subfolders, sorted by path; hidden entries and links to folders are left out), a
    pattern such as `"frames/*.png"`, one image, an `.npy` or `.npz` array (`file.npz:key` picks one of several), a
    video file, `camera:0`, a network stream (`rtsp://...`), and a GStreamer pipeline (`"a ! b ! appsink"`). The last
    four need OpenCV.

    Args:
        spec: the source.
        size: (H, W) that the model takes, to which frames are stretched; or a `Resize`, which says how they become it.
        resize: bring frames of another size to it; otherwise such a frame is an error.
        loop: start again at the end, for ever. Not for live sources.

    Raises:
        SourceError: missing, empty, unreadable, or of a shape that is no image.
        MissingDependencyError: the source needs OpenCV, or one with GStreamer, and there is none.
        UsageError: a size that is none, or `loop` for a source that never ends.
    """
    to = size if isinstance(size, Resize) else Resize(_checked_size(size))
    if not resize:
        to = replace(to, policy="refuse")
    text = str(spec)
    if not text or "\0" in text:
        raise SourceError(f"{text!r} is no source; name a folder, a file, a camera or a stream")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if text.startswith("camera:"):
        return video.open_camera(text, resize=to, loop=loop)
    if scheme:
        if scheme[1].lower() not in STREAM_SCHEMES:
            raise SourceError(f"no source of the kind {scheme[1]}://; streams are {', '.join(STREAM_SCHEMES)}")
        return video.open_stream(text, resize=to, loop=loop)
    if text.startswith("gstreamer:") or " ! " in text:
        return video.open_pipeline(text.removeprefix("gstreamer:").strip(), resize=to, loop=loop)

    path = Path(text).expanduser()
    if re.fullmatch(r"[0-9]{1,3}", text) and not path.exists():
        raise SourceError(f"there is no file {text}; a camera is named camera:{text}")
    key = None
    try:
        if not path.exists():
            file, separator, found = text.rpartition(".npz:")
            if separator and Path(file + ".npz").expanduser().is_file():
                path, key = Path(file + ".npz").expanduser(), found
            elif has_magic(text):
                return images.open_glob(str(path), resize=to, loop=loop)
            else:
                raise SourceError(f"there is no {path}{nearest(path)}; check the path")
        if path.is_dir():
            return images.open_folder(path, resize=to, loop=loop)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}; check the path and its owner") from error
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return arrays.open_array(path, key, resize=to, loop=loop)
    if suffix in IMAGE_SUFFIXES:
        return images.open_image(path, resize=to, loop=loop)
    if suffix in VIDEO_SUFFIXES:
        return video.open_video(path, resize=to, loop=loop)
    raise SourceError(
        f"cannot tell from its suffix what {path} is; images end in {', '.join(IMAGE_SUFFIXES)}, "
        f"arrays in {', '.join(ARRAY_SUFFIXES)}, videos in {', '.join(VIDEO_SUFFIXES)}"
    )


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
        raise UsageError(f"the frame size {size} is not (height, width) with both at least 1")
    return int(size[0]), int(size[1])


def nearest(path: Path) -> str:
    """A hint at what the user may have meant by a path that does not exist."""
    if not path.parent.is_dir():
        return f" (nor its folder {path.parent})"
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in path.parent.iterdir()), n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
