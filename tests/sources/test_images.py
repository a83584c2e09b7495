"""Image files as frames: modes, orientation, sizes, and every kind of file that is no usable picture."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from edgetta.errors import EdgettaError
from edgetta.sources import Frame, SourceError, open_source
from edgetta.sources.images import MAX_PIXELS

SIZE = (6, 8)


def picture(seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)  # type: ignore[arg-type]
    return path


def frames(spec: Path | str, **options: object) -> list[Frame]:
    return list(open_source(spec, size=SIZE, **options))  # type: ignore[arg-type]


def only_frame(path: Path) -> np.ndarray:
    (frame,) = frames(path)
    assert frame.image.shape == (*SIZE, 3) and frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous and frame.image.flags.writeable
    return frame.image


def reason_for(path: Path) -> str:
    """The reason for which the file, in a folder of its own, is skipped, while its neighbour is delivered."""
    save(path.parent / "zz_good.png", picture())
    source = open_source(path.parent, size=SIZE)
    delivered = [frame.name for frame in source]
    assert delivered == ["zz_good.png"] and source.length == 2
    assert source.skipped_count == 1
    assert source.skipped[0].name == path.name
    return source.skipped[0].reason


def test_folder_is_sorted_recursive_and_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b.png", "a/2.png", "a/10.png", "a.png", "C.PNG", ".hidden.png", ".git/x.png"):
        save(tmp_path / name, picture(len(name)))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path, size=SIZE)
    found = list(source)
    assert [frame.name for frame in found] == ["C.PNG", "a/10.png", "a/2.png", "a.png", "b.png"]
    assert [frame.index for frame in found] == list(range(5))
    assert source.length == 5 and source.skipped == [] and source.labels is None
    assert "5 images" in source.description
    assert np.array_equal(found[-1].image, picture(len("b.png")))
    assert [frame.name for frame in source] == [frame.name for frame in found]


def test_links_to_files_are_followed_and_to_folders_not(tmp_path: Path) -> None:
    save(tmp_path / "outside" / "x.png", picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to("../outside/x.png")
    (tmp_path / "in" / "round").symlink_to("..")
    assert [frame.name for frame in frames(tmp_path / "in")] == ["link.png"]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".webp"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    options = {"lossless": True} if suffix == ".webp" else {}
    assert np.array_equal(only_frame(save(tmp_path / f"x{suffix}", picture(), **options)), picture())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x{suffix}", picture(), quality=95, format="JPEG")
    with Image.open(path) as decoded:
        assert np.array_equal(only_frame(path), np.asarray(decoded))


def test_first_picture_of_a_multi_picture_jpeg(tmp_path: Path) -> None:
    second = Image.fromarray(picture(1))
    Image.fromarray(picture()).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "x.jpg") as decoded:
        assert np.array_equal(only_frame(tmp_path / "x.jpg"), np.asarray(decoded))


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = picture(channels=1)
    assert np.array_equal(only_frame(save(tmp_path / "x.png", grey)), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped(tmp_path: Path, channels: int) -> None:
    values = picture(channels=channels)
    expected = values[..., :3] if channels == 4 else np.repeat(values[..., :1], 3, axis=2)
    assert np.array_equal(only_frame(save(tmp_path / "x.png", values)), expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_palette(tmp_path: Path, transparency: int | bytes | None, recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(picture()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "x.png", **options)  # type: ignore[arg-type]
    assert np.array_equal(only_frame(tmp_path / "x.png"), expected)
    assert not recwarn.list


def test_black_and_white(tmp_path: Path) -> None:
    bits = picture(channels=1) > 127
    Image.fromarray(bits).save(tmp_path / "x.png")
    assert np.array_equal(only_frame(tmp_path / "x.png"), np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".pgm"])
def test_sixteen_bits_are_scaled_over_the_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    values[0, :4] = (0, 128, 129, 65535)
    if suffix == ".png":
        Image.fromarray(values).save(tmp_path / "x.png")
    else:
        header = b"P5\n%d %d\n65535\n" % (SIZE[1], SIZE[0])
        (tmp_path / "x.pgm").write_bytes(header + values.astype(">u2").tobytes())
    expected = np.rint(values / 257).astype(np.uint8)
    result = only_frame(tmp_path / f"x{suffix}")
    assert np.array_equal(result, np.repeat(expected[..., None], 3, axis=2))
    assert result[0, :4, 0].tolist() == [0, 0, 1, 255]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (SIZE[1], SIZE[0]), (255, 0, 0, 0))
    image.save(tmp_path / "x.jpg", quality=95)
    red, green, blue = only_frame(tmp_path / "x.jpg").reshape(-1, 3).mean(axis=0)
    assert red < 40 and green > 200 and blue > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    size = SIZE if orientation <= 4 else (SIZE[1], SIZE[0])
    image = Image.fromarray(picture(size=size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(only_frame(tmp_path / "x.png"), expected)


def test_damaged_exif_is_no_reason_to_skip(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", picture(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    only_frame(tmp_path / "x.jpg")


def test_other_sizes_are_resized_with_antialiasing(tmp_path: Path) -> None:
    board = np.indices((60, 80)).sum(axis=0) % 2 * np.uint8(255)
    save(tmp_path / "board.png", board.astype(np.uint8))
    large = picture(1, (60, 80))
    save(tmp_path / "large.png", large)
    save(tmp_path / "small.png", picture(2, (3, 4)))
    board_frame, large_frame, small_frame = frames(tmp_path)
    assert np.abs(board_frame.image[1:-1, 1:-1].astype(int) - 127).max() <= 2
    expected = Image.fromarray(large).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
    assert np.array_equal(large_frame.image, np.asarray(expected))
    assert small_frame.image.shape == (*SIZE, 3)


def test_other_sizes_can_be_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture(size=(60, 80)))
    source = iter(open_source(tmp_path, size=SIZE, resize=False))
    assert next(source).name == "a.png"
    with pytest.raises(SourceError, match=r"b\.png is 80 x 60 pixels and the model takes 8 x 6; resize .* or allow"):
        next(source)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".ppm", ".webp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    path = save(tmp_path / f"x{suffix}", picture(size=(60, 80)))
    whole = path.read_bytes()
    for kept in (len(whole) * 2 // 3, 20, 3):
        path.write_bytes(whole[:kept])
        assert reason_for(path)


def test_renamed_and_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_text("I am a letter, not a picture.\n" * 100)
    assert "not an image" in reason_for(tmp_path / "a" / "x.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").touch()
    assert reason_for(tmp_path / "b" / "x.png") == "the file is empty"


def test_a_picture_under_the_suffix_of_another_format_is_read(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", picture(), format="PNG")
    assert np.array_equal(only_frame(tmp_path / "x.jpg"), picture())


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="EPS")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    assert "not an image" in reason_for(tmp_path / "x.png")


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces a picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bomb(tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "x.png").write_bytes(png_of(side, side))
    assert "decompression bomb" in reason_for(tmp_path / "x.png")
    assert not recwarn.list


def test_the_limit_holds_where_pillows_own_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "x.png").write_bytes(png_of(100_000, 100_000))
    assert "decompression bomb" in reason_for(tmp_path / "x.png")


def test_huge_file_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "x.webp").open("wb") as file:
        file.truncate(2**33)  # sparse: takes no space
    assert "not opened" in reason_for(tmp_path / "x.webp")


def test_random_damage_never_raises(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    formats = [(".png", {}), (".jpg", {"quality": 80}), (".bmp", {}), (".ppm", {})]
    if features.check("webp"):
        formats.append((".webp", {}))
    count = 0
    for suffix, options in formats:
        whole = np.frombuffer(
            save(tmp_path / f"whole{suffix}", picture(size=(20, 30)), **options).read_bytes(), np.uint8
        )
        count += 1
        for trial in range(40):
            damaged = whole.copy()
            places = generator.integers(0, len(whole) if trial % 2 else min(60, len(whole)), 4)
            damaged[places] = generator.integers(0, 256, 4)
            (tmp_path / f"{trial:02d}{suffix}").write_bytes(damaged.tobytes())
            count += 1
    source = open_source(tmp_path, size=SIZE)
    delivered = sum(1 for _ in source)
    assert source.length == count and delivered + source.skipped_count == count
    assert source.skipped_count > 20 and delivered > 20
    assert all(skipped.reason and skipped.name for skipped in source.skipped)


def test_file_that_vanishes_and_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "secret/c.png"):
        save(tmp_path / name, picture())
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    source = open_source(tmp_path, size=SIZE)
    (tmp_path / "a.png").unlink()
    assert [frame.name for frame in source] == ["b.png"]
    assert [(skipped.name, skipped.reason) for skipped in source.skipped] == [
        ("secret/", "folder cannot be read: Permission denied"),
        ("a.png", "the file has gone since the source was opened"),
    ]
    with pytest.raises(SourceError, match=r"cannot read the folder .*secret: Permission denied"):
        open_source(tmp_path / "secret", size=SIZE)


def test_single_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x.png", picture())
    assert [frame.name for frame in frames(tmp_path / "x.png")] == ["x.png"]
    (tmp_path / "y.png").write_bytes(b"nothing")
    source = open_source(tmp_path / "y.png", size=SIZE)
    assert list(source) == [] and source.skipped_count == 1

    def denied(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SourceError, match="Permission denied; check the file"):
        open_source(tmp_path / "x.png", size=SIZE)


def test_pattern(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(tmp_path / name, picture())
    (tmp_path / "a" / "1.txt").touch()
    assert [Path(frame.name).name for frame in frames(f"{tmp_path}/a/*")] == ["1.png", "2.png"]
    assert len(frames(f"{tmp_path}/**/1.png")) == 2
    assert len(frames(f"{tmp_path}/[ab]/?.png")) == 3
    with pytest.raises(SourceError, match="matches nothing"):
        open_source(f"{tmp_path}/c*/*.png", size=SIZE)
    with pytest.raises(SourceError, match=r"matches no images \(1 other file\)"):
        open_source(f"{tmp_path}/a/*.txt", size=SIZE)


def test_pictures_of_other_kinds_are_skipped_and_named(tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture())
    save(tmp_path / "2.tif", picture())
    save(tmp_path / "3.GIF", picture())
    for spec in (tmp_path, f"{tmp_path}/*"):
        source = open_source(spec, size=SIZE)
        assert [Path(frame.name).name for frame in source] == ["1.png"] and source.length == 3
        assert [Path(skipped.name).name for skipped in source.skipped] == ["2.tif", "3.GIF"]
        assert all("of a kind that is not read (JPEG, PNG," in skipped.reason for skipped in source.skipped)
    (tmp_path / "1.png").unlink()
    for spec in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(SourceError, match=r"no images \(2 other files\)"):
            open_source(spec, size=SIZE)


def test_a_name_with_brackets_is_itself_before_it_is_a_pattern(tmp_path: Path) -> None:
    save(tmp_path / "frame[1].png", picture())
    assert [frame.name for frame in frames(tmp_path / "frame[1].png")] == ["frame[1].png"]


def test_empty_folder_says_what_it_holds_instead(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no images; put files that end in \.jpg") as caught:
        open_source(tmp_path, size=SIZE)
    assert isinstance(caught.value, EdgettaError)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"holds no images \(1 other file\)"):
        open_source(tmp_path, size=SIZE)
    np.save(tmp_path / "digits.npy", np.zeros((2, 4, 4)))
    with pytest.raises(SourceError, match=r"but the array .*digits\.npy \(name that file itself\)"):
        open_source(tmp_path, size=SIZE)


def test_names_are_printable(tmp_path: Path) -> None:
    save(tmp_path / "line\nbreak\x1b[31m.png", picture())
    strange = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        Path(os.fsdecode(strange)).write_bytes((tmp_path / "line\nbreak\x1b[31m.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    names = [frame.name for frame in frames(tmp_path)]
    assert names == ["line\\nbreak\\x1b[31m.png", "\\udcff\\udcfe.png"]
    assert all(name.isprintable() for name in names)


def test_links_that_lead_nowhere_are_skipped_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "gone.txt")
    with open_source(tmp_path, size=(4, 4)) as source:
        assert [frame.name for frame in source] == ["a.png"]
        assert [(s.name, s.reason) for s in source.skipped] == [("b.png", "a link to a file that is not there")]
