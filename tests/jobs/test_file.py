"""Job files: what a job is, and that a mark is all that ever changes."""

import os
import threading
from pathlib import Path

import pytest

from jobs.file import JobError, JobFile

ODD = (
    b"\xef\xbb\xbf[ ] one\r\n"
    b"notes \xff\xfe \xe2\x80\xa8 [x] no job\r\n\r\n"
    b"[-] two  \n# [ ] none\n---\n[ ] one\n[!] f\xfcnf"
)


def written(tmp_path: Path, data: bytes = ODD) -> JobFile:
    path = tmp_path / "jobs.txt"
    path.write_bytes(data)
    return JobFile(path)


def test_jobs_are_lines_with_a_mark_and_a_command(tmp_path: Path) -> None:
    jobs = written(tmp_path).read()
    assert [(job.number, job.mark, job.command, job.occurrence, job.section) for job in jobs] == [
        (1, " ", "one", 0, 0),
        (4, "-", "two", 0, 0),
        (7, " ", "one", 1, 1),
        (8, "!", "f\udcfcnf", 0, 1),
    ]


@pytest.mark.parametrize("index", range(4))
def test_a_mark_changes_one_byte_and_nothing_else(tmp_path: Path, index: int) -> None:
    file = written(tmp_path)
    job = file.read()[index]
    assert file.set_mark(job, job.mark, "x")
    after = file.path.read_bytes()
    assert [(a, b) for a, b in zip(ODD, after, strict=True) if a != b] == [(ord(job.mark), ord("x"))]
    assert file.read()[index].mark == "x"
    assert not [path for path in tmp_path.iterdir() if path != file.path]


def test_a_mark_finds_its_line_wherever_an_editor_has_moved_it(tmp_path: Path) -> None:
    file = written(tmp_path, b"[ ] a\n[ ] b\n")
    job = file.read()[1]
    file.path.write_bytes(b"new words\n[ ] c\n\n[ ] b\nmore words\n[ ] a\n")
    assert file.set_mark(job, " ", "-")
    assert file.path.read_bytes() == b"new words\n[ ] c\n\n[-] b\nmore words\n[ ] a\n"


@pytest.mark.parametrize("edited", [b"[ ] a\n", b"[ ] a\n[ ] b --more\n", b"[ ] a\n[x] b\n", b""])
def test_a_line_that_was_changed_or_deleted_is_left_as_the_editor_wrote_it(tmp_path: Path, edited: bytes) -> None:
    file = written(tmp_path, b"[ ] a\n[-] b\n")
    job = file.read()[1]
    file.path.write_bytes(edited)
    assert not file.set_mark(job, "-", "x")
    assert file.path.read_bytes() == edited


def test_of_equal_commands_the_right_one_is_marked(tmp_path: Path) -> None:
    file = written(tmp_path, b"[ ] a\n[ ] a\n[ ] a\n")
    assert file.set_mark(file.read()[1], " ", "-")
    assert file.path.read_bytes() == b"[ ] a\n[-] a\n[ ] a\n"
    assert len({job.key for job in file.read()}) == 3


def test_a_change_that_an_editor_saves_during_the_write_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The editor saves after the file was read and before it is replaced."""
    file = written(tmp_path, b"[ ] a\n")
    write_bytes = Path.write_bytes

    def edit_meanwhile(path: Path, data: bytes) -> int:
        monkeypatch.undo()
        write_bytes(file.path, b"[ ] a\n[ ] added by hand\n")
        return write_bytes(path, data)

    job = file.read()[0]
    monkeypatch.setattr(Path, "write_bytes", edit_meanwhile)
    assert file.set_mark(job, " ", "-")
    assert file.path.read_bytes() == b"[-] a\n[ ] added by hand\n"


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_file_that_is_gone_or_empty_while_an_editor_saves_is_waited_for(tmp_path: Path, is_removed: bool) -> None:
    file = written(tmp_path, b"[ ] a\n")
    (job,) = file.read()
    file.path.unlink() if is_removed else file.path.write_bytes(b"")
    saving = threading.Timer(0.2, file.path.write_bytes, [b"[ ] b\n[ ] a\n"])
    saving.start()
    assert file.set_mark(job, " ", "-")
    saving.join()
    assert file.path.read_bytes() == b"[ ] b\n[-] a\n"


def test_the_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.path.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(file.path)
    linked = JobFile(link)
    assert linked.set_mark(linked.read()[0], " ", "x")
    assert link.is_symlink()
    assert file.path.stat().st_mode & 0o777 == 0o640


def test_lines_that_only_look_like_jobs_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, b"[ ] a\n[] b\n [ ] c\n[X] d\n[ ]\nsee [1]\n[?] e\n[ ]f\n")
    assert [job.command for job in file.read()] == ["a"]
    assert file.nearly_jobs() == [2, 3, 4, 5, 7, 8]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"nowhere\.txt: cannot be read: No such file"):
        JobFile(tmp_path / "nowhere.txt").read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = written(tmp_path)
    tmp_path.chmod(0o500)
    with pytest.raises(JobError, match="cannot be written"), file.lock():
        pass
