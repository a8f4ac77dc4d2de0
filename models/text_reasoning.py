"""A frozen language model that reads a task as text: any transformers model, causal or bidirectional.

A task is rendered as rows of digits (through the tokenizer's chat template, where it has one), and one layer's hidden
states are pooled into z_init. The model runs in evaluation mode without gradients; nothing ever trains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from dataset.grids import Grid
from models.language_models import ModelSource, TextModelError, first_line, transformers
from utils.files import sha256_of_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INSTRUCTION = "Each input grid becomes its output grid by one rule. Find the rule and apply it to the test input."
# Tokenizers without a limit of their own say 10^30.
NO_LIMIT = 1 << 30

Pooling = Literal["last", "mean"]
Demonstrations = Sequence[tuple[Grid, Grid]]


@dataclass(frozen=True)
class TextLatents:
    """z_init (float32), and the hidden states that it was pooled from (in the model's dtype)."""

    z_init: Float[Tensor, "batch text_hidden"]
    states: Float[Tensor, "batch tokens text_hidden"]


@dataclass(frozen=True)
class TaskText:
    """A rendered task: its text, its tokens, and how many demonstrations did not fit."""

    text: str
    tokens: tuple[int, ...]
    dropped: int = 0


def _rows(grid: Grid) -> str:
    return "\n".join("".join(map(str, row)) for row in grid.tolist())


def render_task(demonstrations: Demonstrations, query: Grid) -> str:
    """A task as plain text: an instruction, each demonstration and the test input as rows of digits."""
    parts = [INSTRUCTION]
    for number, (grid, result) in enumerate(demonstrations, start=1):
        parts.append(f"Example {number}\nInput:\n{_rows(grid)}\nOutput:\n{_rows(result)}")
    parts.append(f"Test\nInput:\n{_rows(query)}\nOutput:\n")
    return "\n\n".join(parts)


class TaskTokenizer:
    """Renders and tokenizes tasks within the token budget.

    Args:
        source: where the tokenizer lies.
        chat_template: `auto` uses the tokenizer's chat template where it has one, `required` insists, `none` does not.
        max_tokens: the budget (None: what the model can read).
        overflow: `truncate` drops demonstrations from the last on until the text fits (never the test input, and at
            least one demonstration stays); `error` refuses such a text.

    Raises:
        TextModelError: no tokenizer there, the template is missing, or a budget beyond what the model can read.
    """

    def __init__(self, source: ModelSource, *, chat_template: str, max_tokens: int | None, overflow: str):
        library = transformers()
        try:
            self.tokenizer = library.AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
            config = library.AutoConfig.from_pretrained(source.folder, local_files_only=True).get_text_config()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise TextModelError(
                f"{source.folder}: its tokenizer or config cannot be read: {first_line(error)}"
            ) from error
        self.overflow, self.num_layers = overflow, config.num_hidden_layers
        has_template = self.tokenizer.chat_template is not None
        if chat_template == "required" and not has_template:
            raise TextModelError(f"{source.folder}: the tokenizer has no chat template; use arch.chat_template=auto")
        self.uses_template = has_template and chat_template != "none"
        positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
        limit = min(positions, self.tokenizer.model_max_length)
        if max_tokens is not None and max_tokens > limit:
            raise TextModelError(f"arch.max_text_tokens={max_tokens}, but the model reads at most {limit}")
        self.max_tokens = max_tokens or limit

    @property
    def identity(self) -> str:
        """A hash of all that decides on a text's tokens."""
        tokenizer = self.tokenizer
        vocabulary = (
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        )
        parts = [type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map, self.uses_template]
        return sha256_of_text(repr(parts))

    def __call__(self, name: str, demonstrations: Demonstrations, query: Grid) -> TaskText:
        """The text of a task; `name` is what an error calls it.

        Raises:
            TextModelError: it does not fit.
        """
        shown = list(demonstrations)
        while True:
            text, tokens = self._tokens(render_task(shown, query))
            if len(tokens) <= self.max_tokens:
                return TaskText(text, tuple(tokens), len(demonstrations) - len(shown))
            if self.overflow == "error" or len(shown) <= 1:
                kept = "" if self.overflow == "error" else f" with {len(shown)} of its demonstrations"
                raise TextModelError(
                    f"task '{name}' is {len(tokens)} tokens long{kept}, the budget is {self.max_tokens}: use a model "
                    "that reads more, arch.demo_overflow=truncate, or puzzles of smaller grids (--max-side)"
                )
            shown.pop()

    def _tokens(self, text: str) -> tuple[str, list[int]]:
        if not self.uses_template:
            return text, self.tokenizer(text, verbose=False)["input_ids"]
        message = [{"role": "user", "content": text}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return text, self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def pad_tokens(texts: Sequence[TaskText]) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids padded on the right to the longest, and which are real."""
    rows = [torch.tensor(text.tokens) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return ids, mask


class TextReasoningModule(nn.Module):
    """The frozen language model: token ids → one layer's hidden states → z_init. Always in evaluation mode.

    Args:
        layer: 0 is the embeddings, 1.. the layers; negative numbers count from the last.

    Raises:
        TextModelError: no model there, or no such layer.
    """

    def __init__(self, source: ModelSource, *, layer: int, pooling: Pooling, dtype: str, device: torch.device):
        super().__init__()
        library = transformers()
        try:
            library.utils.logging.disable_progress_bar()
            model, loading = library.AutoModel.from_pretrained(
                source.folder, local_files_only=True, dtype=DTYPES[dtype], output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise TextModelError(f"{source.folder}: the model cannot be loaded: {first_line(error)}") from error
        missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)  # nothing reads a pooler
        if missing:
            raise TextModelError(f"{source.folder}: {len(missing)} weights are missing, {missing[0]} among them")
        self.model, self.pooling = model.to(device), pooling
        depth = model.config.get_text_config().num_hidden_layers
        self.layer = absolute_layer(layer, depth)
        self.requires_grad_(False)
        self.eval()

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.model.config.get_text_config().hidden_size

    def train(self, mode: bool = True) -> "TextReasoningModule":
        """Stays in evaluation mode: a frozen model has no dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> TextLatents:
        outputs = self.model(input_ids=ids.long(), attention_mask=mask.long(), output_hidden_states=True)
        states = outputs.hidden_states[self.layer]
        if self.pooling == "last":
            return TextLatents(states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1].float(), states)
        weights = mask.unsqueeze(-1).float()
        return TextLatents((states.float() * weights).sum(1) / weights.sum(1), states)


def absolute_layer(layer: int, depth: int) -> int:
    """The layer counted from the embeddings, 0..depth.

    Raises:
        TextModelError: there is no such layer.
    """
    if not -depth - 1 <= layer <= depth:
        raise TextModelError(f"arch.layer={layer}: the model has the layers 0 (embeddings) to {depth}, -1 is the last")
    return layer % (depth + 1)
