"""Array files as frames: shapes, value ranges, damaged rows, and memory that does not grow with the file."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetta.sources import Frame, SourceError, batches, open_source
from edgetta.sources.arrays import SAMPLE_ROWS

COUNT, HEIGHT, WIDTH = 5, 6, 8
SIZE = (HEIGHT, WIDTH)


def images(seed: int = 0, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def frames(path: Path | str, **options: object) -> list[Frame]:
    return list(open_source(path, size=SIZE, **options))  # type: ignore[arg-type]


def stacked(path: Path | str) -> np.ndarray:
    result = np.stack([frame.image for frame in frames(path)])
    assert result.shape[1:] == (*SIZE, 3)
    return result


def stored(tmp_path: Path, array: np.ndarray, kind: str) -> Path:
    if kind == "npy":
        np.save(tmp_path / "x.npy", array)
        return tmp_path / "x.npy"
    save = np.savez if kind == "npz" else np.savez_compressed
    save(tmp_path / "x.npz", images=array)
    return tmp_path / "x.npz"


KINDS = pytest.mark.parametrize("kind", ["npy", "npz", "npz compressed"])


@KINDS
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "NHW1", "N1HW", "NHW4", "N4HW"])
def test_shapes(tmp_path: Path, kind: str, layout: str) -> None:
    rgb = images()
    grey = np.repeat(rgb[..., :1], 3, axis=-1)
    rgba = np.concatenate([rgb, rgb[..., :1]], axis=-1)
    array, expected = {
        "NHWC": (rgb, rgb),
        "NCHW": (np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)), rgb),
        "NHW": (np.ascontiguousarray(rgb[..., 0]), grey),
        "NHW1": (np.ascontiguousarray(rgb[..., :1]), grey),
        "N1HW": (np.ascontiguousarray(rgb[:, None, ..., 0]), grey),
        "NHW4": (rgba, rgb),
        "N4HW": (np.ascontiguousarray(rgba.transpose(0, 3, 1, 2)), rgb),
    }[layout]
    path = stored(tmp_path, array, kind)
    result = frames(path)
    assert np.array_equal(np.stack([frame.image for frame in result]), expected)
    assert [frame.name for frame in result] == [f"{path.name}[{i}]" for i in range(COUNT)]
    assert [frame.index for frame in result] == list(range(COUNT))
    assert all(f.image.dtype == np.uint8 and f.image.flags.c_contiguous and f.image.flags.writeable for f in result)


def test_one_image(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images()[0])
    (frame,) = frames(tmp_path / "x.npy")
    assert np.array_equal(frame.image, images()[0])
    np.save(tmp_path / "x.npy", np.asfortranarray(images()[0]))
    assert np.array_equal(stacked(tmp_path / "x.npy")[0], images()[0])


def test_an_array_stored_by_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(images()))
    assert np.array_equal(stacked(tmp_path / "x.npy"), images())
    np.savez(tmp_path / "x.npz", images=np.asfortranarray(images()))
    with pytest.raises(SourceError, match="ascontiguousarray"):
        open_source(tmp_path / "x.npz", size=SIZE)


@KINDS
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_floats_in_the_unit_interval(tmp_path: Path, kind: str, dtype: str) -> None:
    values = (images() / 255).astype(dtype)
    result = stacked(stored(tmp_path, values, kind))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, values.astype(np.float32), atol=1e-7)
    assert "in [0, 1]" in open_source(stored(tmp_path, values, kind), size=SIZE).description


@KINDS
def test_floats_up_to_255(tmp_path: Path, kind: str) -> None:
    path = stored(tmp_path, images().astype(np.float32), kind)
    np.testing.assert_allclose(stacked(path), images() / np.float32(255), atol=1e-6)
    assert "in [0, 255], divided by 255" in open_source(path, size=SIZE).description


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int64", "uint32"])
def test_integers_up_to_255(tmp_path: Path, dtype: str) -> None:
    result = stacked(stored(tmp_path, images().astype(dtype), "npy"))
    assert result.dtype == np.uint8 and np.array_equal(result, images())


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "int32"])
def test_integers_up_to_65535(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (COUNT, *SIZE, 3))
    path = stored(tmp_path, values.astype(dtype), "npy")
    assert np.array_equal(stacked(path), np.rint(values / 257).astype(np.uint8))
    assert f"(largest seen {values.max()})" in open_source(path, size=SIZE).description


def test_the_range_is_told_from_rows_all_over_the_array(tmp_path: Path) -> None:
    values = np.zeros((4 * SAMPLE_ROWS, 2, 2), np.float32)
    values[3 * SAMPLE_ROWS :] = 200
    np.save(tmp_path / "x.npy", values)
    assert "in [0, 255]" in open_source(tmp_path / "x.npy", size=(2, 2)).description


@pytest.mark.parametrize(
    ("low", "high", "match"),
    [(-2.1, 2.6, "undo the normalisation"), (0.0, 1.5, "scale the values"), (0.0, 4000.0, "scale the values")],
)
def test_floats_in_no_known_range(tmp_path: Path, low: float, high: float, match: str) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(low, high, (COUNT, *SIZE, 3)))
    with pytest.raises(SourceError, match=rf"neither in \[0, 1\] nor in \[0, 255\]; {match}"):
        open_source(tmp_path / "x.npy", size=SIZE)


def test_integers_in_no_known_range(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((COUNT, *SIZE), -1))
    with pytest.raises(SourceError, match="integers from -1 to -1"):
        open_source(tmp_path / "x.npy", size=SIZE)


@KINDS
def test_rows_with_nan_or_infinity_are_skipped(tmp_path: Path, kind: str) -> None:
    values = (images() / 255).astype(np.float32)
    values[0, 0, 0, 0] = np.nan
    values[2, 1, 1] = np.inf
    values[3, 0, 0, 1], values[3, 0, 0, 2] = np.nan, -np.inf
    source = open_source(stored(tmp_path, values, kind), size=SIZE)
    delivered = list(source)
    assert [frame.index for frame in delivered] == [1, 4]
    np.testing.assert_array_equal(delivered[0].image, values[1])
    assert source.length == COUNT and source.skipped_count == 3
    assert [(Path(s.name).name.split("[")[1], s.reason) for s in source.skipped] == [
        ("0]", "NaN in 1 of 144 values"),
        ("2]", "infinity in 3 of 144 values"),
        ("3]", "NaN and infinity in 2 of 144 values"),
    ]


def test_nothing_but_nan(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((COUNT, *SIZE), np.nan))
    source = open_source(tmp_path / "x.npy", size=SIZE)
    assert list(source) == [] and source.skipped_count == COUNT


def test_a_row_that_contradicts_the_range_is_skipped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3 * SAMPLE_ROWS, 2, 2), dtype=np.float32)
    values[1] = 100  # every third row is looked at: this one is not
    np.save(tmp_path / "x.npy", values)
    source = open_source(tmp_path / "x.npy", size=(2, 2))
    assert sum(1 for _ in source) == len(values) - 1
    assert source.skipped[0].name == "x.npy[1]"
    assert source.skipped[0].reason == "values from 100 to 100, the array was taken to be in [0, 1]"


def test_rounding_beyond_the_ends_is_clipped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.linspace(-1e-4, 1 + 1e-4, COUNT * HEIGHT * WIDTH).reshape(COUNT, *SIZE))
    result = stacked(tmp_path / "x.npy")
    assert len(result) == COUNT and result.min() == 0 and result.max() == 1


def test_resizing(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", large)
    expected = Image.fromarray(large[1]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    eight_bits = stacked(tmp_path / "x.npy")
    assert np.array_equal(eight_bits[1], np.asarray(expected))
    np.save(tmp_path / "x.npy", large / 255)
    floats = stacked(tmp_path / "x.npy")
    assert floats.dtype == np.float32
    assert np.abs(floats * 255 - eight_bits).max() <= 0.51 * 2
    with pytest.raises(SourceError, match=r"every frame of .*x\.npy is 80 x 60 pixels and the model takes 8 x 6"):
        open_source(tmp_path / "x.npy", size=SIZE, resize=False)


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, labels=np.arange(COUNT), clean=images(1), images=images(2), x=images(3))
    assert np.array_equal(stacked(path), images(2))
    assert np.array_equal(stacked(f"{path}:clean"), images(1))
    assert frames(f"{path}:clean")[2].name == "x.npz:clean[2]"
    with pytest.raises(SourceError, match=r"holds no array 'fog'; it holds labels, clean, images, x"):
        open_source(f"{path}:fog", size=SIZE)
    np.savez(path, labels=np.arange(COUNT), clean=images(1), x=images(3))
    assert np.array_equal(stacked(path), images(3))
    np.savez(
        path, labels=np.arange(COUNT), rows=np.arange(9), names=np.array(["a"], object), clean=images(1), fog=images()
    )
    assert np.array_equal(stacked(path), images(1))
    np.savez(path, labels=np.arange(COUNT), rows=np.arange(9), mean=np.zeros(3))
    with pytest.raises(SourceError, match=r"x\.npz:rows has shape \(9,\); images are"):
        open_source(path, size=SIZE)
    np.savez(path, labels=np.arange(COUNT))
    with pytest.raises(SourceError, match=r"holds no array of images; it holds labels"):
        open_source(path, size=SIZE)


@pytest.mark.parametrize("name", ["labels", "y"])
def test_labels(tmp_path: Path, name: str) -> None:
    arrays = {"images": images(), name: np.array([[3], [1], [4], [1], [5]], np.uint8)}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    source = open_source(tmp_path / "x.npz", size=SIZE)
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [3, 1, 4, 1, 5]
    np.save(tmp_path / "x.npy", images())
    assert open_source(tmp_path / "x.npy", size=SIZE).labels is None


@pytest.mark.parametrize("labels", [np.arange(COUNT - 1), np.zeros(COUNT), np.zeros((COUNT, 2), int)])
def test_wrong_labels(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", images=images(), labels=labels)
    with pytest.raises(SourceError, match="labels are 5 integers, one per image"):
        open_source(tmp_path / "x.npz", size=SIZE)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((4,), "has shape"),
        ((4, 6), "has shape"),
        ((4, 6, 8, 2), r"images are \(N, H, W, 3\)"),
        ((1, 4, 6, 8, 3), "reshape it"),
        ((0, 6, 8, 3), "no frames"),
        ((4, 0, 8, 3), "without pixels"),
    ],
)
def test_wrong_shapes(tmp_path: Path, shape: tuple[int, ...], match: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(SourceError, match=match):
        open_source(tmp_path / "x.npy", size=SIZE)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "U3", "S2", "M8[s]", [("r", "u1")]])
def test_wrong_types(tmp_path: Path, dtype: object) -> None:
    np.save(tmp_path / "x.npy", np.zeros((COUNT, *SIZE, 3), dtype))  # type: ignore[call-overload]
    with pytest.raises(SourceError, match="images are uint8, uint16 or floating point"):
        open_source(tmp_path / "x.npy", size=SIZE)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap-sprung"),)  # type: ignore[return-value]


@KINDS
def test_pickled_objects_are_never_loaded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = stored(tmp_path, np.array([Trap()] * COUNT, object), kind)
    with pytest.raises(SourceError, match="pickled objects, which are never loaded"):
        open_source(path, size=SIZE)
    np.savez(tmp_path / "y.npz", images=images(), labels=np.array([Trap()] * COUNT, object))
    with pytest.raises(SourceError, match="labels holds pickled objects"):
        open_source(tmp_path / "y.npz", size=SIZE)
    assert not (tmp_path / "trap-sprung").exists()


def test_truncated_and_renamed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images())
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"cut short: 719 bytes of values where its header announces 720; copy it"):
        open_source(tmp_path / "x.npy", size=SIZE)
    for content in (b"", whole[:4], whole[:40], b"GIF89a" + whole, b"I am a letter"):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(SourceError, match=r"is no \.npy array"):
            open_source(tmp_path / "x.npy", size=SIZE)
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(SourceError, match=r"is no \.npz archive or is damaged"):
            open_source(tmp_path / "x.npz", size=SIZE)


def test_a_header_that_announces_the_impossible(tmp_path: Path) -> None:
    for shape in ("(1000000000000, 6, 8, 3)", "(5, 6, 8, -3)"):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        with (tmp_path / "x.npy").open("wb") as file:
            file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(720))
        with pytest.raises(SourceError, match=r"cut short|impossible shape"):
            open_source(tmp_path / "x.npy", size=SIZE)


def test_one_enormous_frame(tmp_path: Path) -> None:
    sparse_array(tmp_path / "x.npy", (1, 20_000, 20_000, 3))
    with pytest.raises(SourceError, match=r"one frame of .* is 20000 x 20000"):
        open_source(tmp_path / "x.npy", size=SIZE)
    sparse_array(tmp_path / "x.npy", (1, 8_000, 8_000, 3), "<f8")
    with pytest.raises(SourceError, match="store it as uint8"):
        open_source(tmp_path / "x.npy", size=SIZE)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(count=2000))
    source = open_source(tmp_path / "x.npy", size=SIZE)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(128 + 144 * 10 + 1)
    assert sum(1 for _ in source) == 10
    assert source.skipped_count == 1990
    assert source.skipped[0].name == "x.npy[10]" and "the file ends in row 10" in source.skipped[0].reason
    (tmp_path / "x.npy").unlink()
    assert list(source) == [] and source.skipped_count == 2000 and len(source.skipped) == 1000


@pytest.mark.parametrize("kind", ["npz", "npz compressed"])
def test_damage_inside_an_archive(tmp_path: Path, kind: str) -> None:
    path = stored(tmp_path, images(count=400), kind)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    path.write_bytes(whole)
    source = open_source(path, size=SIZE)
    delivered = [frame.index for frame in source]
    assert delivered == list(range(len(delivered))) and len(delivered) < 400
    assert len(delivered) + source.skipped_count == 400
    assert "cannot be read" in source.skipped[0].reason


def test_encrypted_and_odd_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images())
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[6] |= 1
    whole[whole.index(b"PK\x01\x02") + 8] |= 1  # the flag "encrypted", in both headers
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(tmp_path / "x.npz", size=SIZE)
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(SourceError, match="holds no array of images; it holds nothing"):
        open_source(tmp_path / "y.npz", size=SIZE)


def sparse_array(path: Path, shape: tuple[int, ...], dtype: str = "|u1") -> None:
    """A file of zeros that takes no space on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def peak_of_a_pass(path: Path, size: tuple[int, int], batch: int) -> tuple[int, int]:
    """Frames delivered, and the largest memory in bytes that a pass took."""
    tracemalloc.start()
    try:
        count = sum(len(frames) for frames in batches(open_source(path, size=size), batch))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_holds_a_batch_and_not_the_file(tmp_path: Path) -> None:
    frame = 128 * 128 * 3
    sparse_array(tmp_path / "x.npy", (2048, 128, 128, 3))
    assert (tmp_path / "x.npy").stat().st_size > 100e6
    count, peak = peak_of_a_pass(tmp_path / "x.npy", (128, 128), 16)
    assert count == 2048 and 16 * frame <= peak < (2 * 16 + 8) * frame
    sparse_array(tmp_path / "x.npy", (1024, 128, 128, 3), "<f4")
    count, peak = peak_of_a_pass(tmp_path / "x.npy", (128, 128), 16)
    assert count == 1024 and peak < (2 * 16 + 8) * 4 * frame


def test_memory_of_a_compressed_archive(tmp_path: Path) -> None:
    frame = 64 * 64 * 3
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((4000, 64, 64, 3), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 1e6
    count, peak = peak_of_a_pass(tmp_path / "x.npz", (64, 64), 16)
    assert count == 4000 and peak < 150 * frame  # of which the decompressor holds a fixed part


def test_a_pass_can_be_left_and_started_again(tmp_path: Path) -> None:
    for kind in ("npy", "npz compressed"):
        source = open_source(stored(tmp_path, images(), kind), size=SIZE)
        assert next(iter(source)).index == 0
        assert [frame.index for frame in source] == list(range(COUNT))
        first, second = iter(source), iter(source)
        assert np.array_equal(next(first).image, next(second).image)
