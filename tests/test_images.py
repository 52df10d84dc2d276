# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from clipn_hf import images
from clipn_hf.images import ImageError, NumberedImages, find_images, image_of, load_image, number_images, undecoded

CORNERS = np.zeros((8, 12, 3), dtype=np.uint8)
CORNERS[:4, :6] = (250, 0, 0)
CORNERS[:4, 6:] = (0, 250, 0)
CORNERS[4:, :6] = (0, 0, 250)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


PNG = encode(Image.fromarray(CORNERS))


# Sources


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "Ärger 猫.png"
    path.write_bytes(PNG)
    stream = io.BytesIO(PNG)
    stream.read()
    with path.open("rb") as opened, path.open("rb") as unseekable:
        unseekable.seekable = lambda: False  # type: ignore[method-assign]
        sources = [
            str(path),
            path,
            PNG,
            bytearray(PNG),
            memoryview(PNG),
            stream,
            opened,
            unseekable,
            Image.fromarray(CORNERS),
            CORNERS,
            CORNERS[::-1][::-1],
        ]
        for source in sources:
            image = load_image(source)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), CORNERS)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG", "ICO", "TGA"])
def test_formats(format: str) -> None:
    image = load_image(encode(Image.new("RGB", (16, 16), (200, 40, 90)), format))
    assert (image.mode, image.size) == ("RGB", (16, 16))
    np.testing.assert_allclose(pixel(image), (200, 40, 90), atol=6)


def test_a_text_mode_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("hello")
    with path.open(encoding="utf-8") as opened, pytest.raises(ImageError, match="mode 'rb'"):
        load_image(opened)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, 3, ["a.png"], {"bytes": PNG}])
def test_an_unknown_type_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match=f"got {type(source).__name__}"):
        load_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        CORNERS.astype(np.float32) / 255,
        CORNERS[..., 0],
        CORNERS.transpose(2, 0, 1),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected shape \(height, width, 3\) and dtype uint8") as caught:
        load_image(array)
    assert str(array.shape) in str(caught.value)


# Pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied_exactly_once(orientation: int, format: str) -> None:
    upright = Image.fromarray(CORNERS.repeat(8, 0).repeat(8, 1))
    # How a camera stores it: the inverse of the turn that the viewer has to make.
    inverse = {**images._ORIENTATIONS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = encode(stored, format, exif=exif, **options)
    for image in (load_image(data), load_image(load_image(data)), load_image(Image.open(io.BytesIO(data)))):
        assert image.size == upright.size
        np.testing.assert_allclose(pixel(image, 4, 4), (250, 0, 0), atol=8)
        np.testing.assert_allclose(pixel(image, 90, 4), (0, 250, 0), atol=8)
        np.testing.assert_allclose(pixel(image, 4, 60), (0, 0, 250), atol=8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = encode(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\xff\xff\x01")
    assert load_image(data).size == (8, 8)


def test_the_callers_image_is_left_alone() -> None:
    given = Image.new("RGBA", (3, 5), (10, 20, 30, 0))
    exif = given.getexif()
    exif[ExifTags.Base.Orientation] = 6
    given.info["exif"] = exif.tobytes()
    before = (given.mode, given.size, given.tobytes(), dict(given.info))
    assert load_image(given).size == (5, 3)
    assert (given.mode, given.size, given.tobytes(), dict(given.info)) == before


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("P", (8, 8), index) for index in range(3)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert pixel(load_image(data)) == (255, 0, 0)


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    rgba.putpixel((1, 0), (200, 0, 0, 255))
    rgba.putpixel((2, 0), (200, 0, 0, 127))
    image = load_image(encode(rgba))
    assert [pixel(image, x) for x in range(3)] == [(255, 255, 255), (200, 0, 0), (228, 128, 128)]

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    image = load_image(encode(palette, transparency=0))
    assert [pixel(image, x) for x in range(2)] == [(255, 255, 255), (0, 200, 0)]

    grey = load_image(encode(Image.new("LA", (2, 2), (40, 0))))
    assert pixel(grey) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    for format in ("JPEG", "TIFF"):
        image = load_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format))
        np.testing.assert_allclose(pixel(image), (255, 0, 0), atol=4)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    image = load_image(encode(Image.fromarray(values), format))
    assert [pixel(image, x)[0] for x in range(6)] == [0, 0, 1, 1, 128, 255]


def test_one_bit_and_grey() -> None:
    assert pixel(load_image(encode(Image.new("1", (2, 2), 1)))) == (255, 255, 255)
    assert pixel(load_image(encode(Image.new("L", (2, 2), 77)))) == (77, 77, 77)


def test_pixels_without_an_agreed_range_are_refused() -> None:
    with pytest.raises(ImageError, match=r"mode F.*no agreed range.*8 bits"):
        load_image(Image.new("F", (2, 2), 0.5))
    with pytest.raises(ImageError, match=r"mode I.*-4 to -4"):
        load_image(Image.new("I", (2, 2), -4))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    assert load_image(encode(Image.new("L", size))).size == size


def test_no_pixels_at_all() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


# Bad files


def test_a_missing_file_a_directory_and_a_device(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: there is no such file\. Check") as caught:
        load_image(tmp_path / "missing.png")
    assert caught.value.source == str(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="it is a directory"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image("/dev/null")
    with pytest.raises(ImageError, match="not a possible file name"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="the system refuses it"):
        load_image("x" * 5000)


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    for source in (path, b"", io.BytesIO()):
        with pytest.raises(ImageError, match="empty"):
            load_image(source)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half\.img: it is (damaged|not an image)"):
        load_image(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Hello, I am a letter.\n", "it is text, not an image.*'Hello, I am a letter.'"),
        (b"<!DOCTYPE html><html>404</html>", "it is text"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "pillow-heif"),
        (b"\x00\x01\x02\xff\xfe", "not an image in a known format.*00 01 02 ff fe"),
    ],
)
def test_a_file_that_is_not_an_image(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"photo.jpg: .*{reason}"):
        load_image(path)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for format in ("PNG", "GIF", "TIFF"):
        with pytest.raises(ImageError, match=r"more than 2,000 pixels.*MAX_IMAGE_PIXELS"):
            load_image(encode(Image.new("L", (50, 50)), format))


def test_a_real_decompression_bomb_is_refused() -> None:
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(b"P5 60000 60000 255\n")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
def test_damage_gives_a_picture_or_an_image_error(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encode(Image.fromarray(CORNERS), format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert load_image(damaged[: data.draw(st.integers(1, len(damaged)))]).mode == "RGB"


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "it is empty.")))
    assert (error.source, error.reason, str(error)) == ("a.png", "it is empty.", "Cannot read a.png: it is empty.")


# The web


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a%20b.png?size=%C3%A4")
            self.end_headers()
            return
        if self.path == "/endless.png":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(2**16))
            except OSError:
                return
        if self.path != "/a%20b.png?size=%C3%A4":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_addresses(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/a b.png?size=ä", "/a%20b.png?size=%C3%A4", "/moved.png"):
        np.testing.assert_array_equal(np.asarray(load_image(server + path)), CORNERS)
    with pytest.raises(ImageError, match=r"/gone\.png: the server answers 404 Not Found"):
        load_image(f"{server}/gone.png")
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", 2**20)
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        load_image(f"{server}/endless.png")
    monkeypatch.setattr(images, "DOWNLOAD_TIMEOUT", 1e-3)
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", 2**40)
    with pytest.raises(ImageError, match=r"longer than 0\.001 seconds|timed out"):
        load_image(f"{server}/endless.png")


def test_unreachable_and_unsupported_addresses() -> None:
    with pytest.raises(ImageError, match="the server cannot be reached"):
        load_image("http://127.0.0.1:9/a.png")
    for address in ("ftp://example.org/a.png", "s3://bucket/a.png", "file:///a.png"):
        with pytest.raises(ImageError, match="is not supported"):
            load_image(address)
    with pytest.raises(ImageError):
        load_image("http://[bad/a.png")


# Finding files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "raw.dat", "[1].png", "deep/c.webp", "deep/x/猫.tiff"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "deep/trap.png").mkdir()
    return tmp_path


def test_folders_list_known_extensions(folder: Path) -> None:
    assert find_images(["."]) == ["./[1].png", "./a.JPG", "./b.png"]
    assert find_images([Path("deep")], recursive=True) == ["deep/c.webp", "deep/x/猫.tiff"]
    assert find_images([folder]) == [str(folder / name) for name in ("[1].png", "a.JPG", "b.png")]


def test_explicit_files_are_always_listed(folder: Path) -> None:
    assert find_images(["raw.dat", "notes.txt", "gone.png"]) == ["raw.dat", "notes.txt", "gone.png"]


def test_globs(folder: Path) -> None:
    assert find_images(["*.png"]) == ["[1].png", "b.png"]
    assert find_images(["[1].png"]) == ["[1].png"]
    assert find_images(["**/*.tiff"]) == ["deep/x/猫.tiff"]
    assert find_images(["de*"], recursive=True) == ["deep/c.webp", "deep/x/猫.tiff"]
    assert find_images(["*.jxl"]) == ["*.jxl"]


def test_files_stay_in_the_order_in_which_they_are_named(folder: Path) -> None:
    assert find_images(["deep/c.webp", "b.png", "a.JPG"]) == ["deep/c.webp", "b.png", "a.JPG"]
    # Those of a folder or pattern come sorted, where it is named; what was named before is not moved.
    assert find_images(["b.png", "deep", "*.png"]) == ["b.png", "deep/c.webp", "[1].png"]


def test_each_file_once_and_links(folder: Path) -> None:
    assert find_images(["b.png", "./b.png", folder / "b.png", "deep/../b.png"]) == ["b.png"]
    os.symlink(folder / "b.png", folder / "deep/link.png")
    os.symlink(folder, folder / "deep/loop")
    assert find_images(["deep"], recursive=True) == ["deep/c.webp", "deep/link.png", "deep/x/猫.tiff"]
    assert find_images(["deep/loop"]) == ["deep/loop/[1].png", "deep/loop/a.JPG", "deep/loop/b.png"]


def test_addresses_pass_through() -> None:
    addresses = ["https://example.org/a.png?x=[1]*", "http://example.org/b.png"]
    assert find_images(addresses) == addresses


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=r"deep: the folder cannot be listed \(Permission denied\)"):
        find_images(["deep"])


# Many pictures


def as_dataset(**columns: list[bytes]) -> datasets.Dataset:
    features = datasets.Features({name: datasets.Image() for name in columns})
    rows = {name: [{"bytes": data, "path": None} for data in files] for name, files in columns.items()}
    return datasets.Dataset.from_dict(rows, features=features)


def test_image_column_is_found_or_asked_for() -> None:
    two = as_dataset(picture=[PNG], other=[PNG])
    message = (
        r"several image columns \(picture, other\); keep one with `select_columns\(\)` or rename it to 'image'\.$"
    )
    with pytest.raises(ValueError, match=message):
        number_images(two)
    assert isinstance(number_images(two.rename_column("other", "image")), NumberedImages)
    with pytest.raises(ValueError, match=r"no image column among label; keep one"):
        number_images(datasets.Dataset.from_dict({"label": [1]}))


@pytest.mark.parametrize(
    "item",
    [
        "a.png",
        {"image": "a.png"},
        {"image": {"bytes": None, "path": "a.png"}},
        {"bytes": None, "path": "a.png"},
        {"bytes": "a.png", "path": "elsewhere.png"},
    ],
)
def test_image_of_an_item(item: object) -> None:
    assert image_of(item) == "a.png"


def test_image_of_a_named_column() -> None:
    row = {"picture": {"bytes": None, "path": "a.png"}, "image": "b.png"}
    assert image_of(row, "picture") == "a.png"
    assert image_of(row) == "b.png"


def test_undecoded_leaves_reading_to_load_image() -> None:
    damaged = as_dataset(picture=[PNG, b"magic"])
    for dataset in (damaged, damaged.to_iterable_dataset()):
        first, second = undecoded(dataset, "picture")
        np.testing.assert_array_equal(np.asarray(load_image(image_of(first, "picture"))), CORNERS)
        assert image_of(second, "picture") == b"magic"
    plain = datasets.Dataset.from_dict({"image": ["a.png"]})
    assert undecoded(plain, "image") is plain


def test_positions_beyond_the_images_are_refused() -> None:
    numbered = number_images(["a.png", {"image": "b.png"}])
    assert isinstance(numbered, NumberedImages)
    assert list(numbered) == [(0, "a.png"), (1, "b.png")]
    for position in (2, -1):
        with pytest.raises(IndexError, match="only 0 to 1"):
            numbered[position]
    assert number_images("a.png") is number_images(io.BytesIO(PNG)) is number_images({"image": "a.png"}) is None
