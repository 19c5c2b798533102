"""Make a sampled clip again, byte by byte, from what its file or its line in a manifest says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files.checksums import file_sha256
from pipeline.sample.outputs import CLIP_SUFFIX
from pipeline.sample.recorded import RecordedClip, RemakeError, read_clip, read_line, with_inputs
from pipeline.sample.remake import Places, Remade, output_kind, remake


@dataclass(frozen=True)
class Asked:
    """What the command was given."""

    target: Path
    """A clip, or a manifest."""
    places: Places
    name: str | None = None
    """Of the clip in the manifest."""
    inputs: Sequence[Path] = ()
    """Files that the clip is made from, if they are not where they were."""
    output: Path | None = None
    num_threads: int = 1


def remake_clip(asked: Asked) -> Iterator[str]:
    """Make the clip, and compare it; yields lines for the console.

    Raises:
        RemakeError: something that the clip was made from is missing or another one; or the result, which is written,
            has other bytes than the clip.
        ProvenanceError: the file does not say how it was made.
        SamplesError: the manifest is damaged.
        ReelflowError: as sampling.
    """
    clip = _recorded(asked)
    beside = clip.file.with_name(f"{clip.file.stem}.remade{CLIP_SUFFIX}") if clip.file.exists() else clip.file
    output = asked.output or beside
    output_kind(output)
    clip = with_inputs(clip, {_digest(path): path.resolve() for path in asked.inputs})
    made = remake(clip, asked.places, output, asked.num_threads)
    yield from (f"warning: {note}" for note in made.notes)
    yield f"wrote {output}"
    if not made.is_same:
        raise RemakeError(_difference(clip, made))
    if made.listed is None and made.found is None:
        yield f"there is no file and no checksum to compare it with; the SHA-256 of the clip is {made.sha256}"
    elif made.found is not None and made.found != made.sha256:
        yield (
            f"its bytes are those that the manifest lists; {clip.file} has others, so it is damaged or was edited: "
            "replace it"
        )
    else:
        of = clip.file if made.found is not None else "the clip that the manifest lists"
        yield f"the clip made again has the bytes of {of} (SHA-256 {made.sha256})"


def _recorded(asked: Asked) -> RecordedClip:
    is_manifest = asked.target.suffix == ".jsonl"
    if is_manifest and asked.name is None:
        raise RemakeError(f"{asked.target} lists many clips; say which one with --name CLIP.mp4")
    if is_manifest:
        assert asked.name is not None
        return read_line(asked.target, asked.name)
    if asked.name is not None:
        raise RemakeError(f"--name is of a line of a manifest, and {asked.target} is a clip; leave it out")
    return read_clip(asked.target)


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise RemakeError(f"--input {path} cannot be read ({error.strerror})") from error


def _difference(clip: RecordedClip, made: Remade) -> str:
    expected, where = (made.listed, "in the manifest") if made.listed else (made.found, f"of {clip.file}")
    return (
        f"{made.output} was made, but the clip has another SHA-256, {made.sha256}, than {expected} {where}: that was "
        "made on a processor of another kind, with another number of threads (--threads is "
        "cluster.workers.cpus_per_worker of the job), another sample.attention or another version, or it was edited"
    )
