"""The command that shows two folders of sampled clips side by side."""

from pathlib import Path

from PIL import Image

from launch.gallery import SHEET_LAYOUT
from pipeline.report.contact_sheet import CAPTION_LINES, GAP_PIXELS, LINE_PIXELS, THUMB_PIXELS
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.requests import PromptRequest
from testing.commands import launch_here
from testing.galleries import write_many_samples


def write_samples(folder: Path, *prompts: str) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number, prompt in enumerate(prompts):
        request = PromptRequest(id=f"{number:012}", prompt=prompt, seed=1, guidance_scale=3.0, bucket="5x32x32@8")
        lines.append(SampledClip(file=request.file_name, request=request, num_network_calls=1).model_dump_json() + "\n")
    (folder / SAMPLES_NAME).write_text("".join(lines))
    return folder


def test_clips_of_equal_requests_are_shown_and_others_counted(tmp_path):
    one, other = write_samples(tmp_path / "a", "x", "y", "z"), write_samples(tmp_path / "b", "z", "x")
    made = launch_here("gallery", str(one), str(other), "--output", str(tmp_path / "both.html"))
    assert made.returncode == 0, made.stderr
    assert f"2 pairs; left out, without a partner: 1 of {one}, 0 of {other}" in made.stdout.replace("\n", "")
    assert (tmp_path / "both.html").is_file()


def test_folders_without_common_clips_are_refused(tmp_path):
    one, other = write_samples(tmp_path / "a", "x"), write_samples(tmp_path / "b", "z")
    made = launch_here("gallery", str(one), str(other), "--output", str(tmp_path / "both.html"))
    assert made.returncode == 1
    assert "no clips of equal prompt, seed, guidance scale and shape" in made.stderr.replace("\n", " ")
    assert not (tmp_path / "both.html").exists()
    made = launch_here("gallery", str(one), str(tmp_path), "--output", str(tmp_path / "both.html"))
    assert "holds no sampled clips" in made.stderr


def test_one_folder_gets_its_page_again_and_a_contact_sheet(tmp_path):
    folder = write_many_samples(tmp_path / "samples", 30)
    (clip,) = folder.glob("*number-7-*.mp4")
    clip.write_bytes(b"")
    made = launch_here("gallery", str(folder), "--sheet", str(tmp_path / "sheet.png"))
    assert made.returncode == 0, made.stderr
    assert f"wrote {folder / 'index.html'}: 30 clips" in made.stdout.replace("\n", "")
    assert f"wrote {tmp_path / 'sheet.png'}: 24 clips" in made.stdout.replace("\n", "")
    with Image.open(tmp_path / "sheet.png") as sheet:
        height = THUMB_PIXELS + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
        assert sheet.size == (2 * (SHEET_LAYOUT.cell_width + GAP_PIXELS) + GAP_PIXELS, 12 * height + GAP_PIXELS)
    made = launch_here("gallery", str(folder), str(folder))
    assert made.returncode == 2
    assert "name it with --output" in made.stderr.replace("\n", " ")
