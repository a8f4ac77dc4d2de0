"""A checkpoint folder whose hashes are right and whose pickles hold code: refused, and nothing of it is run."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from checkpoints.checkpoint import Checkpoint, CheckpointError, TrainedOn, open_checkpoint
from checkpoints.writer import CheckpointWriter

READERS: dict[str, Callable[[Checkpoint], Any]] = {
    "optim.pt": lambda checkpoint: checkpoint.optimizer_state(),
    "rank_0.pt": lambda checkpoint: checkpoint.rank_state(0),
}


class Runs:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def written(folder: Path, contents: dict[str, Any]) -> Checkpoint:
    """A checkpoint of these contents, with an honest manifest."""
    writer = CheckpointWriter(folder, 1)
    writer.save_rank(0, contents["rank_0.pt"])
    return open_checkpoint(writer.save_shared(nn.Linear(1, 1), None, contents["optim.pt"], {}, TrainedOn(), {}))


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("place", ["value", "nested", "key", "all"])
def test_code_is_refused_and_not_run(tmp_path: Path, file: str, place: str) -> None:
    mark = tmp_path / "mark"
    code: Any = Runs(mark)
    state = {"value": {"x": code}, "nested": {"x": [(1, {"y": code})]}, "key": {code: 1}, "all": code}[place]
    checkpoint = written(tmp_path, {**{name: {"x": 1} for name in READERS}, file: state})
    with pytest.raises(CheckpointError, match=rf"{file}: refused, and nothing of it was run"):
        READERS[file](checkpoint)
    assert not mark.exists()
    for other in READERS.keys() - {file}:
        assert READERS[other](checkpoint) == {"x": 1}
    torch.load(checkpoint.path / file, weights_only=False)
    assert mark.exists(), "the code of this test does not run at all"


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("content", ["plain pickle", "text", "empty", "cut off", "a tensor", "absent"])
def test_anything_else_is_refused_by_its_name(tmp_path: Path, file: str, content: str) -> None:
    mark = tmp_path / "mark"
    checkpoint = written(tmp_path, {name: {"x": torch.zeros(9)} for name in READERS})
    path = checkpoint.path / file
    if content == "a tensor":
        torch.save(torch.zeros(3), path)
    elif content == "absent":
        path.unlink()
    else:
        whole = path.read_bytes()
        pickled = pickle.dumps(Runs(mark), protocol=2)
        damaged = {"plain pickle": pickled, "text": b"hello", "empty": b"", "cut off": whole[: len(whole) // 2]}
        path.write_bytes(damaged[content])
    with pytest.raises(CheckpointError, match=file):
        READERS[file](checkpoint)
    assert not mark.exists()
