"""1,000 damaged task files: each loads exactly as its JSON says, or gives one TaskError that names the file.

They run in a process of their own (`main` below), where a crash, a hang or too much memory shows. What a file should
give is decided by `expected`, which shares no code with the loader.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dataset.arc_tasks import TaskError
from dataset.json_files import MAX_FILE_BYTES
from dataset.subsets import load_subset

FILES = 1000
DIGITS = frozenset("0123456789")
Files = list[bytes | None]  # challenges, solutions


def expected(files: Files) -> list[tuple[str, list[Any], list[Any]]] | None:
    """Id, demonstrations and tests of each task as (input, output) lists, or None where the files must be refused.

    Keys that are neither a task nor a list of pairs are passed over.
    """
    try:
        challenges, solutions = (None if content is None else strict_json(content) for content in files)
    except (ValueError, RecursionError):
        return None
    if not isinstance(challenges, dict) or not challenges:
        return None
    if any(isinstance(challenges.get(part), list) for part in ("train", "test")):
        challenges = {"arc_own_challenges": challenges}
    challenges = {name: task for name, task in challenges.items() if looks_like_a_task(task) or is_group(task)}
    if not challenges:
        return None
    if files[1] is not None and (not isinstance(solutions, dict) or set(solutions) != set(challenges)):
        return None
    tasks = []
    for name, task in challenges.items():
        try:
            if is_group(task):
                if solutions is not None:
                    return None
                half = (len(task) + 1) // 2
                task = {"train": task[:half], "test": task[half:]}
            demos = [both(pair) for pair in task["train"]]
            inputs = [pair[0] if is_two(pair) else pair["input"] for pair in task["test"]]
            own = [pair[1] if is_two(pair) else pair.get("output", ...) for pair in task["test"]]
            answers = solutions[name] if solutions is not None else [... if a in (None, []) else a for a in own]
            tests = list(zip(inputs, answers, strict=True))
        except (TypeError, KeyError, AttributeError, ValueError, IndexError):
            return None
        grids = [grid for pair in demos + tests for grid in pair if grid is not ...]
        lists = [task["train"], task["test"], answers]
        named = 0 < len(name) <= 200 and "|||" not in name and all(char.isprintable() for char in name)
        if not (named and demos and tests and all(type(x) is list for x in lists) and all(map(is_grid, grids))):
            return None
        tasks.append((name, demos, tests))
    return tasks


def is_two(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2


def both(pair: Any) -> tuple[Any, Any]:
    return (pair[0], pair[1]) if is_two(pair) else (pair["input"], pair["output"])


def looks_like_a_task(value: Any) -> bool:
    return isinstance(value, dict) and bool({"train", "test"} & set(value))


def is_group(value: Any) -> bool:
    """Whether anything in a list looks like a pair: an object with one of its keys, or two lists of lists."""

    def looks_like_a_grid(value: Any) -> bool:
        is_list_of_lists = isinstance(value, list) and bool(value) and isinstance(value[0], list)
        return is_list_of_lists and not any(isinstance(cell, list) for cell in value[0])

    def looks_like_a_pair(value: Any) -> bool:
        has_a_key = isinstance(value, dict) and bool({"input", "output"} & set(value))
        return has_a_key or (is_two(value) and all(looks_like_a_grid(grid) for grid in value))

    return isinstance(value, list) and any(looks_like_a_pair(element) for element in value)


def strict_json(content: bytes) -> Any:
    def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    if len(content) > MAX_FILE_BYTES:
        raise ValueError("too large")
    return json.loads(str(content, "utf-8-sig"), object_pairs_hook=each_key_once, parse_constant=refuse)


def is_grid(value: Any) -> bool:
    if type(value) is not list or any(type(row) is not list for row in value):
        return False
    widths = {len(row) for row in value}
    sizes = len(value) in range(1, 31) and len(widths) == 1 and max(widths) in range(1, 31)
    return sizes and all(repr(cell) in DIGITS for row in value for cell in row)


def valid_files(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A few tasks of random grids: solutions in a file of their own, in the challenges, or nowhere."""
    form = rng.choice(["file", "inline", "none"])

    def grid() -> list[list[int]]:
        height, width = (rng.choice([1, 2, 3, 5, 30]) for _ in range(2))
        return [[rng.randrange(10) for _ in range(width)] for _ in range(height)]

    def pair(labelled: bool) -> dict[str, Any]:
        return {"input": grid(), **({"output": grid()} if labelled else {})}

    challenges = {
        rng.choice(["007bbfb7", "Above 1", "é", "x" * 200]) + str(i) * (i > 0): {
            "train": [pair(True) for _ in range(rng.randint(1, 3))],
            "test": [pair(form == "inline") for _ in range(rng.randint(1, 2))],
        }
        for i in range(rng.randint(1, 3))
    }
    challenges = {name[-200:]: task for name, task in challenges.items()}
    solutions = {name: [grid() for _ in task["test"]] for name, task in challenges.items()}
    return challenges, solutions if form == "file" else None


ODD: list[Any] = [None, True, False, 0, 1, 9, 10, -1, 255, 256, 2**63, -(2**64), 10**4000, 0.0, 1.0, 1e308, 0.5]
ODD += ["", "1", "a\0b", "\ud800", "|||", "x" * 10**5, [], [[]], [[0]], [0], [None], {}, {"input": [[1]]}, {"0": [[1]]}]
NAMES = ["id", "", "a|||b", "\n", "\0", "output", "input", "train", "x" * 201, "\ud800"]
TOKENS = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "+1", "1.0", "1e0", "0x1", "1_0", "'", "nul", "true"]
TOKENS += ["//", ",", "[", "]", "{", "}", '"', "\\", "\0"]
TOKENS += ["9" * 5000, "-" + "9" * 5000, "[" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 5000, "1" + "0" * 10**6]


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as (parent, key)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [found for key in keys for found in ((value, key), *nodes(value[key]))]


def outer_nodes(value: Any) -> list[tuple[Any, Any]]:
    """Those that are no cells, of which there are far more."""
    return [(parent, key) for parent, key in nodes(value) if not isinstance(parent[key], int)]


def damage_structure(rng: random.Random, value: Any) -> None:
    parent, key = rng.choice(nodes(value) if rng.random() < 0.3 else outer_nodes(value))
    old = parent[key]
    kind = rng.randrange(10)
    if kind == 0 or isinstance(old, int):
        parent[key] = rng.choice(ODD)
    elif kind == 1:
        del parent[key]
    elif kind == 2:
        parent[key] = [old]
    elif kind == 3:
        parent[key] = {"input": old}
    elif kind == 4 and isinstance(old, list):
        old.insert(rng.randrange(len(old) + 1), rng.choice([*ODD, *old]))
    elif kind == 5 and isinstance(old, list):
        parent[key] = old * rng.choice([2, 31, 100])
    elif kind == 6 and isinstance(old, dict):
        old[rng.choice(NAMES)] = rng.choice(ODD)
    elif kind == 7:  # another id for a task
        value[rng.choice(NAMES)] = value.pop(rng.choice(list(value)))
    elif kind == 8:
        for _ in range(rng.choice([10, 100])):
            parent[key] = [parent[key]]
    else:
        other, place = rng.choice(outer_nodes(value))
        parent[key] = json.loads(json.dumps(other[place]))


def damage_text(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + text[place + rng.randint(1, 9) :]
    if kind == 2:  # a token in place of a digit
        digits = [i for i, char in enumerate(text) if char.isdigit()] or [0]
        place = rng.choice(digits)
        return text[:place] + rng.choice(TOKENS) + text[place + 1 :]
    if kind == 3:
        return text[:place] + rng.choice(TOKENS) + text[place:]
    if kind == 4:  # a key that stands twice
        key = rng.choice(["input", "output", "train", "test"])
        return text.replace(f'"{key}":', f'"{key}": [], "{key}":', 1)
    return rng.choice(
        [text * 2, f"[{text}]", f"{text}\n\n ", f" \t\n{text}", f"{text},", text.replace('"', "'"), "", "{}"]
    )


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return content.decode(errors="replace").encode(rng.choice(["utf-8-sig", "utf-16", "utf-32", "utf-16-le"]))
    if kind == 1:
        return content.decode(errors="replace").encode("latin-1", errors="replace")
    if kind == 2:
        return (
            content.ljust(rng.choice([MAX_FILE_BYTES, MAX_FILE_BYTES + 1])) if rng.random() < 0.2 else b"\0" + content
        )
    damaged = bytearray(content or b"?")
    for _ in range(rng.choice([1, 1, 3, 50])):
        place = rng.randrange(len(damaged))
        damaged[place] = damaged[place] ^ (1 << rng.randrange(8)) if kind == 3 else rng.randrange(256)
    return bytes(damaged)


def bulky(rng: random.Random) -> bytes:
    """A megabyte that is costly to hold, or to tell in an error message."""
    unit = rng.choice(['{"input":[[0]],"output":[[0]]},', "[],", '{"":0},', "[[[[[0]]]]],", '"😀",', "1.5,", "{},"])
    many = unit * (2**20 // len(unit)) + rng.choice([unit[:-1], "0"])
    return f'{{"a": {{"test": [{{"input": [[1]]}}], "train": [{many}]}}}}'.encode()


def damaged_files(seed: int) -> tuple[str, Files]:
    """Files number `seed`, and what was done to them."""
    rng = random.Random(seed)
    values: list[Any] = list(valid_files(rng))
    target = rng.randrange(2) if values[1] is not None else 0
    kind = rng.choices(["none", "structure", "text", "bytes", "all", "bulk"], [5, 45, 25, 15, 9, 1])[0]
    if kind in ("structure", "all"):
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if outer_nodes(values[target]):
                damage_structure(rng, values[target])
    texts = [None if value is None else json.dumps(value, ensure_ascii=rng.random() < 0.5) for value in values]
    if kind in ("text", "all"):
        texts[target] = damage_text(rng, texts[target] or "")
    files: Files = [None if text is None else text.encode(errors="surrogatepass") for text in texts]
    if kind in ("bytes", "all"):
        files[target] = damage_bytes(rng, files[target] or b"")
    return kind, [bulky(rng), None] if kind == "bulk" else files


def check(folder: Path, files: Files) -> str:
    """Load one set of files; an `AssertionError`, or whatever else the loader may raise, is a fault of the loader."""
    paths = [folder / f"arc_own_{name}.json" for name in ("challenges", "solutions")]
    for path, content in zip(paths, files, strict=True):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    wanted = expected(files)
    try:
        tasks, _ = load_subset("own", str(folder / "arc"))
    except TaskError as error:
        message = str(error)
        assert message.startswith(tuple(f"{path}: " for path in paths)), f"names no file: {message[:500]}"
        assert message.isprintable(), f"more than a line: {message[:500]!r}"
        assert len(message) < len(str(folder)) + 500, f"{len(message)} characters: {message[:500]}"
        assert wanted is None, f"refused though it is valid: {message}"
        return "refused"
    assert wanted is not None, "loaded though it is malformed"
    found = [
        (task.id, *([(pair.input, pair.output) for pair in part] for part in (task.train, task.test))) for task in tasks
    ]
    assert [name for name, _, _ in found] == [name for name, _, _ in wanted]
    for (_, *parts), (_, *wanted_parts) in zip(found, wanted, strict=True):
        assert [len(part) for part in parts] == [len(part) for part in wanted_parts]
        grids = [grid for part in parts for pair in part for grid in pair]
        wanted_grids = [grid for part in wanted_parts for pair in part for grid in pair]
        for grid, rows in zip(grids, wanted_grids, strict=True):
            assert (grid is None) == (rows is ...)
            assert grid is None or (grid.dtype.name == "uint8" and grid.tolist() == rows)
    return "loaded"


def peak_bytes() -> int:
    """The most memory this process has held (Linux). `ru_maxrss` would count what its parent held before `exec`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def main(folder: Path) -> None:
    """Check all files; print counts, faults, the longest time and the peak memory as JSON."""
    counts: Counter[str] = Counter()
    faults, slowest = [], 0.0
    for seed in range(FILES):
        kind, files = damaged_files(seed)
        started = time.monotonic()
        try:
            counts[f"{kind} {check(folder, files)}"] += 1
        except BaseException as fault:  # noqa: BLE001 - whatever it is, it belongs into the report
            faults.append(f"seed {seed}, {kind}: {type(fault).__name__}: {str(fault)[:500]}")
        slowest = max(slowest, time.monotonic() - started)
    peak = peak_bytes()
    print(json.dumps({"counts": counts, "faults": faults, "slowest": slowest, "peak_bytes": peak}))  # noqa: T201


def test_a_thousand_damaged_files_load_as_they_say_or_are_refused_by_name(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert not report["faults"], "\n".join(report["faults"][:20])
    counts = report["counts"]
    assert sum(counts.values()) == FILES
    for kind in ("structure", "text", "bytes", "all", "bulk"):  # neither outcome may be the only one
        assert counts.get(f"{kind} refused", 0) >= 3, counts
    assert sum(count for name, count in counts.items() if name.endswith("loaded")) > FILES / 10, counts
    assert counts["none loaded"] > 10
    assert "none refused" not in counts
    assert report["slowest"] < 30
    assert report["peak_bytes"] < 2**30


def test_the_largest_file_of_the_costliest_kind_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    unit = '{"":0},'
    text = f'{{"a": [{unit * (MAX_FILE_BYTES // len(unit) - 2)}0]}}'
    assert MAX_FILE_BYTES - 20 < len(text) <= MAX_FILE_BYTES
    (tmp_path / "arc_own_challenges.json").write_text(text)
    code = """
from dataset.arc_tasks import TaskError
from dataset.subsets import load_subset
from tests.dataset.test_fuzz_tasks import peak_bytes
try:
    load_subset("own", "arc")
except TaskError:
    print(peak_bytes())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert int(done.stdout) < 2**30, done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
