# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rebuild the folder of emoji drawings and its `captions.csv` from the icon packages, for `build_dataset.py`.

The icons come from npm packages and are drawn with resvg at 256 pixels on white, averaged to 64, and saved as JPEG of
quality 90 without colour subsampling. Names, keywords and categories are those of emojibase. A concept finds its icon
by code point where the package knows it, otherwise by name: its own, those under which other packages have the same
code point, and the Unicode name of the character; `icons.csv` lists the exceptions. Drawings that repeat an earlier
one of their style are left out.

    pip install -e ".[emoji]"
    python training/emoji/render.py emoji
    python training/emoji/build_dataset.py emoji --out emoji.parquet

Needs npm, which downloads about 60 MB; the licence of each style is in `NOTICE`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import resvg_py
from PIL import Image
from tqdm import tqdm

from clipn_hf.files import atomic_path

EMOJIBASE = "emojibase-data@17.0.0"
TRAINING_STYLES = {
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-monotone": "@iconify-json/emojione-monotone@1.2.1",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-color": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
}
TEST_STYLES = {
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "openmoji-black": "openmoji@17.0.0",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
STYLES = {**TRAINING_STYLES, **TEST_STYLES}
# These packages list the code points of their icons, so their names for a concept help to find it in the others.
NAMING_STYLES = ("noto", "twemoji", "openmoji", "fluent-flat", "fluent-high-contrast")
# These packages hold one file per code point instead of one `icons.json`.
FOLDERS = {"fluent-3d": "package/assets/", "openmoji-black": "package/black/svg/"}
RENDER_SIZE, IMAGE_SIZE = 256, 64
COLUMNS = ("image", "style", "concept", "category", "subcategory", "name", "keywords")


def fetch(package: str, cache: Path) -> Path:
    """Download the archive of `package` ("name@version") with npm, once."""
    archive = cache / (re.sub("[@/]", "-", package.removeprefix("@")) + ".tgz")
    if not archive.exists():
        with TemporaryDirectory(dir=cache) as partial:
            subprocess.run(["npm", "pack", "--silent", "--pack-destination", partial, package], check=True)
            os.replace(next(Path(partial).iterdir()), archive)
    return archive


def read_json(archive: Path, *names: str) -> list[Any]:
    with tarfile.open(archive) as tar:
        return [json.load(tar.extractfile(f"package/{name}")) for name in names]  # type: ignore[arg-type]


def load_concepts(archive: Path) -> list[dict[str, Any]]:
    """Concepts in emoji order: everything but flags, components (skin tones, hair), keycaps and lone letters."""
    emoji, messages, meta = read_json(archive, "en/data.json", "en/messages.json", "meta/groups.json")
    categories = {group["order"]: group["message"] for group in messages["groups"]}
    subcategories = {int(order): key for order, key in meta["subgroups"].items()}
    kept = [
        {
            "concept": entry["hexcode"],
            "character": entry["emoji"].replace("\ufe0f", ""),
            "category": categories[entry["group"]],
            "subcategory": subcategories[entry["subgroup"]],
            "name": entry["label"],
            "keywords": ";".join(entry.get("tags", ())),
        }
        for entry in sorted(emoji, key=lambda entry: entry.get("order", 0))
        if "group" in entry and not entry["label"].startswith("keycap:")
    ]
    return [concept for concept in kept if concept["category"] not in ("components", "flags")]


def load_icons(archive: Path) -> dict[str, Any]:
    """Icons of an Iconify package, with their aliases and, where the package has them, code points."""
    icons, characters = read_json(archive, "icons.json", "chars.json")
    icons.setdefault("aliases", {})
    icons["characters"] = {normalize_code(code): name for code, name in characters.items()}
    return icons


def normalize_code(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    ascii_name = ascii_name.replace("'", "").replace("!", " exclamation ")
    return re.sub("[^a-z0-9]+", "-", ascii_name).strip("-")


def other_names(concept: dict[str, Any], naming: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Names other than its own under which a package may hold a concept."""
    for icons in naming:
        name = icons["characters"].get(normalize_code(concept["concept"]))
        if name is not None:
            parent = icons["aliases"].get(name, {}).get("parent", name)
            yield from (name, parent)
            yield from (alias for alias, entry in icons["aliases"].items() if entry == {"parent": parent})
    if len(concept["character"]) == 1:
        yield slug(unicodedata.name(concept["character"], ""))


def load_exceptions() -> dict[str, dict[str, str]]:
    """Style → concept → icon ("" for none) where neither code point nor name finds the right one.

    The names in fxemoji are its own: its icons are listed by the code points in Mozilla's original file names.
    """
    exceptions: dict[str, dict[str, str]] = {}
    with open(Path(__file__).with_name("icons.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            exceptions.setdefault(row["style"], {})[row["concept"]] = row["icon"]
    return exceptions


def match_icons(icons: dict[str, Any], concepts: list[dict[str, Any]], naming: list[dict[str, Any]]) -> dict[str, str]:
    """Icon of each concept that the package has, by code point or name: concept → icon name."""

    def find(names: Iterable[str]) -> str | None:
        # Streamline numbers its variants; the first is taken.
        candidates = (candidate for name in names for candidate in (name, f"{name}-1"))
        return next((name for name in candidates if name in icons["icons"] or name in icons["aliases"]), None)

    matched = {}
    for concept in concepts:
        name = icons["characters"].get(normalize_code(concept["concept"])) or find([slug(concept["name"])])
        if name is not None:
            matched[concept["concept"]] = name
    taken = set(matched.values())
    for concept in concepts:
        if concept["concept"] not in matched:
            name = find(name for name in other_names(concept, naming) if name not in taken)
            if name is not None:
                matched[concept["concept"]] = name
    return matched


def build_svg(icons: dict[str, Any], name: str) -> bytes:
    alias = icons["aliases"].get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{RENDER_SIZE}" height="{RENDER_SIZE}">{body}</svg>'
    ).encode()


def draw(source: bytes) -> tuple[bytes, bytes] | None:
    """Pixels and JPEG of an SVG or WebP picture; `None` when it shows nothing."""
    if not source.startswith(b"RIFF"):
        size = {"width": RENDER_SIZE, "height": RENDER_SIZE}
        source = bytes(resvg_py.svg_to_bytes(svg_string=source.decode(), **size))
    picture = Image.open(io.BytesIO(source)).convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    image = canvas.convert("RGB")
    if side == RENDER_SIZE:
        image = image.reduce(RENDER_SIZE // IMAGE_SIZE)
    else:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    if all(low == 255 for low, _ in image.getextrema()):
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0, optimize=True)
    return image.tobytes(), file.getvalue()


def list_sources(style: str, archive: Path, concepts: list, naming: list) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Concept and SVG or WebP picture for each concept that `style` has, in emoji order."""
    if style in FOLDERS:
        files: dict[str, bytes] = {}
        with tarfile.open(archive) as tar:
            # Read in the order of the archive: it is compressed, so going back means starting again.
            for member in tar:
                if member.name.startswith(FOLDERS[style]):
                    picture = tar.extractfile(member)
                    files.setdefault(normalize_code(Path(member.name).stem), picture.read() if picture else b"")
        for concept in concepts:
            if (source := files.get(normalize_code(concept["concept"]))) is not None:
                yield concept, source
        return
    icons = load_icons(archive)
    matched = {} if style == "fxemoji" else match_icons(icons, concepts, naming)
    matched |= load_exceptions().get(style, {})
    for concept in concepts:
        if name := matched.get(concept["concept"]):
            yield concept, build_svg(icons, name)


def main(out: Path, styles: list[str], cache: Path) -> None:
    if out.exists():
        raise SystemExit(f"{out} exists already: remove it or name another folder")
    if shutil.which("npm") is None:
        raise SystemExit("npm, which downloads the icon packages, is not on this machine: install Node.js")
    cache.mkdir(parents=True, exist_ok=True)
    concepts = load_concepts(fetch(EMOJIBASE, cache))
    naming = [load_icons(fetch(STYLES[style], cache)) for style in NAMING_STYLES]
    rows = []
    with atomic_path(out) as partial:
        with ProcessPoolExecutor() as pool:
            for style in sorted(styles):
                (partial / style).mkdir(parents=True)
                sources = list(list_sources(style, fetch(STYLES[style], cache), concepts, naming))
                seen: set[bytes] = set()
                drawings = pool.map(draw, (source for _, source in sources), chunksize=16)
                for (concept, _), drawing in zip(sources, tqdm(drawings, total=len(sources), desc=style), strict=True):
                    if drawing is None or drawing[0] in seen:
                        continue
                    seen.add(drawing[0])
                    row = {**concept, "style": style, "image": f"{style}/{concept['concept']}.jpg"}
                    (partial / row["image"]).write_bytes(drawing[1])
                    rows.append(row)
        with open(partial / "captions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} images of {len({row['concept'] for row in rows})} concepts in {len(styles)} styles: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES), help="styles to draw")
    parser.add_argument("--cache", type=Path, default=Path(".cache/emoji"), help="folder of downloaded packages")
    arguments = parser.parse_args()
    main(arguments.out, arguments.styles, arguments.cache)
