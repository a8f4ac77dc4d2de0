"""A random two-layer Llama with a tokenizer made on the spot, saved as a folder like any model's."""

from pathlib import Path

import pytest

NO_TRANSFORMERS = "transformers is not installed: pip install -e '.[llm]'"
CHAT_TEMPLATE = (
    "{% for message in messages %}<chat>{{ message['content'] }}</chat>{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def save_tiny_llama(
    folder: Path, *, seed: int = 0, chat_template: str | None = None, hidden_size: int = 32, max_positions: int = 2048
) -> Path:
    """Write model and tokenizer; runs of up to three digits, line breaks and other runs are tokens."""
    pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "\n", "<chat>", "</chat>", "<answer>"]
    words += [f"{number:0{width}d}" for width in (1, 2, 3) for number in range(10**width)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d{1,3}|\n|<[a-z/]+>|[^\d\n<]+"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.chat_template = chat_template
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_positions,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
