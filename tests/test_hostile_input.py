"""Shards, captions and manifests made to do harm: refused with a reason, and nothing written anywhere else."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from data.curation.captions import CaptionError, caption_of, read_caption_table
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import IndexRow
from data.dataset.manifest import SCHEMA_VERSION, ShardRecord, read_manifest
from data.dataset.reader import PayloadReader
from data.dataset.shards import read_shard, write_shard
from data.dataset.tarfiles import read_samples
from data.errors import DatasetError
from testing.records import made_up_clip

RECORD = made_up_clip(10)


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def add(tar: tarfile.TarFile, name: str, content: bytes = b"x", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content) if content else None)


def add_sample(tar: tarfile.TarFile, key: str = RECORD.key) -> None:
    add(tar, f"{key}.mp4")
    add(tar, f"{key}.txt")
    add(tar, f"{key}.json", RECORD.model_copy(update={"key": key}).model_dump_json().encode())


HOSTILE = {
    "absolute": (lambda tar: add(tar, "/tmp/evil.mp4"), "is no name of a sample"),
    "parent": (lambda tar: add(tar, "../../evil.mp4"), "is no name of a sample"),
    "folder": (lambda tar: add(tar, "folder/evil.mp4"), "is no name of a sample"),
    "symlink": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no regular file"),
    "hardlink": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "no regular file"),
    "device": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "no regular file"),
    "fifo": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.FIFOTYPE), "no regular file"),
    "twice": (lambda tar: (add_sample(tar, "b"), add_sample(tar, RECORD.key)), "comes twice"),
    "member twice": (lambda tar: (add(tar, "b.mp4"), add(tar, "b.mp4")), "comes twice"),
    "pickle": (lambda tar: add(tar, "b.pkl", pickle.dumps(Bomb())), "is none of json, mp4, txt"),
    "torch": (lambda tar: add(tar, "b.pth", pickle.dumps(Bomb())), "is none of json, mp4, txt"),
    "incomplete": (lambda tar: add(tar, "b.mp4"), "lacks json, txt"),
    "bomb": (lambda tar: add(tar, "b.mp4", b"", size=2**40), "has 1099511627776 bytes, more than"),
    "other key": (
        lambda tar: (add(tar, "b.mp4"), add(tar, "b.txt"), add(tar, "b.json", RECORD.model_dump_json().encode())),
        "calls itself",
    ),
    "no record": (lambda tar: (add(tar, "b.mp4"), add(tar, "b.txt"), add(tar, "b.json", b"{}")), "Field required"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_and_touches_nothing(tmp_path, monkeypatch, name):
    fill, reason = HOSTILE[name]
    folder, elsewhere = tmp_path / "dataset", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = folder / "shard-00000.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add_sample(tar)
        fill(tar)
    with pytest.raises(DatasetError, match=reason) as caught:
        list(read_shard(path, VIDEO_MEMBER))
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == [folder, path, elsewhere]


@pytest.mark.parametrize("keep", [0, 100, 700, 1030, 2000, 4096])
def test_a_truncated_tar_is_refused(tmp_path, keep):
    path = tmp_path / "shard.tar"
    samples = [(RECORD.model_copy(update={"key": str(n)}), b"v" * 1000) for n in range(3)]
    shard, _ = write_shard(path, samples, VIDEO_MEMBER)
    content = path.read_bytes()
    assert len(list(read_shard(path, VIDEO_MEMBER, shard))) == 3
    path.write_bytes(content[:keep])
    with pytest.raises(DatasetError, match=r"cut short|no readable tar|lacks"):
        list(read_shard(path, VIDEO_MEMBER))


def test_a_shard_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    path = tmp_path / "shard.tar"
    shard, _ = write_shard(path, [(RECORD, b"video")], VIDEO_MEMBER)
    assert [record for record, _ in read_shard(path, VIDEO_MEMBER, shard)] == [RECORD]
    path.write_bytes(path.read_bytes().replace(b"video", b"vidEo"))
    assert len(list(read_shard(path, VIDEO_MEMBER))) == 1  # a tar alone cannot tell
    with pytest.raises(DatasetError, match="its checksum differs from the manifest's"):
        list(read_shard(path, VIDEO_MEMBER, shard))
    path.unlink()
    with pytest.raises(DatasetError, match="is missing although the manifest names it"):
        list(read_shard(path, VIDEO_MEMBER, shard))


def test_a_shard_without_samples_is_read_as_none(tmp_path):
    path = tmp_path / "shard.tar"
    write_shard(path, [], VIDEO_MEMBER)
    assert list(read_samples(path, frozenset({"mp4"}))) == []


def test_a_manifest_or_index_that_points_elsewhere_is_refused(tmp_path):
    shard = ShardRecord(name="../other/shard.tar", num_samples=0, num_bytes=0, sha256="")
    bucket = {"num_frames": 5, "height": 32, "width": 32, "fps": 8}
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "clips",
        "fingerprint": "",
        "buckets": [{"bucket": bucket, "num_samples": 0, "num_train": 0}],
        "num_samples": 0,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "shards": [shard.model_dump()]}), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'\.\./other/shard\.tar' is not in"):
        read_manifest(tmp_path)
    written, rows = write_shard(tmp_path / "shard.tar", [(RECORD, b"video")], VIDEO_MEMBER)
    row = IndexRow(**{**vars(rows[0]), "shard": "/etc/passwd"})
    with pytest.raises(DatasetError, match="'/etc/passwd', which is not in"):
        PayloadReader(tmp_path).read(row)
    ledger = {"sources": 3, "shards": 1, "filtered": 0, "quarantine": 0}
    text = json.dumps({**content, "shards": [written.model_dump()], "ledger": ledger})
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"sources must equal shards \+ filtered \+ quarantine"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a cat\x00 runs", "control character U\\+0000"),
        (b"a \x1b[31mred\x1b[0m cat", "control character U\\+001B"),
        (b"caf\xe9", "cannot be read"),
        (b"a" * 2**20, "has 1048576 bytes, more than 65536"),
        (b"a" * 5000, "has 5000 characters, more than 4096"),
    ],
    ids=["null", "escape", "latin-1", "megabyte", "long"],
)
def test_hostile_captions_are_named(tmp_path, content, reason):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CaptionError, match=reason):
        caption_of(tmp_path, "a.mp4", {})


def test_line_separators_inside_a_caption_do_not_end_its_row(tmp_path):
    caption = "one\u2028two\u0085three"
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": caption}, ensure_ascii=False), "utf-8")
    (tmp_path / "t.csv").write_text(f'file,caption\na.mp4,"{caption}\nfour"\n', "utf-8")
    assert read_caption_table(tmp_path / "t.jsonl") == {"a.mp4": caption}
    assert read_caption_table(tmp_path / "t.csv") == {"a.mp4": f"{caption}\nfour"}
    assert caption_of(tmp_path, "a.mp4", {"a.mp4": caption}) == "one two three"
