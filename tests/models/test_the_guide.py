"""docs/add_an_encoder.md is true: its encoder trains as it stands there."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch

from config.schema import TrainConfig
from dataset.store import PuzzleStore
from models import create_model
from models.encoders.base import ENCODERS
from models.losses import create_loss_head
from models.recursive_reasoning.carry import RaggedInnerCarry
from tests.conftest import small_batch
from tests.processes import ROOT

NAME = "pair_tokens"


@pytest.fixture
def registered() -> Iterator[None]:
    """The guide's file, imported."""
    text = (ROOT / "docs/add_an_encoder.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "docs/add_an_encoder.md", "exec"), {"__name__": "pair_tokens"})
    yield
    ENCODERS.pop(NAME)


@pytest.mark.usefixtures("registered")
def test_the_encoder_of_the_guide_learns(shrunk_config: Callable[..., TrainConfig], store: PuzzleStore) -> None:
    arch = shrunk_config("max_demos=4").arch.model_copy(update={"encoder_type": NAME})
    torch.manual_seed(0)
    model = create_model(arch, store.metadata).train()
    head = create_loss_head(arch, model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch, carry = small_batch(store, 4), None
    losses = []
    for _ in range(12):
        carry, loss, _, outputs = head(carry or model.initial_carry(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert isinstance(carry.inner_carry, RaggedInnerCarry)
    assert torch.equal(outputs["context_mask"].sum(1), 1 + batch["demo_mask"].sum(1))
    assert losses[-1] < 0.8 * losses[0]
