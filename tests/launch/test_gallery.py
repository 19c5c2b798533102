"""The command that shows two folders of sampled clips side by side."""

from pathlib import Path

from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.requests import PromptRequest
from testing.commands import launch_here


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
