"""Latents on disk: a hit is what recomputation gives, and nothing made by something else is taken for it."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from config.schema import HybridArch, load_config
from inference.latent_cache import IDENTITY_FILE, LatentCache, TextSystem
from models.language_models import TextModelError
from models.text_reasoning import TaskText, pad_tokens
from tests.tiny_llama import CHAT_TEMPLATE, save_tiny_llama

MakeCache = Callable[..., LatentCache]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Processes are forked here, and threads do not survive that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_cache(tiny_llama: Path, tmp_path: Path) -> MakeCache:
    """`make_cache("arch.key=value", ..., folder=..., with_states=...)`: a cache of the random Llama."""

    def make(*overrides: str, folder: Path = tmp_path / "cache", with_states: bool = False) -> LatentCache:
        arch = load_config("cfg_pretrain_trm_hybrid", [f"text_model={tiny_llama}", *overrides]).arch
        assert isinstance(arch, HybridArch)
        return LatentCache(TextSystem(arch), folder, with_states=with_states)

    return make


def some_texts(cache: LatentCache, count: int) -> list[TaskText]:
    """Texts of different lengths."""
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, (2 + i % 5, 3 + i), dtype=np.uint8) for i in range(count)]
    return [cache.system.tokenizer("task", [(grid, grid[::-1])], grid) for grid in grids]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_hit_equals_recomputation_bit_for_bit(make_cache: MakeCache, tmp_path: Path, dtype: str) -> None:
    """Whatever else is read with it, and in whatever order."""
    settings = (f"arch.text_dtype={dtype}",)
    first = make_cache(*settings, with_states=True)
    texts = some_texts(first, 6)
    assert first.fill(texts) == 6
    again = make_cache(*settings, with_states=True, folder=tmp_path / "again")
    for text in reversed(texts):
        assert again.fill([text]) == 1
    assert files_of(first.folder) == files_of(again.folder)
    module = first.system.load()
    for text, z_init in zip(texts, first.read(texts), strict=True):
        latents = module(*pad_tokens([text]))
        assert np.array_equal(latents.z_init[0].numpy(), z_init)
        assert np.array_equal(latents.states[0].float().numpy(), np.load(first.states_path(text)))
    assert first.read(texts).dtype == np.float32


def test_what_is_there_is_not_read_again(make_cache: MakeCache) -> None:
    cache = make_cache()
    texts = some_texts(cache, 4)
    assert cache.fill(texts[:3]) == 3
    stamps = {text.text: cache.path(text).stat().st_mtime_ns for text in texts[:3]}
    assert make_cache().fill([*texts, *texts]) == 1
    assert {text.text: cache.path(text).stat().st_mtime_ns for text in texts[:3]} == stamps
    assert make_cache(with_states=True).fill(texts) == 4
    assert make_cache(with_states=True).fill(texts) == 0


def test_batches_give_the_same_latents_up_to_rounding(make_cache: MakeCache, tmp_path: Path) -> None:
    for pooling in ("mean", "last"):
        one = make_cache(f"arch.pooling={pooling}")
        texts = some_texts(one, 7)
        one.fill(texts)
        four = make_cache(f"arch.pooling={pooling}", "arch.text_batch_size=4", folder=tmp_path / "batched")
        four.fill(texts)
        np.testing.assert_allclose(one.read(texts), four.read(texts), atol=1e-5)


def test_each_part_of_the_key_has_its_own_latents(make_cache: MakeCache, tmp_path: Path) -> None:
    other = save_tiny_llama(tmp_path / "other", seed=1)
    chatty = save_tiny_llama(tmp_path / "chatty", chat_template=CHAT_TEMPLATE)
    variants = [
        (),
        ("arch.layer=1",),
        ("arch.pooling=last",),
        ("arch.text_dtype=bfloat16",),
        (f"text_model={other}",),
        (f"text_model={chatty}",),
    ]
    caches = [make_cache(*variant) for variant in variants]
    assert len({cache.folder for cache in caches}) == len(caches)
    assert make_cache("arch.layer=2").folder == caches[0].folder  # the last one, counted from the first
    assert make_cache(f"text_model={chatty}", "arch.chat_template=none").folder == caches[0].folder  # the same texts
    copy = save_tiny_llama(tmp_path / "copy")
    assert make_cache(f"text_model={copy}").folder == caches[0].folder  # the same weights at another place
    grid = np.ones((3, 3), dtype=np.uint8)
    values = []
    for cache in caches[:5]:
        text = cache.system.tokenizer("task", [(grid, grid)], grid)
        cache.fill([text])
        values.append(cache.read([text]).tobytes())
    assert len(set(values)) == 5


def test_a_cache_made_by_another_model_is_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    other = save_tiny_llama(tmp_path / "other", seed=1)
    mine, theirs = make_cache(), make_cache(f"text_model={other}")
    (mine.folder / IDENTITY_FILE).write_bytes((theirs.folder / IDENTITY_FILE).read_bytes())
    with pytest.raises(TextModelError, match=r"made by another model or settings \(model differ"):
        make_cache()
    (mine.folder / IDENTITY_FILE).write_text("{")
    with pytest.raises(TextModelError, match=r"identity\.json: damaged; delete"):
        make_cache()


def test_a_damaged_file_is_named(make_cache: MakeCache) -> None:
    cache = make_cache()
    texts = some_texts(cache, 2)
    cache.fill(texts)
    cache.path(texts[1]).write_bytes(b"\x93NUMPY")
    with pytest.raises(TextModelError, match=rf"{cache.path(texts[1]).name}: damaged; delete it"):
        cache.read(texts)
    cache.path(texts[1]).unlink()
    assert cache.fill(texts) == 1


def test_hidden_states_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path, make_cache: MakeCache) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_llama(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    cache = make_cache(f"text_model={folder}")
    with pytest.raises(TextModelError, match=r"not finite in arch\.text_dtype=float32"):
        cache.fill(some_texts(cache, 1))
    assert files_of(cache.folder) == {}


def test_two_processes_and_an_interruption_leave_what_one_run_leaves(make_cache: MakeCache, tmp_path: Path) -> None:
    """Both start at once on the same texts; one is killed as soon as the first file is there."""
    expected = make_cache(with_states=True, folder=tmp_path / "expected")
    texts = some_texts(expected, 60)
    expected.fill(texts)
    shared = make_cache(with_states=True, folder=tmp_path / "shared")
    context = multiprocessing.get_context("fork")
    killed, finishing = (context.Process(target=shared.fill, args=(texts,)) for _ in range(2))
    killed.start()
    finishing.start()
    while not files_of(shared.folder) and killed.is_alive():
        time.sleep(0.001)
    killed.kill()
    finishing.join(timeout=120)
    killed.join()
    assert finishing.exitcode == 0
    assert shared.fill(texts) == 0
    assert files_of(shared.folder) == files_of(expected.folder)
