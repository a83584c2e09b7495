"""Video, cameras and streams: against a stand-in for OpenCV, and against the real one where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgetta.errors import MissingDependencyError, UsageError
from edgetta.sources import SourceError, open_source
from edgetta.sources.live import LiveFrames

SIZE = (6, 8)
needs_opencv = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")


def picture(seed: int, shape: tuple[int, ...] = (*SIZE, 3), dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


class FakeOpenCV(ModuleType):
    """As much of OpenCV as the sources use: `VideoCapture` plays `script`, a list of pictures, None or exceptions."""

    CAP_PROP_FRAME_COUNT, CAP_PROP_BUFFERSIZE, CAP_GSTREAMER = 7, 38, 1800

    def __init__(self, script: list[Any], *, announced: float = 0, gstreamer: bool = True, opens: bool = True) -> None:
        super().__init__("cv2")
        self.script, self.announced, self.opens = script, announced, opens
        self.information = f"  Video I/O:\n    GStreamer:                   {'YES (1.20.3)' if gstreamer else 'NO'}\n"
        self.captures: list[Capture] = []
        self.error = type("error", (Exception,), {})

    def VideoCapture(self, target: object, backend: int | None = None) -> Capture:
        self.captures.append(Capture(self, target, backend))
        return self.captures[-1]

    def getBuildInformation(self) -> str:
        return self.information


class Capture:
    """One opened video."""

    def __init__(self, module: FakeOpenCV, target: object, backend: int | None) -> None:
        self.module, self.target, self.backend = module, target, backend
        self.left = iter(module.script)
        self.released = False
        self.settings: dict[int, float] = {}

    def isOpened(self) -> bool:
        return self.module.opens

    def get(self, which: int) -> float:
        return self.module.announced if which == self.module.CAP_PROP_FRAME_COUNT else 0.0

    def set(self, which: int, value: float) -> bool:
        self.settings[which] = value
        return False

    def read(self) -> tuple[bool, np.ndarray | None]:
        assert not self.released
        found = next(self.left, None)
        if isinstance(found, Exception):
            raise found
        return found is not None, found

    def release(self) -> None:
        self.released = True


@pytest.fixture
def video(tmp_path: Path) -> Path:
    (tmp_path / "x.mp4").write_bytes(b"video")
    return tmp_path / "x.mp4"


def install(monkeypatch: pytest.MonkeyPatch, script: list[Any], **options: Any) -> FakeOpenCV:
    fake = FakeOpenCV(script, **options)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    return fake


def test_video_file(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    pictures = [picture(i) for i in range(3)]
    fake = install(monkeypatch, pictures, announced=3.0)
    source = open_source(video, size=SIZE)
    assert source.length == 3 and "frames of 8 x 6" in source.description
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == ["x.mp4[0]", "x.mp4[1]", "x.mp4[2]"]
        assert [frame.index for frame in frames] == [0, 1, 2]
        for frame, bgr in zip(frames, pictures, strict=True):
            assert np.array_equal(frame.image, bgr[..., ::-1])
            assert frame.image.flags.c_contiguous and frame.image.flags.writeable
        assert source.skipped == []
    assert len(fake.captures) == 2 and all(capture.released for capture in fake.captures)
    assert fake.captures[0].target == str(video)


def test_a_pass_that_was_left_starts_again(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    fake = install(monkeypatch, [picture(i) for i in range(3)])
    source = open_source(video, size=SIZE)
    assert next(iter(source)).index == 0
    assert len(list(source)) == 3
    source.close()
    assert all(capture.released for capture in fake.captures)


def test_repetition(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    install(monkeypatch, [picture(0), picture(1)], announced=2)
    source = open_source(video, size=SIZE, loop=True)
    assert source.length is None
    assert [frame.index for frame in itertools.islice(source, 5)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("announced", [0, -1.0, float("nan"), float("inf"), -9.2e18])
def test_unknown_length(monkeypatch: pytest.MonkeyPatch, video: Path, announced: float) -> None:
    install(monkeypatch, [picture(0)], announced=announced)
    source = open_source(video, size=SIZE)
    assert source.length is None and len(list(source)) == 1 and source.skipped == []


def test_video_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    install(monkeypatch, [picture(0), picture(1)], announced=3)
    source = open_source(video, size=SIZE)
    assert len(list(source)) == 2 and source.skipped == [], "containers miscount by one"
    fake = install(monkeypatch, [picture(0), picture(1)], announced=100)
    fake.script.append(fake.error("broken"))
    source = open_source(video, size=SIZE)
    assert len(list(source)) == 2
    assert [(s.name, s.reason) for s in source.skipped] == [
        ("x.mp4[2...]", "the video ends here; its header announces 100 frames")
    ]


def test_modes_and_sizes(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    grey, deep = picture(0, SIZE), picture(1, (*SIZE, 3), "uint16")
    alpha, large = picture(2, (*SIZE, 4)), picture(3, (60, 80, 3))
    odd = picture(4, (*SIZE, 2))
    install(monkeypatch, [grey, grey[..., None], deep, alpha, large, odd, odd.astype(np.float32)])
    source = open_source(video, size=SIZE)
    frames = list(source)
    assert np.array_equal(frames[0].image, np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(frames[1].image, frames[0].image)
    assert np.array_equal(frames[2].image, np.rint(deep[..., ::-1] / 257).astype(np.uint8))
    assert np.array_equal(frames[3].image, alpha[..., 2::-1])
    assert frames[4].image.shape == (*SIZE, 3)
    assert [s.name for s in source.skipped] == ["x.mp4[5]", "x.mp4[6]"]
    with pytest.raises(SourceError, match=r"x\.mp4\[4\] is 80 x 60 pixels and the model takes 8 x 6"):
        list(open_source(video, size=SIZE, resize=False))


def test_no_video_and_no_frame(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    install(monkeypatch, [], opens=False)
    with pytest.raises(SourceError, match="holds no video that this OpenCV decodes; check that it plays elsewhere"):
        open_source(video, size=SIZE)
    fake = install(monkeypatch, [])
    with pytest.raises(SourceError, match="opens but delivers no frame"):
        open_source(video, size=SIZE)
    assert fake.captures[0].released

    def denied(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SourceError, match="Permission denied"):
        open_source(video, size=SIZE)


def test_an_exception_of_opencv_when_it_opens(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    fake = install(monkeypatch, [])

    def broken(*arguments: object) -> Capture:
        raise fake.error("assertion failed")

    monkeypatch.setattr(fake, "VideoCapture", broken)
    with pytest.raises(SourceError, match="holds no video"):
        open_source(video, size=SIZE)


def test_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [None, picture(0)])
    with open_source("camera:2", size=SIZE) as source:
        assert isinstance(source, LiveFrames) and source.length is None
        assert fake.captures[0].target == 2
        assert fake.captures[0].settings == {fake.CAP_PROP_BUFFERSIZE: 1}
        frame = next(iter(source))
        assert frame.name == "camera:2[0]" and np.array_equal(frame.image, picture(0)[..., ::-1])
    assert fake.captures[0].released
    fake = install(monkeypatch, [None] * 5 + [picture(0)])
    with pytest.raises(SourceError, match="camera:2 opens but delivers no frame"):
        open_source("camera:2", size=SIZE)
    assert fake.captures[0].released


def test_cameras_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], opens=False)
    with pytest.raises(SourceError, match="cannot open camera:0; check that it is connected"):
        open_source("camera:0", size=SIZE)
    for spec in ("camera:", "camera:front", "camera:-1", "camera:99999"):
        with pytest.raises(UsageError, match="write camera:0 for the first one"):
            open_source(spec, size=SIZE)
    with pytest.raises(UsageError, match="camera:0 is live"):
        open_source("camera:0", size=SIZE, loop=True)


def test_stream_never_shows_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "rtsp://me:se@cret@host:554/live?token=secret"
    fake = install(monkeypatch, [picture(0)])
    source = open_source(url, size=SIZE)
    assert fake.captures[0].target == url
    frame = next(iter(source))
    assert frame.name == "rtsp://host:554/live[0]"
    assert "cret" not in source.description
    install(monkeypatch, [], opens=False)
    with pytest.raises(SourceError) as caught:
        open_source(url, size=SIZE)
    assert "cret" not in str(caught.value) and "cannot open the stream rtsp://host:554/live; check" in str(
        caught.value
    )
    with pytest.raises(UsageError) as refused:
        open_source(url, size=SIZE, loop=True)
    assert "cret" not in str(refused.value)


def test_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = "videotestsrc num-buffers=2 ! videoconvert ! video/x-raw,format=BGR ! appsink"
    for spec in (pipeline, f"gstreamer: {pipeline}"):
        fake = install(monkeypatch, [picture(0), picture(1)])
        frames = list(open_source(spec, size=SIZE))
        assert [frame.name for frame in frames] == ["gstreamer[0]", "gstreamer[1]"]
        assert fake.captures[0].target == pipeline and fake.captures[0].backend == fake.CAP_GSTREAMER
    install(monkeypatch, [picture(0)])
    with open_source("v4l2src ! videoconvert ! appsink", size=SIZE) as live:
        assert isinstance(live, LiveFrames) and next(iter(live)).name == "gstreamer[0]"
    with pytest.raises(UsageError, match="is live"):
        open_source("v4l2src ! appsink", size=SIZE, loop=True)
    install(monkeypatch, [], gstreamer=False)
    with pytest.raises(MissingDependencyError, match="without GStreamer; use the one that comes with JetPack"):
        open_source(pipeline, size=SIZE)
    install(monkeypatch, [], opens=False)
    with pytest.raises(SourceError, match=r"does not start; try it with gst-launch-1\.0"):
        open_source(pipeline, size=SIZE)
    with pytest.raises(SourceError, match=r"must end in .* appsink"):
        open_source("videotestsrc ! fakesink", size=SIZE)


@pytest.mark.parametrize("spec", ["x.mp4", "camera:0", "rtsp://host/live", "a ! appsink"])
def test_without_opencv(monkeypatch: pytest.MonkeyPatch, video: Path, spec: str) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.chdir(video.parent)
    with pytest.raises(MissingDependencyError, match=r"needs OpenCV, .* pip install 'edgetta\[serve\]'") as caught:
        open_source(spec, size=SIZE)
    assert caught.value.exit_code == 3


@needs_opencv
def test_real_video(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write MJPEG")
    for level in range(0, 200, 10):
        writer.write(np.full((48, 64, 3), (0, level // 2, level), np.uint8))
    writer.release()
    source = open_source(path, size=(48, 64), resize=False)
    frames = list(source)
    assert source.length == len(frames) == 20 and source.skipped == []
    for index, frame in enumerate(frames):
        red, green, blue = frame.image.reshape(-1, 3).mean(axis=0)
        assert abs(red - 10 * index) < 6 and abs(green - 5 * index) < 6 and blue < 6
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"movi") + (len(whole) - whole.index(b"movi")) // 2])
    source = open_source(path, size=SIZE)
    delivered = len(list(source))
    assert 0 < delivered < 20
    if source.length == 20:
        assert source.skipped[0].reason == "the video ends here; its header announces 20 frames"
    path.write_bytes(b"I am a letter" * 100)
    with pytest.raises(SourceError, match="holds no video"):
        open_source(path, size=SIZE)


@needs_opencv
def test_real_opencv_and_an_address_where_nobody_answers() -> None:
    with pytest.raises(SourceError, match="cannot open the stream rtsp://127"):
        open_source("rtsp://me:secret@127.0.0.1:9/live", size=SIZE)


@needs_opencv
def test_real_opencv_and_no_camera() -> None:
    with pytest.raises(SourceError, match="cannot open camera:9999"):
        open_source("camera:9999", size=SIZE)


@needs_opencv
def test_opencvs_own_warnings_do_not_stand_between_ours(tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(b"no video" * 100)
    program = (
        "import sys\n"
        "from edgetta.sources import SourceError, open_source\n"
        "for source in sys.argv[1:]:\n"
        "    try:\n"
        "        open_source(source, size=(8, 8))\n"
        "    except SourceError as error:\n"
        "        print(error)\n"
    )
    arguments = [sys.executable, "-c", program, "camera:77", str(tmp_path / "none.mp4")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 2
