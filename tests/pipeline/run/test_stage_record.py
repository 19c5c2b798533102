"""A complete stage is skipped while its outputs are whole, and continues where one is missing or cut short."""

from pathlib import Path

from pipeline.run.stage_record import begin


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
