"""Engines on disk: names, descriptions, and two processes that build at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edgetta.engines.tensorrt.build import BuildOptions
from edgetta.engines.tensorrt.cache import EngineCache, EngineKey, default_root
from edgetta.engines.tensorrt.library import Target
from edgetta.storage import StorageError

TARGET = Target("tensorrt", "10.3.0", "NVIDIA Jetson Orin Nano", (8, 7))
KEY = EngineKey("backward", "ab" * 32, TARGET, BuildOptions("fp16", (1, 32, 64)))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", "wrn40_2-12345678")


def test_what_is_stored_is_found(cache: EngineCache) -> None:
    assert cache.find(KEY).reason == "not built yet"
    path = cache.store(KEY, b"engine", {"seconds": 1.5})
    assert path.name == "backward.fp16.b1-32-64.trt10.3.0.jetson-orin-nano-sm87.engine"
    found = cache.find(KEY)
    assert (found.data, found.facts) == (b"engine", {"seconds": 1.5})
    record = json.loads(path.with_name(f"{path.name}.json").read_text())
    for name in ("onnx_sha256", "tensorrt", "gpu", "capability", "precision", "batch", "workspace", "level", "tf32"):
        assert name in record["key"], "people can read what an engine depends on"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": replace(TARGET, version="10.7.0")}, "TensorRT was 10.3.0 and is 10.7.0"),
        (
            {"target": replace(TARGET, gpu="NVIDIA Thor", capability=(11, 0))},
            "the GPU was NVIDIA Jetson Orin Nano and",
        ),
        ({"target": replace(TARGET, package="tensorrt_rtx")}, "the package was tensorrt and is tensorrt_rtx"),
        ({"onnx_sha256": "cd" * 32}, "another export of the bundle"),
        ({"options": replace(KEY.options, precision="fp32")}, "the precision was fp16 and is fp32"),
        ({"options": replace(KEY.options, batch=(1, 8, 8))}, "the batch range was 1,32,64 and is 1,8,8"),
        ({"options": replace(KEY.options, workspace=1 << 28)}, "the workspace was automatic and is 268435456"),
        ({"options": replace(KEY.options, tf32=True)}, "the use of TF32 was False and is True"),
    ],
)
def test_everything_that_an_engine_depends_on_is_compared(
    cache: EngineCache, change: dict[str, object], words: str
) -> None:
    cache.store(KEY, b"engine", {})
    other = replace(KEY, **change)  # type: ignore[arg-type]
    found = cache.find(other)
    assert found.data is None and words in found.reason
    assert cache.find(KEY).data == b"engine"


def test_engines_of_other_programs_say_nothing(cache: EngineCache) -> None:
    cache.store(KEY, b"engine", {})
    assert cache.find(replace(KEY, program="forward")).reason == "not built yet"
    assert cache.find(replace(KEY, program="back")).reason == "not built yet"


def test_a_refused_engine_is_remembered(cache: EngineCache) -> None:
    path = cache.store(KEY, b"engine", {})
    cache.refuse(KEY, "its 'y' is not finite", {"seconds": 1.0})
    assert not path.exists()
    assert cache.find(KEY).refused == "its 'y' is not finite"
    cache.store(KEY, b"engine", {})
    assert cache.find(KEY).data == b"engine"
    cache.forget(KEY)
    assert cache.find(KEY).reason == "not built yet" and not list(cache.folder.iterdir())


def test_a_crash_between_engine_and_description_is_noticed(cache: EngineCache) -> None:
    """The engine is written first: an old description then belongs to another engine."""
    path = cache.store(KEY, b"engine", {})
    path.write_bytes(b"newer")
    assert cache.find(KEY).reason == "the engine file is damaged (its SHA-256 differs)"


def test_only_one_builds_at_a_time(cache: EngineCache) -> None:
    order: list[str] = []
    inside, waiting = threading.Event(), threading.Event()

    def first() -> None:
        with cache.building():
            order.append("first begins")
            inside.set()
            assert waiting.wait(30)
            order.append("first ends")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    with EngineCache(cache.root, "another").building(waiting.set):
        order.append("second begins")
    thread.join(30)
    assert order == ["first begins", "first ends", "second begins"]


BUILDER = """
import sys
from pathlib import Path
from edgetta.engines.tensorrt.cache import EngineCache
from tests.engines.tensorrt.test_cache import KEY

cache = EngineCache(Path(sys.argv[1]), "wrn40_2-12345678")
print("ready", flush=True)
sys.stdin.readline()
with cache.building():
    if cache.find(KEY).data is None:
        cache.store(KEY, b"engine" * 100000, {})
        print("built", flush=True)
    else:
        print("found", flush=True)
"""


def test_of_two_processes_one_builds_and_one_finds(cache: EngineCache) -> None:
    command = [sys.executable, "-c", BUILDER, str(cache.root)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["built", "found"]
    assert cache.find(KEY).data == b"engine" * 100000


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edgetta" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not allowed by the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "edgetta" / "engines"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        EngineCache(tmp_path / "file" / "engines", "b")
