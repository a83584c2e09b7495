"""Frames from image files: a folder, a pattern or one file, whatever mode and orientation the pictures have.

Everything becomes 8-bit RGB as Pillow's `convert("RGB")` does it, because that is what training loaders do:
transparency is dropped, not composited; grey is repeated three times; 16 bits are scaled to 8 over 0 to 65535.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetta.printable import printable
from edgetta.sources.resize import Resize
from edgetta.sources.source import ARRAY_SUFFIXES, IMAGE_SUFFIXES, Frame, FrameSource, Skipped, SourceError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded (256 MiB as RGB, Pillow's own warning mark): beyond it lie decompression bombs."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest image file that is opened; some decoders read a file whole."""

OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng")
"""Pictures of kinds that are not read. Beside images they are frames that are skipped and named, not left out."""

# By content, not by name, and no others: further formats of Pillow start programs (EPS) or hold no photograph.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
_ORIENTATION = 0x0112


class UnusableFrame(Exception):
    """A picture that will be skipped; the message is the reason."""


class ImageFiles(FrameSource):
    """Frames from a list of files that was fixed when the source was opened.

    Args:
        files: (name, path) in the order of delivery.
        unreadable: what could not even be listed; counted as skipped in every pass.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        resize: Resize,
        loop: bool,
        unreadable: Sequence[Skipped] = (),
    ) -> None:
        count = f"{len(files):,} image{'s' if len(files) != 1 else ''}"
        super().__init__(name, description=f"{count} in {name}", length=len(files), loop=loop)
        self._files = files
        self._resize = resize
        self._unreadable = unreadable

    def subset(self, numbers: Sequence[int]) -> ImageFiles:
        """The files with these numbers as a source of their own: a sample that decodes nothing else."""
        files = [self._files[number] for number in numbers]
        return ImageFiles(self.name, files, resize=self._resize, loop=self._loop)

    def read(self) -> Iterator[Frame | Skipped]:
        yield from self._unreadable
        for index, (name, path) in enumerate(self._files):
            try:
                picture = load(path)
            except UnusableFrame as reason:
                yield Skipped(name, str(reason))
                continue
            yield Frame(name, self._resize.picture(picture, name), index, (picture.height, picture.width))


def open_folder(folder: Path, *, resize: Resize, loop: bool = False) -> ImageFiles:
    """All images under `folder`, sorted by path.

    Raises:
        SourceError: the folder cannot be read or holds no image.
    """
    unreadable: list[Skipped] = []
    found: list[Path] = []
    others: list[Path] = []

    def refused(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise SourceError(f"cannot read the folder {folder}: {error.strerror}; check its owner") from error
        name = printable(Path(error.filename).relative_to(folder).as_posix())
        unreadable.append(Skipped(f"{name}/", f"folder cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent) / name
            if not name.startswith(".") and _is_dangling(path):
                shown = printable(path.relative_to(folder).as_posix())
                unreadable.append(Skipped(shown, "a link to a file that is not there"))
            elif not name.startswith("."):
                (found if _is_picture(path) else others).append(path)
    if not _readable(found):
        raise SourceError(
            f"{folder} holds no images{_instead([*found, *others])}; "
            f"put files that end in {', '.join(IMAGE_SUFFIXES)} in it or its subfolders"
        )
    found.sort(key=lambda path: path.relative_to(folder).parts)
    files = [(printable(path.relative_to(folder).as_posix()), path) for path in found]
    return ImageFiles(str(folder), files, resize=resize, loop=loop, unreadable=unreadable)


def open_glob(pattern: str, *, resize: Resize, loop: bool = False) -> ImageFiles:
    """All images that match a pattern (`*`, `?`, `[a-z]`, and `**` for any depth), sorted by path.

    Raises:
        SourceError: nothing matches, or nothing that matches is an image.
    """
    # Path.glob would need the pattern's fixed part split off, which is what glob.glob does.
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    found = sorted(path for path in matches if _is_picture(path))
    if not _readable(found):
        what = f"matches no images{_instead(matches)}" if matches else "matches nothing"
        raise SourceError(f"the pattern {pattern} {what}; images end in {', '.join(IMAGE_SUFFIXES)}")
    files = [(printable(path.as_posix()), path) for path in found]
    return ImageFiles(pattern, files, resize=resize, loop=loop)


def open_image(path: Path, *, resize: Resize, loop: bool = False) -> ImageFiles:
    """One image file.

    Raises:
        SourceError: the file cannot be read at all. A damaged picture is no error but a skipped frame.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}; check the file and its owner") from error
    return ImageFiles(str(path), [(printable(path.name), path)], resize=resize, loop=loop)


def load(path: Path) -> Image:
    """Decode a file to an upright 8-bit RGB picture.

    Raises:
        UnusableFrame: with the reason, whatever is wrong with the file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        length = path.stat().st_size
        if length == 0:
            raise UnusableFrame("the file is empty")
        if length > MAX_FILE_BYTES:
            raise UnusableFrame(f"{length:,} bytes; files above {MAX_FILE_BYTES:,} are not opened")
        with warnings.catch_warnings():
            # Pillow warns about damaged metadata and large pictures; both are handled here.
            warnings.simplefilter("ignore")
            with path.open("rb") as file, Image.open(file, formats=_FORMATS) as picture:
                check_pixels(*picture.size)
                return upright_rgb(picture)
    except UnusableFrame:
        raise
    except UnidentifiedImageError as error:
        raise UnusableFrame("not an image, or of a kind that is not read (JPEG, PNG, BMP, WebP, PPM are)") from error
    except Image.DecompressionBombError as error:
        raise UnusableFrame(f"more than {MAX_PIXELS:,} pixels: a decompression bomb?") from error
    except FileNotFoundError as error:
        raise UnusableFrame("the file has gone since the source was opened") from error
    except Exception as error:
        # Decoders raise almost anything on damaged input (OSError, SyntaxError, struct.error, ...): one bad file must
        # not end a stream.
        raise UnusableFrame(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def upright_rgb(picture: Image) -> Image:
    """An opened picture of any mode, turned as its metadata say, as 8-bit RGB.

    Raises:
        UnusableFrame: values that no picture has.
    """
    return _to_rgb(_upright(picture))


def check_pixels(width: int, height: int) -> None:
    """Raises UnusableFrame for a picture that is too large to decode."""
    if width * height > MAX_PIXELS:
        raise UnusableFrame(f"{width} x {height} is more than {MAX_PIXELS:,} pixels: a decompression bomb?")


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values in [0, 65535] as the nearest 8-bit ones (65535 / 255 = 257)."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(picture: Image) -> Image:
    """Turned and mirrored as the EXIF orientation says. Damaged metadata counts as none."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableFrame(f"grey values from {values.min()} to {values.max()}, outside 16 bits")
        picture = Image.fromarray(to_eight_bits(values))
    elif picture.mode == "F":
        raise UnusableFrame("a picture of floating-point values; store it as an .npy array")
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _is_picture(path: Path) -> bool:
    """Whether a frame is expected in a file, to judge by its name."""
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_PICTURES) and _is_file(path)


def _is_dangling(path: Path) -> bool:
    """Whether a name is a picture's and a link that leads nowhere."""
    pictures = (*IMAGE_SUFFIXES, *OTHER_PICTURES)
    return path.suffix.lower() in pictures and path.is_symlink() and not path.exists()


def _readable(found: Sequence[Path]) -> bool:
    """Whether one of the pictures is of a kind that is read."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in found)


def _is_file(path: Path) -> bool:
    """Whether a name is a file (no pipe, no device); where that cannot be asked, reading will tell the reason."""
    try:
        return path.is_file()
    except OSError:
        return True


def _instead(others: Sequence[Path]) -> str:
    """What was found where images were looked for."""
    array = next((path for path in others if path.suffix.lower() in ARRAY_SUFFIXES), None)
    if array is not None:
        return f" but the array {array} (name that file itself)"
    return f" ({len(others)} other file{'s' if len(others) != 1 else ''})" if others else ""
