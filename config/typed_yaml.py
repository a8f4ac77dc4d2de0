"""The words of a user's config file as they are typed, where YAML takes them for numbers, dates, true or false."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from config.keys import Keys

NULL = "tag:yaml.org,2002:null"


def as_typed(path: Path, known: Keys) -> list[str]:
    """Overrides that give the keys of text the words that stand in the file: `++run_name='1e3'` for `run_name: 1e3`.

    A file whose own keys do not come last in its defaults has none: others may replace them.
    """
    root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or not _comes_last(root):
        return []
    texts = [(key, _words(node)) for key, node in _values(root, "") if key in known.texts]
    return [f"++{key}={words}" for key, words in texts if words is not None]


def _comes_last(root: yaml.MappingNode) -> bool:
    defaults = next((value for key, value in root.value if key.value == "defaults"), None)
    return not isinstance(defaults, yaml.SequenceNode) or defaults.value[-1].value == "_self_"


def _values(mapping: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in mapping.value:
        yield f"{prefix}{key.value}", value
        if isinstance(value, yaml.MappingNode):
            yield from _values(value, f"{prefix}{key.value}.")


def _words(node: yaml.Node) -> str | None:
    """A scalar or a list of scalars in Hydra's quotes; None where there is something else."""
    if isinstance(node, yaml.SequenceNode):
        words = [_words(element) for element in node.value]
        return None if None in words else f"[{','.join(map(str, words))}]"
    if not isinstance(node, yaml.ScalarNode) or node.tag == NULL or "${" in node.value:
        return None
    return QuotedString(node.value, Quote.single).with_quotes()
