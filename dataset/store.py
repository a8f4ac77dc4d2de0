"""The compact data set on disk: every grid once, and a table of augmentations.

    metadata.json        sizes, puzzle ids in order, how it was built, SHA-256 of the other two files
    data.safetensors     the arrays of `PuzzleStore`
    split_manifest.json  hash of every puzzle and pair, its rule where that is known, and the training puzzles dropped
                         for overlap

A data set is written to a temporary folder and renamed, so a folder of that name is always complete.
"""

import errno
import json
import os
import re
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dataset.augment import augmented_name
from dataset.grids import SEQ_LEN, VOCAB_SIZE, Grid
from dataset.whereabouts import build_command, elsewhere, looked_at
from utils.files import sha256_of
from utils.path_kinds import TRAINED, kind_of

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"
DATA_FILE = "data.safetensors"
MANIFEST_FILE = "split_manifest.json"
Split = Literal["train", "test"]


class DatasetError(ValueError):
    """A data set that is missing, incomplete, or not of this program's format."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetMetadata(_Record):
    """What a model needs to know of a data set, and how it was built."""

    format_version: int
    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    puzzle_ids: tuple[str, ...]
    puzzle_subsets: tuple[str, ...]
    puzzle_splits: tuple[Split, ...]
    build: dict[str, object]
    sha256: dict[str, str]


class PuzzleRule(_Record):
    """What is known of a puzzle that was made by a rule (`dataset.known_rules`).

    rule: makes every output of its input.
    donor: another rule of the family and split that shows on the same inputs, and answers the query otherwise; None
        where none was found.
    chance: the exact match of a random rule of the family and split.
    """

    family: str
    rule: tuple[int, ...]
    donor: tuple[int, ...] | None
    chance: float


class ManifestPuzzle(_Record):
    id: str
    subset: str
    split: Split
    puzzle_hash: str
    pair_hashes: tuple[str, ...]
    rule: PuzzleRule | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_known(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        if self.rule is None:
            del values["rule"]
        return values


DropReason = Literal["held_out", "identical", "contradicting"]


class DroppedPuzzle(_Record):
    """A puzzle left out.

    reason: `held_out`: its id or a pair is that of a held-out puzzle. `identical`: a puzzle of its id with the same
        pairs was there before. `contradicting`: one of its id with some of its pairs, and others, was there before.
    shares_pairs_with: the ids of the puzzles that are held out, or were there before.
    kept_from: the subset of the puzzle that was there before.
    """

    id: str
    subset: str
    shares_pairs_with: tuple[str, ...]
    reason: DropReason = "held_out"
    kept_from: str | None = None


class SplitManifest(_Record):
    puzzles: tuple[ManifestPuzzle, ...]
    dropped: tuple[DroppedPuzzle, ...]


@dataclass(frozen=True)
class PuzzleStore:
    """All puzzles of a data set as flat arrays.

    Pair p has grids 2p (input) and 2p + 1 (output, 0 × 0 where unknown). Puzzle i has the pairs
    `puzzle_pairs[i]:puzzle_pairs[i + 1]`, demonstrations first, and the augmentations
    `puzzle_augmentations[i]:puzzle_augmentations[i + 1]`, the identity first. An augmentation's index + 1 is its
    puzzle identifier (0 is blank).
    """

    cells: UInt8[np.ndarray, " cells"]
    grid_starts: Int64[np.ndarray, " grids+1"]
    grid_shapes: UInt8[np.ndarray, "grids 2"]
    puzzle_pairs: Int64[np.ndarray, " puzzles+1"]
    puzzle_demos: Int64[np.ndarray, " puzzles"]
    puzzle_augmentations: Int64[np.ndarray, " puzzles+1"]
    dihedral: UInt8[np.ndarray, " augmentations"]
    colors: UInt8[np.ndarray, "augmentations 10"]
    metadata: DatasetMetadata
    manifest: SplitManifest

    def grid(self, index: int) -> Grid:
        """A grid as it stands in the task, unaugmented."""
        return self.cells[self.grid_starts[index] : self.grid_starts[index + 1]].reshape(self.grid_shapes[index])

    def puzzles_of(self, split: Split) -> Int64[np.ndarray, " n"]:
        """Indices of a split's puzzles, in the order of the data set."""
        return np.flatnonzero(np.array([s == split for s in self.metadata.puzzle_splits], dtype=bool))

    def augmentation_name(self, puzzle: int, augmentation: int) -> str:
        """`id|||t<k>|||<10 digits>` of an augmentation, by its index in the whole table."""
        return augmented_name(
            self.metadata.puzzle_ids[puzzle], int(self.dihedral[augmentation]), self.colors[augmentation]
        )


ARRAY_FIELDS = tuple(f.name for f in fields(PuzzleStore) if f.name not in ("metadata", "manifest"))


def describe(
    arrays: dict[str, np.ndarray],
    manifest: SplitManifest,
    build: dict[str, object],
    sha256: dict[str, str],
    *,
    vocab_size: int = VOCAB_SIZE,
    seq_len: int = SEQ_LEN,
) -> DatasetMetadata:
    """The metadata of puzzles in the order of their manifest.

    Args:
        sha256: the hashes of its files, {} where there are none.
    """
    return DatasetMetadata(
        format_version=FORMAT_VERSION,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=1 + len(arrays["dihedral"]),
        puzzle_ids=tuple(p.id for p in manifest.puzzles),
        puzzle_subsets=tuple(p.subset for p in manifest.puzzles),
        puzzle_splits=tuple(p.split for p in manifest.puzzles),
        build=build,
        sha256=sha256,
    )


def save_store(
    folder: Path,
    arrays: dict[str, np.ndarray],
    manifest: SplitManifest,
    build: dict[str, object],
    vocab_size: int,
    seq_len: int,
) -> None:
    """Write a data set, all or nothing. A data set that stands there already is replaced.

    Raises:
        DatasetError: the folder holds something else.
    """
    check_output_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _save_arrays(arrays, temporary / DATA_FILE)
        (temporary / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1))
        hashes = {name: sha256_of(temporary / name) for name in (DATA_FILE, MANIFEST_FILE)}
        metadata = describe(arrays, manifest, build, hashes, vocab_size=vocab_size, seq_len=seq_len)
        (temporary / METADATA_FILE).write_text(metadata.model_dump_json(indent=1))
        replaced = folder.parent / f".{folder.name}.old-{os.getpid()}"
        if folder.exists():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raises what the system has said; the library's own error has it in its text."""
    try:
        save_file({name: np.ascontiguousarray(arrays[name]) for name in ARRAY_FIELDS}, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def check_output_folder(folder: Path) -> None:
    """Refuse to replace a folder that is not a data set."""
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / METADATA_FILE).exists()):
        return
    if folder.exists():
        raise DatasetError(f"{folder}: exists and is not a data set; choose another --output-dir or move it away")


def load_store(folder: str | Path) -> PuzzleStore:
    """A data set from its folder, its files checked against their hashes.

    Raises:
        DatasetError: missing, of another format, incomplete or damaged; the message says how to build it.
    """
    folder = Path(folder)
    rebuild = f"build it with: {build_command(folder)}"
    path = folder / METADATA_FILE
    if not path.exists():
        kind = kind_of(folder)
        missing = f" without {METADATA_FILE}" if folder.is_dir() and kind not in TRAINED else ""
        raise DatasetError(f"{folder}: no data set there ({kind}{missing}); {_remedy(folder, kind)}")
    try:
        raw = json.loads(path.read_text())
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{folder}: stale data set, format {version} instead of {FORMAT_VERSION}; {rebuild}")
        metadata = DatasetMetadata.model_validate_json(path.read_text())
        for name, expected in metadata.sha256.items():
            if sha256_of(folder / name) != expected:
                raise DatasetError(f"{folder / name}: does not match its hash in {METADATA_FILE}; {rebuild}")
        arrays = load_file(folder / DATA_FILE)
        manifest = SplitManifest.model_validate_json((folder / MANIFEST_FILE).read_text())
        return PuzzleStore(**{name: arrays[name] for name in ARRAY_FIELDS}, metadata=metadata, manifest=manifest)
    except (
        OSError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        ValidationError,
        SafetensorError,
        KeyError,
    ) as error:
        raise DatasetError(f"{folder}: damaged or incomplete data set ({error}); {rebuild}") from error


def _remedy(folder: Path, kind: str) -> str:
    """What to write, where something else stands in the place of a data set."""
    rebuild = f"build it with: {build_command(folder)}"
    if kind in TRAINED:
        return "data_paths names a folder that dataset.build_arc_dataset wrote"
    if kind.endswith(f"a data set, {folder.parent}"):
        return "name that folder"
    if folder.is_file():
        return "a data set is a folder, built from a file of tasks by --source SUBSET=FILE"
    if not folder.is_dir():
        return f"no such folder{looked_at(folder, METADATA_FILE)}; {rebuild}"
    if any(folder.rglob("*.json")):
        return f"task files are built into one by --source SUBSET={folder}; {rebuild}"
    return f"{rebuild}{elsewhere(folder, METADATA_FILE)}"


def _starts(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate tables of start positions, each of which begins at 0."""
    joined = [parts[0]]
    for part in parts[1:]:
        joined.append(part[1:] + joined[-1][-1])
    return np.concatenate(joined)


def load_stores(folders: list[str] | tuple[str, ...]) -> PuzzleStore:
    """One or several data sets as one; the hashes in its metadata are named by the paths of their files.

    Raises:
        DatasetError: see `load_store`; also when two of them hold the same puzzle id.
    """
    if not folders:
        raise DatasetError("data_paths is empty: name at least one data set")
    stores = [load_store(folder) for folder in folders]
    hashes = {f"{f}/{name}": h for f, s in zip(folders, stores, strict=True) for name, h in s.metadata.sha256.items()}
    if len(stores) == 1:
        return replace(stores[0], metadata=stores[0].metadata.model_copy(update={"sha256": hashes}))
    seen: dict[str, str] = {}
    for folder, store in zip(folders, stores, strict=True):
        for puzzle_id in store.metadata.puzzle_ids:
            if puzzle_id in seen:
                raise DatasetError(
                    f"puzzle '{puzzle_id}' is in both {seen[puzzle_id]} and {folder}; build one data set of all "
                    "their --subsets: puzzles that stand twice are then left out"
                )
            seen[puzzle_id] = str(folder)
    arrays = {}
    for name in ARRAY_FIELDS:
        parts = [getattr(store, name) for store in stores]
        is_starts = name in ("grid_starts", "puzzle_pairs", "puzzle_augmentations")
        arrays[name] = _starts(parts) if is_starts else np.concatenate(parts)
    metadatas = [store.metadata for store in stores]
    manifests = [store.manifest for store in stores]
    manifest = SplitManifest(
        puzzles=sum((m.puzzles for m in manifests), ()), dropped=sum((m.dropped for m in manifests), ())
    )
    metadata = describe(
        arrays,
        manifest,
        {str(folder): m.build for folder, m in zip(folders, metadatas, strict=True)},
        hashes,
        vocab_size=metadatas[0].vocab_size,
        seq_len=metadatas[0].seq_len,
    )
    return PuzzleStore(**arrays, metadata=metadata, manifest=manifest)
