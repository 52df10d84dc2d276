# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings on disk, found by the content that was embedded.

    <cache>/features/<kind>-<key>/settings.json            what the embeddings were made with; the key is its digest
                                 /<any name>.safetensors   up to 1,024 embeddings and the digests of their contents
    <cache>/features/negatives-<key>/settings.json         what negative labels were mined for, and how
                                    /<key>.safetensors     their texts and embeddings

Files are written once, under names that no other process uses, appear when they are complete, and are only used if
their checksum and their key are right. It guards against accidents; who can write to the folder can forge a file.
"""

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .files import atomic_path

logger = logging.getLogger(__name__)

SHARD_ROWS = 1024
DIGEST_BYTES = 32

_FORMAT = "clipn_hf features 1"
_FOLDER_NAME = re.compile(r"(image|text|no_text|negatives)-[0-9a-f]{32}")
_FILE_NAME = re.compile(r"settings\.json|[0-9a-f]{32}\.safetensors|\..+\.partial\.(json|safetensors)")


@dataclass(frozen=True)
class CacheEntry:
    """The embeddings that one encoder made with one set of settings.

    Args:
        folder (`Path`): Where they are.
        kind (`str`): Of what: `"image"`, `"text"`, `"no_text"`, or `"negatives"` that were mined.
        model (`str`): Name or folder that the model had when it was first used.
        dtype (`str`): What it computed in.
        embeddings (`int`): How many there are; files that cannot be read do not count.
        size_on_disk (`int`): Bytes of all files, those left by interrupted processes included.
    """

    folder: Path
    kind: str
    model: str
    dtype: str
    embeddings: int
    size_on_disk: int


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Args:
        folder (`Path`): Where the cache is; it need not exist.
        entries (`list` of [`CacheEntry`]): The largest first.
    """

    folder: Path
    entries: list[CacheEntry]

    @property
    def size_on_disk(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size_on_disk for entry in self.entries)


def default_cache_dir() -> Path:
    """Find the folder of the cache.

    Returns:
        `Path`: `$CLIPN_HF_CACHE`; without it `clipn_hf` in `$HF_HOME`, in `$XDG_CACHE_HOME`, or in `~/.cache`, by the
        first of these variables that is set.
    """
    own = os.environ.get("CLIPN_HF_CACHE")
    shared = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expandvars(own or os.path.join(shared, "clipn_hf"))).expanduser()


def cache_info(cache_dir: str | os.PathLike[str] | None = None) -> CacheInfo:
    """List what a cache holds.

    Args:
        cache_dir (`str` or `os.PathLike`, *optional*): Its folder; by default that of `default_cache_dir()`.

    Returns:
        [`CacheInfo`]: Of a folder that does not exist, an empty one.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    entries = []
    for entry in _entry_folders(folder):
        try:
            record = json.loads((entry / "settings.json").read_text(encoding="utf-8"))
            model, dtype = str(record["model"]), str(record["settings"]["dtype"]).removeprefix("torch.")
        # Embeddings do not need the record, which is for people.
        except (OSError, ValueError, LookupError, TypeError):
            model, dtype = "unknown", "unknown"
        files = _own_files(entry)
        sizes = [_size(file) for file in files]
        count = sum(_count_rows(file) for file in files if _is_shard(file))
        entries.append(CacheEntry(entry, entry.name.split("-")[0], model, dtype, count, sum(sizes)))
    return CacheInfo(folder, sorted(entries, key=lambda entry: (-entry.size_on_disk, entry.folder)))


def clear_cache(cache_dir: str | os.PathLike[str] | None = None) -> int:
    """Delete all that a cache holds, and nothing else that may be in its folder.

    Processes that are using it go on without; what they add afterwards is kept.

    Args:
        cache_dir (`str` or `os.PathLike`, *optional*): Its folder; by default that of `default_cache_dir()`.

    Returns:
        `int`: Bytes that were deleted.

    Raises:
        OSError: A file cannot be deleted.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    deleted = 0
    for entry in _entry_folders(folder):
        for file in _own_files(entry):
            size = _size(file)
            file.unlink(missing_ok=True)
            deleted += size
        _remove_if_empty(entry)
    _remove_if_empty(folder / "features")
    return deleted


def bank_file(cache_dir: str | os.PathLike[str], key: str) -> Path:
    """Find the place of negative labels in a cache.

    Args:
        cache_dir (`str` or `os.PathLike`): Its folder.
        key (`str`): Digest of everything that they depend on, in hexadecimal.

    Returns:
        `Path`: A file, in a folder of its own; neither need exist.
    """
    return Path(cache_dir).expanduser().absolute() / "features" / f"negatives-{key[:32]}" / f"{key[:32]}.safetensors"


class FeatureStore:
    """The embeddings of one encoder with one set of settings: those on disk, and those added.

    When it is opened, every file of these settings is checked. A file that is damaged, or that belongs to other
    settings, is deleted, which is said on the log; what it held has to be computed again.

    Args:
        kind (`str`): What is embedded: `"image"`, `"text"` or `"no_text"`.
        key (`str`): Digest of everything that the embeddings depend on besides the content, in hexadecimal.
        cache_dir (`str`, `os.PathLike` or `None`): Folder of the cache; None keeps what is added in memory alone.
        record (`Mapping`, *optional*): Written beside the embeddings, for people to read.
    """

    def __init__(
        self,
        kind: str,
        key: str,
        cache_dir: str | os.PathLike[str] | None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.key = key
        self.folder = (
            None if cache_dir is None else Path(cache_dir).expanduser().absolute() / "features" / f"{kind}-{key[:32]}"
        )
        self.record = record
        # A file that is open in safetensors, or an array, and the row in it.
        self._index: dict[bytes, tuple[Any, int]] = {}
        self._pending: list[tuple[list[bytes], npt.NDArray[np.float32]]] = []
        self._num_pending = 0
        if self.folder is not None:
            for file in filter(_is_shard, _own_files(self.folder)):
                self._open(file)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._index

    def __len__(self) -> int:
        return len(self._index)

    def digests(self) -> frozenset[bytes]:
        """List the digests of all contents whose embeddings are there."""
        return frozenset(self._index)

    def add(self, digests: Sequence[bytes], embeddings: npt.NDArray[np.float32]) -> None:
        """Add embeddings, and write them as soon as they fill a file.

        Args:
            digests (`Sequence[bytes]`): SHA-256 of the contents, 32 bytes each.
            embeddings (`numpy.ndarray` of shape `(len(digests), dim)`): In float32.
        """
        self._index.update((digest, (embeddings, row)) for row, digest in enumerate(digests))
        self._pending.append((list(digests), embeddings))
        self._num_pending += len(digests)
        if self._num_pending >= SHARD_ROWS:
            self.flush()

    def get(self, digests: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Look embeddings up.

        Args:
            digests (`Sequence[bytes]`): Contents that are in the store; at least one.

        Returns:
            `numpy.ndarray` of shape `(len(digests), dim)`: In float32, in the order of `digests`.

        Raises:
            KeyError: There is no embedding of one of the contents.
        """
        by_source: dict[int, tuple[Any, list[int], list[int]]] = {}
        for position, digest in enumerate(digests):
            source, row = self._index[digest]
            _, positions, rows = by_source.setdefault(id(source), (source, [], []))
            positions.append(position)
            rows.append(row)
        found: npt.NDArray[np.float32] | None = None
        for source, positions, rows in by_source.values():
            embeddings = source if isinstance(source, np.ndarray) else source.get_tensor("embeddings")
            if found is None:
                found = np.empty((len(digests), embeddings.shape[1]), dtype=np.float32)
            found[positions] = embeddings[rows]
        if found is None:
            raise ValueError("`digests` is empty; ask for one content at least.")
        return found

    def flush(self) -> None:
        """Write what has been added since the last time. If that fails, it is said on the log, once."""
        if self.folder is not None and self._pending:
            digests = [digest for block, _ in self._pending for digest in block]
            embeddings = np.concatenate([block for _, block in self._pending])
            try:
                try:
                    self._write(digests, embeddings)
                # Another process may clear the cache at this moment.
                except FileNotFoundError:
                    self._write(digests, embeddings)
            # A full disk is no reason to lose what has been computed.
            except (OSError, SafetensorError) as error:
                logger.warning(
                    f"Features cannot be written to {self.folder} ({error}) and are not kept; make room there, or set "
                    "`cache_dir` or the environment variable CLIPN_HF_CACHE to another folder."
                )
                self.folder = None
        self._pending = []
        self._num_pending = 0

    def _write(self, digests: Iterable[bytes], embeddings: npt.NDArray[np.float32]) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.json"
        if self.record is not None and not settings.exists():
            with atomic_path(settings) as partial:
                partial.write_text(json.dumps(self.record, indent=1, sort_keys=True), encoding="utf-8")
        tensors: dict[str, npt.NDArray[Any]] = {
            "digests": np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES),
            "embeddings": np.ascontiguousarray(embeddings, dtype=np.float32),
        }
        metadata = {"format": _FORMAT, "key": self.key, "sha256": _checksum(self.key, **tensors)}
        with atomic_path(self.folder / f"{uuid.uuid4().hex}.safetensors") as partial:
            save_file(tensors, partial, metadata=metadata)

    def _open(self, file: Path) -> None:
        try:
            opened, digests = self._check(file)
        # Another process may clear the cache at this moment.
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning(f"The cached features in {file} cannot be read ({error}) and are computed again.")
            return
        except (SafetensorError, ValueError) as error:
            logger.warning(f"The cached features in {file} are deleted and computed again: {error}")
            try:
                file.unlink(missing_ok=True)
            except OSError as refusal:
                logger.warning(f"The file {file} cannot be deleted ({refusal}); delete it yourself.")
            return
        for row, digest in enumerate(digests):
            self._index.setdefault(digest.tobytes(), (opened, row))

    def _check(self, file: Path) -> tuple[Any, npt.NDArray[np.uint8]]:
        """Open a file and read the digests in it.

        Raises:
            ValueError, SafetensorError: It is not what a store with this key has written.
        """
        opened = safe_open(file, framework="np")
        metadata = opened.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {_FORMAT!r}.")
        if metadata.get("key") != self.key:
            raise ValueError("they were made with another model or other settings.")
        digests, embeddings = opened.get_tensor("digests"), opened.get_tensor("embeddings")
        if metadata.get("sha256") != _checksum(self.key, digests, embeddings):
            raise ValueError("their checksum is wrong, so they were changed after they had been written.")
        return opened, digests


def _checksum(key: str, digests: npt.NDArray[Any], embeddings: npt.NDArray[Any]) -> str:
    checksum = hashlib.sha256(key.encode())
    for array in (digests, embeddings):
        checksum.update(f"{array.dtype} {array.shape}".encode())
        checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()


def _entry_folders(cache_dir: Path) -> list[Path]:
    try:
        folders = sorted((cache_dir / "features").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder for folder in folders if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir()]


def _own_files(entry: Path) -> list[Path]:
    """The files in an entry that have names such as a store gives; none if there is no such folder."""
    try:
        return sorted(file for file in entry.iterdir() if _FILE_NAME.fullmatch(file.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_shard(file: Path) -> bool:
    return file.suffix == ".safetensors" and not file.name.startswith(".")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _count_rows(file: Path) -> int:
    try:
        with safe_open(file, framework="np") as opened:
            return int(opened.get_slice("embeddings").get_shape()[0])
    except (OSError, SafetensorError):
        return 0


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    # It is not there, or holds what is not ours.
    except OSError:
        return


__all__ = [
    "DIGEST_BYTES",
    "SHARD_ROWS",
    "CacheEntry",
    "CacheInfo",
    "FeatureStore",
    "bank_file",
    "cache_info",
    "clear_cache",
    "default_cache_dir",
]
