"""What `make bench-gpu` runs on CUDA, run on the CPU at the smallest sizes; and that it says so where there is none."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.breakdown import GROUPS, KERNELS, REST, broken_down, group_of
from benchmarks.gpu_attention import BACKENDS, by_groups, candidates, milliseconds
from benchmarks.gpu_measure import Clock, measure_training, rate_of_products
from benchmarks.pages import write_between
from benchmarks.systems import CPU, SYSTEMS
from config.schema import ConfigError, load_config
from dataset.store import PuzzleStore
from models.attention import attend
from models.segments import Segments, ends_of
from tests.benchmarks.test_cells import TINY


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> gpu.Plan:
    """As on CUDA, only small; what is compiled has no back end."""
    compile_blocks = gpu.System.__init__.__globals__["compile_blocks"]

    def eagerly(model: torch.nn.Module, *, graphs: bool) -> None:
        compile_blocks(model, "eager", graphs=graphs)

    monkeypatch.setitem(gpu.System.__init__.__globals__, "compile_blocks", eagerly)
    warm = {"eager": 1, "compiled": 2}
    return gpu.Plan(CPU, TINY, "float32", batch=2, in_context_batch=1, warm=warm, timed=2, side=32)


def rows_of(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    (found,) = (part for part in text.split("\n\n") if part.startswith(f"| {first} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]


def test_every_system_is_measured(store: PuzzleStore, plan: gpu.Plan) -> None:
    text = gpu.report(store, replace(plan, forms=("eager",)), "a CPU")
    for head in ("training step", "one vote"):
        rows = rows_of(text, head)
        assert [(row[0], row[1]) for row in rows] == [(name, "eager") for name in SYSTEMS]
        assert [row[2] for row in rows] == [*["2"] * (len(SYSTEMS) - 1), "1"]
        assert all(cell for row in rows for cell in row)
    shares = rows_of(text, "share of a training step")
    assert [row[0] for row in shares] == [*GROUPS, REST, "ms in all", "kernels"]
    assert rows_of(text, "attention, forward and backward, ms")[0][0] == "packed kernel"
    assert "nan" not in text


def test_what_there_is_no_time_for_is_said_to_be_unmeasured(store: PuzzleStore, plan: gpu.Plan) -> None:
    rows = gpu.Rows()
    gpu.leave_out("TRM", "eager", plan, rows)
    assert rows.training == [("TRM", "eager", "2", "not measured", *[""] * 6)]
    assert len(rows.votes[0]) == len(gpu.VOTE_HEAD)


def test_memory_that_does_not_suffice_is_said_in_the_row() -> None:
    def fails() -> tuple[str, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu.unless_it_fails(fails, 3) == ("out of memory", "", "")


def test_a_failure_is_said_in_the_row_in_one_line() -> None:
    def fails() -> tuple[str, ...]:
        raise RuntimeError("CUDA error: a | b\nmore of it")

    assert gpu.unless_it_fails(fails, 2) == ("failed: CUDA error: a   b", "")


def test_graphs_are_measured_of_the_systems_that_can_have_them(store: PuzzleStore, plan: gpu.Plan) -> None:
    """A step and a vote in that form; its row follows those of the other forms."""
    text = gpu.report(store, replace(plan, forms=("graphs",), warm={"graphs": 1}), "a CPU")
    rows = rows_of(text, "training step")
    assert [(row[0], row[1]) for row in rows] == [(name, "graphs") for name in gpu.WITH_GRAPHS]
    assert all(cell for row in rows for cell in row)
    for name in SYSTEMS:
        options = ("compile=graphs", "arch.forward_dtype=bfloat16", *SYSTEMS[name][1])
        if name in gpu.WITH_GRAPHS:
            assert load_config(SYSTEMS[name][0], [*options]).compile == "graphs"
        else:
            with pytest.raises(ConfigError, match="compile=graphs"):
                load_config(SYSTEMS[name][0], [*options])


def test_rates_and_graphs_of_training_steps(store: PuzzleStore, plan: gpu.Plan) -> None:
    """Three steps are timed, and the one that compiles is not among them."""
    system = plan.system("ETRM", store, "compiled")
    torch._dynamo.reset()
    found = measure_training(system, warm=2, timed=3)
    assert found.first > found.step > 0
    assert found.recompiled == 0
    assert found.peak is None
    assert found.samples == pytest.approx(2 / found.step, rel=0.9)
    assert rate_of_products(64, torch.float32, CPU, times=2) > found.operations > 0


def test_the_clock_counts_seconds() -> None:
    assert 0 < Clock(CPU).seconds(lambda: torch.ones(10).sum()) < 5


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s16816gemm_bf16_128x64>", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>", "attention"),
        ("triton_poi_fused_cat_mul_sub_0", "elementwise, norms, rotary positions, sums"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>",
            "elementwise, norms, rotary positions, sums",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "gathers, scatters, copies, casts",
        ),
        ("Memcpy DtoD (Device -> Device)", "gathers, scatters, copies, casts"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<>", "gathers, scatters, copies, casts"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", REST),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, group: str) -> None:
    assert group_of(kernel, KERNELS) == group


def test_the_shares_of_a_breakdown_add_up(store: PuzzleStore, plan: gpu.Plan) -> None:
    system = plan.system("ETRM", store, "eager")
    found = broken_down(system.train_step, CPU)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.count > 100
    assert [spent for _, spent in found.longest] == sorted((spent for _, spent in found.longest), reverse=True)


def test_the_candidates_for_attention_compute_what_attention_does() -> None:
    """Where no sequence is filled up; the mask of the others is left out."""
    lengths = torch.tensor([5, 5, 9])
    qkv = [torch.randn(19, 2, 8) for _ in range(3)]
    ends = ends_of(lengths)
    segments = Segments(ends, ends, 9, 9)
    expected = attend(*qkv, segments)
    torch.testing.assert_close(by_groups(segments, torch.nn.attention.SDPBackend.MATH)(*qkv), expected)
    for name, attention in candidates(lengths, 20).items():
        if name not in BACKENDS:
            torch.testing.assert_close(attention(*qkv), expected)


def test_a_candidate_that_a_machine_does_not_have_has_no_time() -> None:
    found = milliseconds(torch.tensor([3, 4]), 8, heads=1, width=8, dtype=torch.float32, repeats=1)
    assert found["packed kernel"] is not None
    assert found["padded groups, cuDNN"] is None


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- x:begin -->\nold\n<!-- x:end -->\nbelow\n")
    write_between("x", "new", page)
    assert page.read_text() == "above\n<!-- x:begin -->\nnew\n<!-- x:end -->\nbelow\n"
    with pytest.raises(ValueError, match="has no <!-- y:begin -->"):
        write_between("y", "new", page)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_without_cuda_one_line_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both commands, which end well."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    gpu.main()
    with pytest.raises(SystemExit) as left:
        runpy.run_module("tests.gpu", run_name="__main__")
    assert left.value.code == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["no CUDA device here"] * 2
