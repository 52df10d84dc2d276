# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures from anywhere to 8-bit RGB, the ways to hand over many of them, and the search for picture files.

`load_image` is the only door through which the detector, the pipeline and the command line read pictures, so that
the same file gives the same pixels everywhere and damaged input gives the same message.
"""

import functools
import glob
import http.client
import io
import itertools
import os
import re
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import Dataset

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray

# HEIC and HEIF need a plugin; they are listed so that they are reported, not passed over in silence, without it.
# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
DOWNLOAD_TIMEOUT = 30.0  # Seconds, for the whole download.
MAX_DOWNLOAD_BYTES = 100 * 2**20

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture that cannot be used.

    Args:
        source (`str`): What was read: a path, an address, or a description of the object.
        reason (`str`): Why it cannot be used and what to do about it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot read {self.source}: {self.reason}"


def load_image(source: ImageSource) -> Image.Image:
    """Read one picture and bring it to 8-bit RGB.

    The EXIF orientation is applied, animations give their first frame (a PIL image its current one), transparent
    pixels are laid on white, and 16-bit grey is scaled to 8 bits, `round(value / 257)`, not clipped. Pillow decides
    which formats there are; plugins registered with it are used, Encapsulated PostScript is refused because Pillow
    runs an interpreter for it.

    Args:
        source (`str`, `os.PathLike`, `bytes`-like, binary file, `PIL.Image.Image` or `numpy.ndarray`):
            A path; an http or https address (at most 100 MiB within 30 seconds); the bytes of a picture file; a file
            opened in binary mode (read from its start when it can seek); a PIL image of any mode but 32-bit float;
            or pixels of shape `(height, width, 3)` and dtype uint8.

    Returns:
        `PIL.Image.Image` of mode RGB, fully decoded. It may be `source` itself.

    Raises:
        ImageError: The source is missing, not a regular file, empty, damaged, truncated, not a picture, of a pixel
            type without an agreed range, or has more than `2 * PIL.Image.MAX_IMAGE_PIXELS` pixels.
        TypeError: `source` is of none of the types above.

    Example:

    ```python
    >>> import numpy as np
    >>> from clipn_hf.images import load_image
    >>> load_image(np.zeros((2, 3, 3), dtype=np.uint8)).size
    (3, 2)

    ```
    """
    content = read_content(source)
    if isinstance(content, Image.Image):
        return content
    name = _describe(source)
    with _open(content, name) as image:
        return _to_rgb(image, name)


def read_content(source: ImageSource) -> bytes | Image.Image:
    """Read all that decides about one picture, without decoding a file.

    Args:
        source: What [`load_image`] reads.

    Returns:
        The `bytes` of a file; of a PIL image or an array the `PIL.Image.Image` that [`load_image`] gives. For
        [`load_image`] either is as good as `source`.

    Raises:
        ImageError: The source is missing, not a regular file or empty, or its pixels cannot be used.
        TypeError: As [`load_image`].
    """
    name = _describe(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    data = _read(source, name)
    if not data:
        raise ImageError(name, "it is empty (0 bytes). Copy or download it again.")
    return data


def find_images(paths: Iterable[str | os.PathLike[str]], recursive: bool = False) -> list[str]:
    """List the picture files that files, folders and glob patterns stand for.

    In a folder, the files with a name in `IMAGE_EXTENSIONS` count (in either case), hidden ones do not; symbolic
    links to files are followed, those to folders inside a folder are not. A file named explicitly, alone or by a
    pattern, is always listed, whatever its extension. A name that does not exist is listed too, so that reading it
    reports it. Addresses of pictures on the web are passed through.

    Args:
        paths (iterable of `str` or `os.PathLike`): Files, folders, glob patterns (`**` matches any depth), addresses.
        recursive (`bool`, *optional*, defaults to `False`): Whether folders are searched at every depth.

    Returns:
        `list[str]`: In the order of `paths`, those of a folder or pattern sorted; each file once, as it was first
        named.

    Raises:
        ImageError: A folder cannot be listed.
    """
    found: dict[str, str] = {}
    for path in [os.fspath(path) for path in paths]:
        if _scheme(path):
            found.setdefault(path, path)
            continue
        # A file whose real name contains brackets must not be taken for a pattern.
        matches = [path] if os.path.lexists(path) else glob.glob(path, recursive=True) or [path]
        files = [_list_folder(match, recursive) if os.path.isdir(match) else [match] for match in matches]
        for file in sorted(itertools.chain.from_iterable(files)):
            found.setdefault(os.path.abspath(file), file)
    return [*found.values()]


class NumberedImages(Dataset[tuple[int, ImageSource]]):
    """Images together with their positions, read when asked for.

    Args:
        images: Anything with a length and integer positions.
        column (`str`, *optional*): Where each item is a dictionary, the key of its image.
    """

    def __init__(self, images: Any, column: str | None = None) -> None:
        self.images = images
        self.column = column

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, ImageSource]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no image {index}, only 0 to {len(self) - 1}.")
        try:
            item = self.images[index]
        # A dataset may open its images itself.
        except OSError as error:
            raise ImageError(f"image {index}", f"the dataset cannot open it ({error}).") from error
        return index, image_of(item, self.column)


def number_images(images: Any) -> NumberedImages | Iterator[tuple[int, ImageSource]] | None:
    """Bring the ways to hand over many images to two: with a length, and without.

    Args:
        images:
            A list, tuple or other sequence, such as a column of a `datasets.Dataset`; an iterator or generator; a
            `torch.utils.data.Dataset`; a `datasets.Dataset` or `datasets.IterableDataset`, whose only column of type
            `Image`, or else the one called `"image"`, is read; a batch of one, that is a dictionary with a list of
            images under `"image"`. Items are images, or dictionaries as [`image_of`] reads them.

    Returns:
        [`NumberedImages`] for what has a length, an iterator of (position, image) for what has not, None for anything
        else, which is then a single image.

    Raises:
        ValueError: A dataset in which the image column cannot be told.
    """
    # A dataset can only be there when its library has been imported, which takes a second.
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(images, datasets.Dataset | datasets.IterableDataset):
        column = _image_column(images.features, datasets.Image)
        images = undecoded(images, column)
        if isinstance(images, datasets.Dataset):
            return NumberedImages(images, column)
        return enumerate(image_of(row, column) for row in images)
    if isinstance(images, Mapping) and isinstance(images.get("image"), list | tuple):
        images = images["image"]
    single = isinstance(images, str | bytes | bytearray | memoryview)
    if (isinstance(images, Sequence) and not single) or (isinstance(images, Dataset) and hasattr(images, "__len__")):
        return NumberedImages(images)
    # Open files are iterators, too, but of lines.
    if isinstance(images, Dataset) or (isinstance(images, Iterator) and not hasattr(images, "read")):
        return enumerate(image_of(item) for item in iter(images))
    return None


def image_of(item: Any, column: str | None = None) -> Any:
    """Find the image in an item of a dataset.

    Args:
        item:
            An image; a dictionary with one in `column`, or without that under `"image"`; or what `datasets` gives for
            an image that it has not decoded, `{"bytes": …, "path": …}`.
        column (`str`, *optional*): The key of the image.

    Returns:
        What [`load_image`] reads; anything else is returned as it is.
    """
    if isinstance(item, Mapping) and (column is not None or "image" in item):
        item = item[column or "image"]
    if isinstance(item, Mapping) and item.keys() >= {"bytes", "path"}:
        item = item["path"] if item["bytes"] is None else item["bytes"]
    return item


def undecoded(dataset: Any, column: str) -> Any:
    """Switch off that `datasets` decodes an image column, so that `load_image` does, and names the broken images.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The dataset.
        column (`str`): Name of the column. One that does not hold images by its type is left as it is.

    Returns:
        The dataset; its items are read by [`image_of`].
    """
    datasets = sys.modules["datasets"]
    # A streamed dataset may not know its columns.
    if isinstance((dataset.features or {}).get(column), datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _image_column(features: Mapping[str, Any] | None, image_type: type) -> str:
    # A streamed dataset may not know its columns.
    if features is None:
        return "image"
    columns = [name for name, feature in features.items() if isinstance(feature, image_type)]
    if len(columns) == 1:
        return columns[0]
    if "image" in features:
        return "image"
    found = (
        f"several image columns ({', '.join(columns)})" if columns else f"no image column among {', '.join(features)}"
    )
    raise ValueError(f"The dataset has {found}; keep one with `select_columns()` or rename it to 'image'.")


def _list_folder(folder: str, recursive: bool) -> Iterator[str]:
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = os.scandir(current)
        except OSError as error:
            raise ImageError(current, f"the folder cannot be listed ({error.strerror}).") from error
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if recursive:
                        pending.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and not entry.is_dir():
                    yield entry.path


def _scheme(path: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", path)
    return match.group(1).lower() if match else None


def _describe(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return name if len(name) <= 300 else f"{name[:300]}…"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the {memoryview(source).nbytes} bytes given"
    if isinstance(source, Image.Image):
        return f"the PIL image given (mode {source.mode}, {source.width}×{source.height})"
    if isinstance(source, np.ndarray):
        return f"the array given (shape {source.shape}, dtype {source.dtype})"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "the file object given"))
    raise TypeError(
        "An image must be a path, an http(s) address, bytes, a binary file, a PIL image or a uint8 array of shape "
        f"(height, width, 3), got {type(source).__name__}."
    )


def _read(source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, name: str) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        scheme = _scheme(path)
        if scheme in ("http", "https"):
            return _download(path)
        if scheme is not None and not os.path.lexists(path):
            raise ImageError(name, f"{scheme}:// is not supported. Give an http(s) address or a local path.")
        return _read_file(path, name)
    try:
        if source.seekable():
            source.seek(0)
        data = source.read()
    except (OSError, ValueError) as error:
        raise ImageError(name, f"reading the file object failed ({error}).") from error
    if not isinstance(data, bytes):
        raise ImageError(name, "the file is open in text mode. Open it with mode 'rb'.")
    return data


def _read_file(path: str, name: str) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(name, "it is a directory. Name the files in it; the command line and find_images() do.")
        # A device such as /dev/zero has no end.
        if not stat.S_ISREG(mode):
            raise ImageError(name, "it is not a regular file.")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(name, "there is no such file. Check the spelling and the working directory.") from error
    except OSError as error:
        raise ImageError(name, f"the system refuses it ({error.strerror}).") from error
    except ImageError:
        raise
    # A null character in the path.
    except ValueError as error:
        raise ImageError(repr(name), f"it is not a possible file name ({error}).") from error


def _download(address: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    # Addresses pasted from a browser may hold spaces and letters beyond ASCII, which http does not.
    ascii_address = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    too_large = ImageError(address, f"it is larger than {MAX_DOWNLOAD_BYTES // 2**20} MiB. Download it yourself.")
    try:
        request = urllib.request.Request(ascii_address, headers={"User-Agent": "clipn-hf"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            if int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD_BYTES:
                raise too_large
            data = bytearray()
            while chunk := response.read1(2**16):
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise too_large
                if time.monotonic() > deadline:
                    raise TimeoutError
            return bytes(data)
    except urllib.error.HTTPError as error:
        raise ImageError(address, f"the server answers {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise ImageError(address, f"the server took longer than {DOWNLOAD_TIMEOUT:g} seconds. Try again.") from error
    except urllib.error.URLError as error:
        raise ImageError(address, f"the server cannot be reached ({error.reason}).") from error
    except ImageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(address, f"the download failed ({error}).") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise _bomb(name) from error
    except UnidentifiedImageError as error:
        raise ImageError(name, _not_an_image(data)) from error
    # The decoders raise whatever their parsing runs into: struct.error, SyntaxError, KeyError, zlib.error, …
    except Exception as error:
        raise ImageError(name, f"it is damaged ({error}). Copy or download it again.") from error


def _bomb(name: str) -> ImageError:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return ImageError(
        name,
        f"it would unpack to more than {limit:,} pixels, as decompression bombs do. "
        "Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it.",
    )


def _not_an_image(data: bytes) -> str:
    start = data[:32]
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC needs a plugin. Install pillow-heif and register it, or convert the picture to JPEG."
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "PostScript is not read. Convert the picture to PNG."
    try:
        text = data[:512].decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        beginning = " ".join(text.split())[:40]
        if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", text.lstrip(), flags=re.DOTALL):
            return "SVG drawings are not read. Convert it to PNG."
        return f"it is text, not an image (it begins with {beginning!r}), whatever its name says."
    return f"it is not an image in a known format (it begins with {start[:8].hex(' ')})."


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise _bomb(name) from error
    # As in _open; a picture cut short is an OSError here.
    except Exception as error:
        raise ImageError(name, f"it is damaged or truncated ({error}). Copy or download it again.") from error
    if image.width == 0 or image.height == 0:
        raise ImageError(name, f"it has no pixels ({image.width}×{image.height}).")
    orientation = _orientation(image)
    try:
        if image.mode.startswith("I"):
            image = _scale_grey(image)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            background = Image.new("RGBA", image.size, "white")
            background.alpha_composite(image)
            image = background
        # Pillow would clip floats to 0..255, which blackens pictures in [0, 1].
        if image.mode == "F":
            raise ValueError("32-bit floats have no agreed range")
        if image.mode != "RGB":
            image = image.convert("RGB")
    except ValueError as error:
        raise ImageError(
            name, f"its pixels of mode {image.mode} cannot become RGB ({error}). Convert it to 8 bits per channel."
        ) from error
    if orientation in _ORIENTATIONS:
        image = image.transpose(_ORIENTATIONS[orientation])
        # The metadata still say "rotate": read again, the result would turn a second time.
        image.info = {}
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Damaged metadata is no reason to refuse a picture whose pixels are fine.
    except Exception:
        return 1


def _scale_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    # Pillow hands some 16-bit files out as 32-bit integers; what exceeds 16 bits is measured data, not a picture.
    if low < 0 or high > 65535:
        raise ValueError(f"32-bit integers, here {low} to {high}, have no agreed range")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            name,
            "expected shape (height, width, 3) and dtype uint8. Move the channels last, repeat grey three times, "
            "scale floats in [0, 1] by 255 and round.",
        )
    return Image.fromarray(np.ascontiguousarray(array))
