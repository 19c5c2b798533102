"""The names in a folder say which videos have no sidecar, and never that one which has one has none."""

import os
from pathlib import Path

from data.curation.sidecars import SidecarNames, has_sidecar
from data.curation.source import look_again
from data.curation.source_folders import list_folder

VIDEOS = ("a.mp4", "B.MP4", "c.d.mp4", ".e.mp4", "..f.mp4", "g h.mp4", "ß.mp4", "ﬁ.mp4", "no.mp4", "x.txt.mp4")
BESIDE = ("a.txt", "B.TXT", "c.d.json", "c.txt", ".e.JSON", "..f.txt", "g h.Txt", "SS.txt", "fi.txt", "other.txt")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a caption")


def test_no_sidecar_is_overlooked_and_few_are_suspected(tmp_path):
    touch(*(tmp_path / name for name in (*VIDEOS, *BESIDE)))
    names = SidecarNames()
    for name in VIDEOS:
        path = str(tmp_path / name)
        assert names.may_have(path) >= has_sidecar(path), name
    suspected = {name for name in VIDEOS if names.may_have(str(tmp_path / name))}
    assert suspected == set(VIDEOS) - {"no.mp4", "x.txt.mp4"}


def test_links_and_folders_at_the_place_of_a_sidecar_are_seen(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4", tmp_path / "b.txt" / "inside")
    (tmp_path / "a.json").symlink_to(tmp_path / "missing")
    found = {source.name: source.may_have_sidecar for source in list_folder(tmp_path)}
    assert found == {"a.mp4": True, "b.mp4": True, "c.mp4": False}


def test_a_folder_that_cannot_be_listed_may_have_sidecars(tmp_path):
    assert SidecarNames().may_have(str(tmp_path / "missing" / "a.mp4"))
    assert SidecarNames().may_have("/null\0/a.mp4")


def test_listing_a_folder_looks_for_sidecars_by_its_names_alone(tmp_path, monkeypatch):
    touch(*(tmp_path / folder / f"{number}.mp4" for folder in "ab" for number in range(20)))
    touch(tmp_path / "a" / "7.txt", tmp_path / "a" / "README.txt")
    looked, real = list[str](), os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: looked.append(os.fspath(path)) or real(path))
    sources = list_folder(tmp_path)
    assert {Path(path).stem for path in looked} == {"7"}
    assert [source.name for source in sources if source.may_have_sidecar] == ["a/7.mp4"]
    stamps = {source.name: source.stamp.split(" ") for source in sources}
    assert all(bool(text) == (name == "a/7.mp4") and record == "" for name, (_, text, record) in stamps.items())


def test_a_sidecar_that_appears_or_goes_is_seen_when_the_folder_is_listed_again(tmp_path, monkeypatch):
    touch(*(tmp_path / f"{number}.mp4" for number in range(20)), tmp_path / "3.txt")
    sources = list_folder(tmp_path)
    (tmp_path / "3.txt").unlink()
    touch(tmp_path / "5.json")
    listed, real = list[str](), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or real(path))
    again = look_again(sources)
    assert listed == [str(tmp_path)]
    changed = [
        (before.name, after.may_have_sidecar) for before, after in zip(sources, again, strict=True) if before != after
    ]
    assert changed == [("3.mp4", False), ("5.mp4", True)]
