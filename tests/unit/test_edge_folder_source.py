"""What a device reads of a folder that a camera writes into: whole files, each once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everlearn_client.edge.folder_source import After, FolderSource, Labels
from everlearn_client.errors import InvalidArgument


class Looking:
    """A source, and the seconds that pass."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder / "camera"
        self.folder.mkdir(exist_ok=True)
        self.now_s = 0.0
        self.options = {"settle_s": 1.0, "clock_s": lambda: self.now_s, **options}
        self.start()

    def start(self) -> None:
        self.source = FolderSource(self.folder, **self.options)  # type: ignore[arg-type]  # as they come

    def put(self, name: str, data: bytes = b"data") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def names(self, *, after_s: float = 0.0) -> list[str]:
        self.now_s += after_s
        return [each.name for each in self.source.whole()]

    def take(self, *, failed: bool = False) -> list[str]:
        """Looks until all is settled, and is done with it."""
        self.source.whole()
        self.now_s += 1
        found = self.source.whole()
        for each in found:
            self.source.done(each, failed=failed)
        return [each.name for each in found]

    def there(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


def test_a_file_is_given_once_nothing_has_written_to_it_for_the_time_to_settle(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    looking.put("a.jpg", b"half")
    assert looking.names() == []
    assert looking.names(after_s=0.9) == []
    looking.put("a.jpg", b"half and more")
    assert looking.names(after_s=0.9) == []
    assert looking.names(after_s=0.9) == []
    assert looking.names(after_s=0.2) == ["a.jpg"]


def test_a_file_that_is_renamed_into_its_name_is_given_at_once_where_that_is_declared(tmp_path: Path) -> None:
    looking = Looking(tmp_path, settle_s=0.0)
    draft = looking.put(".a.jpg")
    looking.put("b.jpg.tmp")
    assert looking.names() == []
    draft.rename(looking.folder / "a.jpg")
    assert looking.names() == ["a.jpg"]


def test_clocks_that_jump_move_nothing(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    path = looking.put("a.jpg")
    looking.names()
    os.utime(path, (0, 0))  # the clock says 1970: another time than before, so it may still be written
    assert looking.names(after_s=5) == []
    assert looking.names(after_s=1) == ["a.jpg"]


@pytest.mark.parametrize(
    ("after", "there", "there_failed"),
    [
        ("move", ["done/a.jpg", "done/x/b.png"], ["failed/a.jpg", "failed/x/b.png"]),
        ("delete", [], []),
        ("leave", ["a.jpg", "x/b.png"], ["a.jpg", "x/b.png"]),
    ],
)
def test_what_was_read_goes_where_it_was_told_to(
    tmp_path: Path, after: After, there: list[str], there_failed: list[str]
) -> None:
    for failed, expected in ((False, there), (True, there_failed)):
        place = tmp_path / str(failed)
        place.mkdir()
        looking = Looking(place, after=after)
        looking.put("a.jpg")
        looking.put("x/b.png")
        assert looking.take(failed=failed) == ["a.jpg", "x/b.png"]
        assert looking.there() == expected
        assert looking.take() == []
        assert not looking.source.settling


def test_a_name_that_a_camera_uses_again_is_another_file_and_overwrites_none(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    for number in range(3):
        looking.put("now.jpg", b"%d" % number)
        assert looking.take() == ["now.jpg"]
    assert sorted(path.read_bytes() for path in (looking.folder / "done").iterdir()) == [b"0", b"1", b"2"]


def test_what_is_left_is_not_read_again_after_a_restart_unless_it_changed(tmp_path: Path) -> None:
    looking = Looking(tmp_path, after="leave", journal=tmp_path / "read")
    looking.put("a.jpg")
    looking.put("b.jpg")
    assert looking.take() == ["a.jpg", "b.jpg"]
    with (tmp_path / "read").open("ab") as journal:
        journal.write(b'["b.j')  # power went
    looking.start()
    assert looking.take() == []
    looking.put("b.jpg", b"another")
    assert looking.take() == ["b.jpg"]
    looking.start()
    assert looking.take() == []


def test_without_its_journal_everything_that_was_left_would_be_read_again(tmp_path: Path) -> None:
    looking = Looking(tmp_path, after="leave")
    looking.put("a.jpg")
    assert looking.take() == ["a.jpg"]
    looking.start()
    assert looking.take() == ["a.jpg"]


def test_a_journal_does_not_outgrow_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everlearn_client.edge.folder_source._COMPACT_FROM", 5)
    looking = Looking(tmp_path, after="leave", journal=tmp_path / "read")
    for number in range(30):
        path = looking.put(f"{number}.jpg")
        assert looking.take() == [f"{number}.jpg"]
        path.unlink()
    assert len((tmp_path / "read").read_text().splitlines()) < 10
    looking.put("last.jpg")
    assert looking.take() == ["last.jpg"]
    looking.start()
    assert looking.take() == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("none", [None, None, None]), ("folder", [None, ["mug"], ["mug"]]), ("sidecar", [["a cup"], None, ["x", "y"]])],
)
def test_a_label_stands_where_it_was_told_to(tmp_path: Path, labels: Labels, expected: list[list[str] | None]) -> None:
    looking = Looking(tmp_path, labels=labels, settle_s=0.0, after="delete")
    for name in ("a.jpg", "mug/b.jpg", "mug/deep/c.jpg"):
        looking.put(name)
    looking.put("a.jpg.label", b" a cup\n")
    looking.put("mug/deep/c.jpg.label", b"x\n\ny\n")
    found = looking.source.whole()
    assert [looking.source.label_of(each) for each in found] == expected
    for each in found:
        looking.source.done(each)
    assert looking.there() == ([] if labels == "sidecar" else ["a.jpg.label", "mug/deep/c.jpg.label"])


def test_a_label_that_is_no_text_is_refused(tmp_path: Path) -> None:
    looking = Looking(tmp_path, labels="sidecar", settle_s=0.0)
    looking.put("a.jpg")
    looking.put("a.jpg.label", b"\xff\xfe")
    (found,) = looking.source.whole()
    with pytest.raises(InvalidArgument, match=r"a\.jpg\.label is not UTF-8"):
        looking.source.label_of(found)


def test_links_hidden_folders_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    looking = Looking(tmp_path, settle_s=0.0)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (looking.folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (looking.folder / "linked").symlink_to(tmp_path)
    looking.put(".thumbnails/a.jpg")
    looking.put("notes.txt")
    assert looking.names() == []


def test_what_cannot_be_moved_is_not_given_again(tmp_path: Path) -> None:
    looking = Looking(tmp_path, settle_s=0.0)
    looking.put("a.jpg")
    (looking.folder / "done").write_bytes(b"a file where the folder should be")
    (found,) = looking.source.whole()
    with pytest.raises(OSError, match="done"):
        looking.source.done(found)
    assert looking.names() == []


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no folder"):
        FolderSource(tmp_path / "nowhere", clock_s=lambda: 0.0)
