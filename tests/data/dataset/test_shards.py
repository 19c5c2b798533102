"""Shards, captions and manifests made to do harm: refused with a reason, and nothing written anywhere else."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from webdataset.writer import TarWriter

from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.shards import read_shard, write_shard
from data.errors import DatasetError
from testing.paths import ROOT
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
    "absolute": (lambda tar: add(tar, "/tmp/evil.mp4"), "is not named after a sample"),
    "parent": (lambda tar: add(tar, "../../evil.mp4"), "is not named after a sample"),
    "folder": (lambda tar: add(tar, "folder/evil.mp4"), "is not named after a sample"),
    "symlink": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
    "hardlink": (
        lambda tar: add(tar, "b.mp4", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        "not a regular file",
    ),
    "device": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "not a regular file"),
    "fifo": (lambda tar: add(tar, "b.mp4", b"", type=tarfile.FIFOTYPE), "not a regular file"),
    "twice": (lambda tar: (add_sample(tar, "b"), add_sample(tar, RECORD.key)), "occurs twice"),
    "member twice": (lambda tar: (add(tar, "b.mp4"), add(tar, "b.mp4")), "occurs twice"),
    "pickle": (
        lambda tar: add(tar, "b.pkl", pickle.dumps(Bomb())),
        "is not one of the members json, latent.safetensors, mp4, settings.json, txt",
    ),
    "torch": (
        lambda tar: add(tar, "b.pth", pickle.dumps(Bomb())),
        "is not one of the members json, latent.safetensors, mp4, settings.json, txt",
    ),
    "incomplete": (lambda tar: add(tar, "b.mp4"), "lacks json, txt"),
    "bomb": (lambda tar: add(tar, "b.mp4", b"", size=2**40), "has 1099511627776 bytes, more than"),
    "other key": (
        lambda tar: (add(tar, "b.mp4"), add(tar, "b.txt"), add(tar, "b.json", RECORD.model_dump_json().encode())),
        "has the key",
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
    with pytest.raises(DatasetError, match=r"cut short|not a readable tar|lacks"):
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


def record(number: int) -> ClipRecord:
    return made_up_clip(number, Bucket()).model_copy(update={"caption": f"caption {number}, ünïcode"})


def payload(number: int) -> bytes:
    return bytes([number % 256]) * (500 + 37 * number)


def test_shards_are_reproducible_to_the_byte(tmp_path):
    samples = [(record(n), payload(n)) for n in range(3)]
    one, _ = write_shard(tmp_path / "a.tar", samples, VIDEO_MEMBER)
    two, _ = write_shard(tmp_path / "b.tar", samples, VIDEO_MEMBER)
    assert one.sha256 == two.sha256
    assert [r for r, _ in read_shard(tmp_path / "a.tar", VIDEO_MEMBER)] == [record(n) for n in range(3)]


def test_the_bytes_are_those_of_the_writer_of_webdataset(tmp_path):
    """Also with a key that does not fit into a USTAR header, and with no sample at all."""
    keys = [None, "k" * 100, None]
    for number in (0, 3):
        samples = [
            (record(n) if key is None else record(n).model_copy(update={"key": key}), payload(n))
            for n, key in list(enumerate(keys))[:number]
        ]
        write_shard(tmp_path / "ours.tar", samples, VIDEO_MEMBER)
        with (
            (tmp_path / "theirs.tar").open("wb") as file,
            TarWriter(file, mtime=0, user="reelflow", group="reelflow") as writer,
        ):
            for clip, content in samples:
                caption, told = clip.caption.encode(), clip.model_dump_json().encode()
                writer.write({"__key__": clip.key, VIDEO_MEMBER: content, "txt": caption, "json": told})
        assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_a_process_that_cuts_and_writes_clips_does_not_import_torch(tmp_path):
    script = f"""
import sys
from pathlib import Path
from data.dataset.shards import write_shard
from data.dataset.clip import VIDEO_MEMBER
import pipeline.ingest.draw, pipeline.ingest.shard
write_shard(Path({str(tmp_path / "shard.tar")!r}), [], VIDEO_MEMBER)
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
