"""Frames from video files, cameras, network streams and GStreamer pipelines, through OpenCV where it is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.errors import MissingDependencyError, UsageError
from edgetta.printable import printable
from edgetta.sources.images import UnusableFrame, check_pixels, to_eight_bits
from edgetta.sources.live import Connection, LiveFrames, grab
from edgetta.sources.resize import Resize
from edgetta.sources.secret import public_name
from edgetta.sources.source import Frame, FrameSource, Skipped, SourceError

OPEN_MILLISECONDS = 10_000
"""So long may an address be silent when it is opened, or in between; OpenCV itself would wait for half a minute."""

_RECORDED = re.compile(r"\b(multi)?filesrc\b|\bfile://|\bnum-buffers\b")
"""What a GStreamer pipeline holds that comes to a regular end."""


class VideoFrames(FrameSource):
    """Frames that OpenCV decodes, in order.

    Args:
        name: what errors and frames call the source; never holds a password.
        start: opens the capture, or raises SourceError; called again for another pass.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Any],
        *,
        title: str,
        resize: Resize,
        loop: bool,
    ) -> None:
        self._start = start
        self._title = title
        self._resize = resize
        self._begun = False
        self._capture: Any = start()
        announced = _property(self._capture, "CAP_PROP_FRAME_COUNT")
        super().__init__(name, description=name, length=announced or None, loop=loop)
        self._announced = announced
        # Read now, so that what cannot deliver is an error when it is opened and not in the middle of a run.
        self._first = self._grab()
        if self._first is None:
            self.close()
            raise SourceError(f"{name} opens but delivers no frame; check that it plays elsewhere")
        self.description = f"{name}: frames of {self._first.shape[1]} x {self._first.shape[0]}"

    def read(self) -> Iterator[Frame | Skipped]:
        if self._begun:
            self.close()
        if self._capture is None:
            self._capture, self._first = self._start(), None
        self._begun = True
        index = 0
        while True:
            picture, self._first = self._first, None
            if picture is None:
                picture = self._grab()
            if picture is None:
                break
            yield frame_of(f"{self._title}[{index}]", picture, index, self._resize)
            index += 1
        # Containers may miscount by a frame; a gap beyond that means that the file is damaged or cut short.
        if index + 1 < self._announced:
            yield Skipped(
                f"{self._title}[{index}...]", f"the video ends here; its header announces {self._announced:,} frames"
            )
        self.close()

    def close(self) -> None:
        """Give the camera, the connection or the file back; another pass opens it again."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _grab(self) -> np.ndarray | None:
        return grab(self._capture)


def frame_of(name: str, picture: np.ndarray, index: int, resize: Resize) -> Frame | Skipped:
    """What OpenCV delivered, as a frame of the model's size."""
    try:
        check_pixels(picture.shape[1], picture.shape[0])
        return Frame(name, resize.array(_rgb(picture), name), index, (picture.shape[0], picture.shape[1]))
    except UnusableFrame as reason:
        return Skipped(name, str(reason))


def open_video(path: Path, *, resize: Resize, loop: bool = False) -> VideoFrames:
    """A video file.

    Raises:
        SourceError: the file cannot be read, or holds no video that this OpenCV decodes.
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = _opencv(str(path))
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}; check the file and its owner") from error
    remedy = "check that it plays elsewhere, or convert it to H.264 in .mp4"
    start = _starter(lambda: cv2.VideoCapture(str(path)), f"{path} holds no video that this OpenCV decodes; {remedy}")
    return VideoFrames(str(path), start, title=printable(path.name), resize=resize, loop=loop)


def open_camera(spec: str, *, resize: Resize, loop: bool = False) -> LiveFrames:
    """A camera, as `camera:0`.

    Raises:
        UsageError: not such a name, or `loop`.
        SourceError: no such camera.
        MissingDependencyError: OpenCV is not installed.
    """
    number = spec.removeprefix("camera:")
    if not re.fullmatch(r"[0-9]{1,4}", number):
        raise UsageError(f"{spec} names no camera; write camera:0 for the first one, camera:1 for the second")
    _refuse_loop(spec, loop)
    cv2 = _opencv(spec)

    def opened() -> Any:
        capture = cv2.VideoCapture(int(number))
        # The newest frame rather than a queue of old ones; not every driver listens.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    start = _starter(opened, f"cannot open {spec}; check that it is connected and that no other program holds it")
    return _live(spec, start, spec, resize)


def open_stream(url: str, *, resize: Resize, loop: bool = False) -> LiveFrames:
    """A network stream, such as `rtsp://user:password@host/path`. User, password and query are never shown.

    Raises:
        UsageError: `loop`.
        SourceError: nothing answers there, or it is no video.
        MissingDependencyError: OpenCV is not installed.
    """
    name = public_name(url)
    _refuse_loop(name, loop)
    cv2 = _opencv(name)
    remedy = "check the address, the password and the network"
    limits = [
        part
        for option in ("CAP_PROP_OPEN_TIMEOUT_MSEC", "CAP_PROP_READ_TIMEOUT_MSEC")
        if hasattr(cv2, option)  # OpenCV 4.5 and later
        for part in (getattr(cv2, option), OPEN_MILLISECONDS)
    ]

    def opened() -> Any:
        if limits and cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            return cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        return cv2.VideoCapture(url)

    start = _starter(opened, f"cannot open the stream {name}; {remedy}")
    return _live(name, start, name, resize)


def open_pipeline(pipeline: str, *, resize: Resize, loop: bool = False) -> VideoFrames | LiveFrames:
    """A GStreamer pipeline that ends in `appsink`: live, unless it reads files or says how many frames there are.

    Raises:
        SourceError: the pipeline has no `appsink` or does not start.
        MissingDependencyError: OpenCV is not installed, or was built without GStreamer.
    """
    if not re.search(r"\bappsink\b", pipeline):
        raise SourceError("a GStreamer pipeline must end in `! videoconvert ! video/x-raw,format=BGR ! appsink`")
    cv2 = _opencv("a GStreamer pipeline")
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise MissingDependencyError(
            "this OpenCV was built without GStreamer; use the one that comes with JetPack or the distribution "
            "(python3-opencv) instead of the one from the package index"
        )
    remedy = "try it with gst-launch-1.0 first"
    start = _starter(
        lambda: cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), f"the GStreamer pipeline does not start; {remedy}"
    )
    name = "the GStreamer pipeline"
    if _RECORDED.search(pipeline):
        return VideoFrames(name, start, title="gstreamer", resize=resize, loop=loop)
    _refuse_loop(name, loop)
    return _live(name, start, "gstreamer", resize)


def _live(name: str, start: Callable[[], Any], title: str, resize: Resize) -> LiveFrames:
    def frame(name: str, picture: np.ndarray, index: int) -> Frame | Skipped:
        return frame_of(name, picture, index, resize)

    return LiveFrames(Connection(name, start), frame, title)


def _opencv(name: str) -> Any:
    # Its warnings would stand between ours: what is wrong with a source is said by this module.
    for name, level in (("OPENCV_LOG_LEVEL", "SILENT"), ("OPENCV_FFMPEG_LOGLEVEL", "-8")):
        os.environ.setdefault(name, level)
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} needs OpenCV, which cannot be imported ({error}); install it with pip install 'edgetta[serve]'"
        ) from error
    return cv2


def _starter(construct: Callable[[], Any], refusal: str) -> Callable[[], Any]:
    """A function that opens a capture, or raises SourceError with `refusal`."""

    def start() -> Any:
        import cv2

        try:
            capture = construct()
        except cv2.error as error:
            raise SourceError(refusal) from error
        if not capture.isOpened():
            capture.release()
            raise SourceError(refusal)
        return capture

    return start


def _refuse_loop(name: str, loop: bool) -> None:
    if loop:
        raise UsageError(f"{name} is live and has no end after which it could be repeated; leave the repetition out")


def _property(capture: Any, name: str) -> int:
    """A property of the capture as a count; 0 where it is unknown (OpenCV answers with -1, 0, NaN or nonsense)."""
    import cv2

    value = capture.get(getattr(cv2, name))
    return int(value) if 0 < value < 2**53 else 0


def _rgb(picture: np.ndarray) -> np.ndarray:
    """OpenCV's BGR, BGRA or grey, 8 or 16 bits, as RGB uint8 (H, W, 3)."""
    if picture.dtype == np.uint16:
        picture = to_eight_bits(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise UnusableFrame(f"OpenCV delivered {picture.dtype} values of shape {picture.shape}")
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
    if picture.shape[2] not in (3, 4):
        raise UnusableFrame(f"OpenCV delivered {picture.shape[2]} channels")
    return picture[..., 2::-1]
