"""A sampled clip is made again, from what its file or its line in a manifest says, and compared with what it was.

Everything runs in this process, without Ray: the bits of a clip do not depend on where it is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.files.publish import publish_bytes
from data.video.codec import check_encoder
from pipeline.checkpoint.record import CheckpointError
from pipeline.run.fingerprints import output_json
from pipeline.sample.checks import check_model, open_weaker
from pipeline.sample.config import MP4_ALONE, OutputFormat, OutputsConfig, SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import CLIP_SUFFIX
from pipeline.sample.recorded import RecordedClip, RemakeError
from pipeline.sample.requests import address_of, id_of, start_of
from pipeline.sample.samplers import SamplingProcess
from pipeline.sample.writers import encoder_of, provenance_of

KINDS: dict[str, OutputFormat] = {CLIP_SUFFIX: "mp4", ".zip": "frames", ".gif": "gif", ".webp": "webp"}
"""What is written, by the suffix of the output."""


@dataclass(frozen=True)
class Places:
    """Where the user says that things are; None: where they were."""

    checkpoint: Path | None = None
    guidance_checkpoint: Path | None = None
    text_encoder: Path | None = None


@dataclass(frozen=True)
class Remade:
    """What was made, and how it compares."""

    output: Path
    sha256: str
    """Of the MP4 file, also where another format was written."""
    listed: str | None
    """Of the manifest; None: there is no line."""
    found: str | None
    """Of the clip's file as it is; None: it is not there."""
    notes: Sequence[str] = ()

    @property
    def is_same(self) -> bool:
        """Whether the bytes are those that the clip was made with."""
        expected = self.listed or self.found
        return expected is None or expected == self.sha256


def output_kind(output: Path) -> OutputFormat:
    """What a file of that name holds.

    Raises:
        RemakeError: no format has that suffix, or the file exists.
    """
    if output.exists():
        raise RemakeError(f"{output} exists, and is not replaced; name another file with --output, or move it away")
    if (kind := KINDS.get(output.suffix.lower())) is None:
        raise RemakeError(f"{output}: the suffix of --output is {', '.join(KINDS)} (.zip for frames as PNG)")
    return kind


def find_model(clip: RecordedClip, named: Path | None) -> SampledModel:
    """The model that made a clip.

    Args:
        named: its folder, or that of the training which saved it; None: where it was.

    Raises:
        RemakeError: it is not known where it is, not there, or another one.
        CheckpointError, PublishedError: what is there cannot be sampled.
    """
    was = f"{clip.file} was made by {clip.checkpoint_name} with the fingerprint {clip.fingerprint}"
    folder = clip.model_folder if named is None else named
    if folder is None:
        raise RemakeError(f"{was}, and no manifest says where that is; name its folder with --checkpoint")
    if not folder.exists():
        raise RemakeError(f"{was}; {folder} is not there: name the folder where it is now with --checkpoint")
    found = []
    for each in (folder, *sorted(folder.glob("checkpoints/*"))):
        try:
            model = open_model(each, verify=False)
        except CheckpointError:
            if each == folder:
                raise
            continue  # one that was cut short, beside the one that is sought
        if model.fingerprint == clip.fingerprint:
            return open_model(each)
        found.append(model.fingerprint)
    raise RemakeError(
        f"{was}, but {folder} holds {', '.join(dict.fromkeys(found))}: it was trained further, or is another one; name "
        "the folder of that checkpoint with --checkpoint"
    )


def remake(clip: RecordedClip, places: Places, output: Path, num_threads: int) -> Remade:
    """Make a clip again, and write it.

    Args:
        clip: with all files that it is made from: see `with_inputs`.
        num_threads: that compute, as `cluster.workers.cpus_per_worker` of the job.

    Raises:
        RemakeError: something that it needs is missing or another one.
        ReelflowError: as sampling.
    """
    kind, notes = output_kind(output), list[str]()
    if clip.video is not None:
        check_encoder(clip.video)
    model = find_model(clip, places.checkpoint)
    clip = _with_weaker(clip, model, places.guidance_checkpoint)
    settings = _settings(clip, places)
    check_model(model, settings)
    if _address(clip, model, settings) != clip.request.id:
        notes.append(f"the id {clip.request.id} is not that of the settings in its record: they were changed")
    request = clip.request.model_copy(update={"settings": settings})
    outputs = MP4_ALONE if clip.video is None else OutputsConfig(video=clip.video)
    sides = [
        other.side for other in ([] if clip.line is None else clip.line.others) if other.kind == kind and other.side
    ]
    outputs = outputs.model_copy(update={"preview_side": sides[0]} if sides else {})
    provenance = None if clip.video is None else provenance_of(clip.request, model.named, clip.video)
    fps = model.bucket(request.bucket).fps
    encoders = {each: encoder_of(each, outputs, fps, provenance) for each in dict.fromkeys(("mp4", kind))}
    process = SamplingProcess(model, settings, num_threads)
    with process.batch([request]) as sampler:
        for part in sampler.stream_group([request]):
            for encoder in encoders.values():
                assert encoder is not None
                encoder.add(part.frames[0])
    process.close()
    contents = {each: encoder.finish() for each, encoder in encoders.items() if encoder is not None}
    publish_bytes(output, contents[kind])
    return Remade(
        output,
        sha256(contents["mp4"]).hexdigest(),
        None if clip.line is None else clip.line.sha256,
        file_sha256(clip.file) if clip.file.is_file() else None,
        notes,
    )


def _settings(clip: RecordedClip, places: Places) -> SampleConfig:
    """The settings of the record, with today's places."""
    if clip.request.settings is None:
        raise RemakeError(f"{clip.file}: its record has no settings")
    weaker = clip.request.weaker
    return clip.request.settings.model_copy(
        update={
            "text_encoder": places.text_encoder,
            "guidance_checkpoint": None if weaker is None else Path(weaker.folder),
        }
    )


def _with_weaker(clip: RecordedClip, model: SampledModel, named: Path | None) -> RecordedClip:
    """The clip with the place of the checkpoint that guidance moves away from, if there is one.

    Raises:
        RemakeError: it is not there, or another one.
    """
    weaker = clip.request.weaker
    if weaker is None:
        if named is not None:
            raise RemakeError(f"{clip.file} was made without autoguidance: leave --guidance-checkpoint out")
        return clip
    folder = Path(weaker.folder) if named is None and weaker.folder else named
    was = f"{clip.file} was guided away from the checkpoint with the fingerprint {weaker.fingerprint}"
    if folder is None or not folder.exists():
        raise RemakeError(f"{was}, which is not found{f' in {folder}' if folder else ''}; name --guidance-checkpoint")
    try:
        found = open_weaker(model, folder).fingerprint
    except ReelflowError as error:
        raise RemakeError(f"{was}: {error}") from error
    if found != weaker.fingerprint:
        raise RemakeError(f"{was}, but {folder} holds {found}; name its folder with --guidance-checkpoint")
    weaker = weaker.model_copy(update={"folder": str(folder.resolve())})
    return replace(clip, request=clip.request.model_copy(update={"weaker": weaker}))


def _address(clip: RecordedClip, model: SampledModel, settings: SampleConfig) -> str:
    """The id that a clip of that record has."""
    request = clip.request
    text = f"{model.fingerprint} {output_json(settings)}"
    text += "" if request.weaker is None else f" {request.weaker.fingerprint}"
    start = start_of(request.image, request.given)
    return id_of(address_of(request.prompt, request.seed, request.guidance_scale, request.bucket, text, start))
