"""Updates of test-time training against slower ones."""

import pytest
import torch

from benchmarks import adaptation
from inference.shipped import shipped_base
from inference.solver import Solver


def test_every_side_has_its_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "UPDATES_A_CALL", 1)
    monkeypatch.setattr(adaptation, "TOGETHER", 2)
    lines = [line.strip("| ").split(" | ") for line in adaptation.report(1, (2, 3)).splitlines() if " x " in line]
    assert [line[0] for line in lines] == ["2 x 2", "3 x 3"]
    assert {len(line) for line in lines} == {4}
    assert all(float(ratio.split()[0]) > 0 for line in lines for ratio in line[1:])


def test_the_slower_variant_computes_more_rows_in_another_dtype() -> None:
    solver = Solver.load(shipped_base(), device="cpu")
    seen: list[tuple[int, torch.dtype]] = []
    for dtype, answers_alone in ((torch.float32, False), (torch.bfloat16, True)):
        model = adaptation.computed_in(solver.model, dtype, answers_alone=answers_alone)
        block = model.inner.L_level.layers[-1]
        hook = block.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append((len(inputs[0]), inputs[0].dtype)))
        solver.predict(adaptation.random_task(3), votes=1)
        hook.remove()
    slower, faster = (seen[len(seen) // 2 - 1], seen[-1])
    assert slower[0] > 3 * faster[0]
    assert (slower[1], faster[1]) == (torch.float32, torch.bfloat16)
