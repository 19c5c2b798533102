"""A complete stage is skipped while its outputs are whole, and continues where one is missing or cut short."""

from pathlib import Path

import pytest

from pipeline.run.stage_record import STAGE_RECORD_NAME, BrokenLinkError, begin


def test_a_complete_stage_continues_where_an_output_is_missing_or_cut_short(tmp_path):
    folder = tmp_path / "samples"

    def opened():
        return begin(folder, "sample", {"steps": 2}, is_whole=lambda path: path.exists() and path.stat().st_size > 3)

    outputs = [folder / "a.mp4", folder / "b.mp4"]
    stage = opened()
    for path in outputs:
        path.write_bytes(b"whole")
    stage.finish(outputs, {})
    assert (opened().note, opened().complete) == ("nothing to do", True)
    outputs[0].write_bytes(b"who")
    assert (opened().note, opened().complete) == ("continues: a.mp4 is cut short", False)
    outputs[0].write_bytes(b"whole")
    stage = opened()
    stage.finish(outputs, {})
    Path.unlink(outputs[1])
    assert opened().note == "continues: b.mp4 is missing"


def test_outputs_on_a_disk_that_is_away_are_not_made_again(tmp_path):
    folder, disk = tmp_path / "latents", tmp_path / "disk"
    stage = begin(folder, "encode", {"clips": "c1"})
    disk.mkdir()
    (folder / "shards").symlink_to(disk)
    (folder / "shards" / "a.tar").touch()
    stage.finish([folder / "shards" / "a.tar"], {})
    before = (folder / STAGE_RECORD_NAME).read_bytes()
    disk.rename(tmp_path / "away")
    with pytest.raises(
        BrokenLinkError, match=rf"the link {folder}/shards leads to {disk}, .* mount its disk, or remove"
    ):
        begin(folder, "encode", {"clips": "c1"})
    assert (folder / STAGE_RECORD_NAME).read_bytes() == before
    (tmp_path / "away").rename(disk)
    assert begin(folder, "encode", {"clips": "c1"}).complete
