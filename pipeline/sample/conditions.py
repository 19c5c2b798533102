"""Which latent frames of a clip are given, and which rows of a prompts file a model cannot do what they ask.

A causal autoencoder encodes the first 1 + 4m frames of a clip exactly to its first 1 + m latent frames. A latent frame
at the end stands for four frames that come after others, which are not known yet: it is taken from the encoding of
those frames after the frame before them, and for an image, of the image held still.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from data.errors import VideoError, shorten
from data.video.images import read_image
from data.video.resize import resize_and_crop
from pipeline.sample.clips import num_frames_in
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Length
from pipeline.sample.model import SampledModel
from pipeline.sample.prompts import Prompt, PromptError
from pipeline.sample.windows import WHOLE, Window, windows_of

BIASED = (
    "what a mask keeps is held on its path while the rest is sampled, the biased fallback for networks that cannot be "
    "told of parts of frames: new parts fit to it less well than they would to given frames"
)


@dataclass(frozen=True)
class Shape:
    """The shape of a clip in latent frames, and how much of its neighbours windows and clips give."""

    compression: Compression
    bucket: Bucket
    num_shared: int
    """Latent frames that are given of a clip, and shared by neighbouring windows, where nothing else is asked for."""

    @property
    def num_latent(self) -> int:
        """Latent frames of a window."""
        return self.compression.num_latent_frames(self.bucket.num_frames)

    def context_frames(self, length: Length) -> int:
        """Frames that are used of a clip at the start."""
        return length.context or self.compression.num_frames(self.num_shared)

    def ending_frames(self, length: Length) -> int:
        """Frames that are used of a clip at the end: the first one is encoded alone, and is left out."""
        return max(self.context_frames(length), self.compression.temporal_factor + 1)

    def windows(self, length: Length) -> list[Window]:
        """The windows of a clip."""
        if length.total_frames is None or length.total_frames == self.bucket.num_frames:
            return [WHOLE]
        return windows_of(self.compression.num_latent_frames(length.total_frames), self.num_latent, self.num_shared)


@dataclass(frozen=True)
class Named:
    """Which kinds of files a clip is given at its ends."""

    image: bool
    clip: bool
    last_image: bool
    last_clip: bool

    def given_latents(self, shape: Shape, length: Length, window: Window) -> tuple[int, int]:
        """How many latent frames of a window are given at its start and at its end."""
        first, last = window.num_shared, 0
        if window.is_first:
            first = shape.compression.num_latent_frames(shape.context_frames(length)) if self.clip else int(self.image)
        if window.is_last and self.last_image:
            last = 1
        elif window.is_last and self.last_clip:
            last = shape.compression.num_latent_frames(shape.ending_frames(length)) - 1
        return first, last


def shape_of(model: SampledModel, config: SampleConfig, bucket: Bucket, compression: Compression) -> Shape:
    """How clips of a bucket are put together of windows: by `sample.window_overlap`, or by what was trained."""
    num_latent = compression.num_latent_frames(bucket.num_frames)
    if config.window_overlap is not None:
        shared = compression.num_latent_frames(config.window_overlap)
        return Shape(compression, bucket, max(1, min(shared, num_latent - 1)))
    half = max(1, num_latent // 2)
    return Shape(compression, bucket, half if model.frames_refusal(half, 0) is None else 1)


def _overlap_problem(overlap: int | None, shape: Shape) -> str | None:
    """Why windows cannot share that many frames, and the way out; None: they can."""
    compression, bucket = shape.compression, shape.bucket
    if overlap is None or (compression.fits_length(overlap) and overlap < bucket.num_frames):
        return None
    factor, most = compression.temporal_factor, bucket.num_frames - compression.temporal_factor
    use = overlap if compression.fits_length(overlap) else compression.nearest_lengths(overlap)[1]
    return (
        f"has total_frames, but sample.window_overlap is {overlap}, and windows of {bucket.name} share {factor}k + 1 "
        f"frames, at most {most}: use {min(use, most)}"
    )


def check_given(model: SampledModel, prompt: Prompt, bucket: Bucket, config: SampleConfig) -> None:
    """Refuse a prompt that gives what the model cannot use.

    Args:
        bucket: its shape.
        config: the settings that it is sampled with.

    Raises:
        PromptError: names the column and the way out.
    """
    if (problem := _problem(model, prompt, bucket, config)) is not None:
        raise PromptError(f"prompt {shorten(prompt.prompt, 60)!r} {problem}")


def _problem(model: SampledModel, prompt: Prompt, bucket: Bucket, config: SampleConfig) -> str | None:
    """What the model cannot do of a prompt, and the way out; None: nothing."""
    columns = ("clip", "last_image", "last_clip", "source", "total_frames")
    asked = [name for name in columns if getattr(prompt, name) is not None]
    if "window_overlap" in prompt.settings and prompt.total_frames is None and prompt.clip is None:
        return "has window_overlap, which is of clips of several windows: give total_frames too, or leave it out"
    if not asked:
        return None
    if model.network.needs_image:
        return f"has {asked[0]}, but {model.folder} is given the first frame alone, as image: leave {asked[0]} out"
    if bucket.num_frames == 1 and asked != ["source"]:
        return f"has {asked[0]}, but its bucket is {bucket.name}, a single frame: name a bucket of more frames"
    shape = shape_of(model, config, bucket, model.compression)
    compression = shape.compression
    for column in ("context", "total_frames"):
        value = getattr(prompt, column)
        if value is not None and not compression.fits_length(value):
            below, above = compression.nearest_lengths(value)
            factor = compression.temporal_factor
            return f"has {column} {value}, but clips have {factor}k + 1 frames: use {below} or {above}"
    if prompt.total_frames is not None and prompt.total_frames < bucket.num_frames:
        return (
            f"has total_frames {prompt.total_frames}, but its bucket is {bucket.name}: use {bucket.num_frames} or more"
        )
    if prompt.total_frames is not None and (problem := _overlap_problem(config.window_overlap, shape)) is not None:
        return problem
    if config.solver == "dopri5" and asked != ["source"]:
        return (
            f"has {asked[0]}, and frames that are given are at times of their own, but the solver dopri5 takes one "
            "time for all frames: use one of fixed steps, such as heun"
        )
    if model.flow.matching is not None and prompt.strength not in (None, 1):
        return (
            f"has strength {prompt.strength:g}, but {model.folder} was trained by distribution matching, from noise "
            "alone at first: leave strength out, or use another network"
        )
    return _files_problem(prompt, shape) or _frames_problem(model, prompt, shape, asked) or _late(prompt, shape)


def _files_problem(prompt: Prompt, shape: Shape) -> str | None:
    """What is wrong with the videos and the mask of a prompt."""
    needs = (
        ("clip", shape.context_frames(prompt)),
        ("last_clip", shape.ending_frames(prompt)),
        ("source", shape.bucket.num_frames),
    )
    for column, num_frames in needs:
        path = getattr(prompt, column)
        if path is None:
            continue
        try:
            found = num_frames_in(Path(path), shape.bucket.fps)
        except (OSError, VideoError) as error:
            return f"names a {column} that cannot be read: {error}"
        if found < num_frames:
            way = "name a longer one" if column == "source" else "name a longer one, or a smaller context"
            at = f"at {shape.bucket.fps:g} fps"
            return f"names a {column} of {found} frames {at}, but {num_frames} are needed: {way}"
    if prompt.mask is not None:
        kept = read_mask(Path(prompt.mask), shape.bucket, shape.compression)
        if kept.all():
            return "has a mask that is black everywhere, so nothing is made anew: make it white where something is"
    return None


def _frames_problem(model: SampledModel, prompt: Prompt, shape: Shape, asked: Sequence[str]) -> str | None:
    """Why frames cannot be given to the model where the prompt gives them."""
    named = Named(*(getattr(prompt, name) is not None for name in ("image", "clip", "last_image", "last_clip")))
    for window in shape.windows(prompt):
        first, last = named.given_latents(shape, prompt, window)
        if first + last >= shape.num_latent:
            return (
                f"has {' and '.join(asked)}, by which {first + last} of the {shape.num_latent} latent frames of "
                f"{shape.bucket.name} are given, so that none is left to make: lower context, sample.window_overlap or "
                "what else is given"
            )
        if refusal := model.frames_refusal(first, last):
            return f"has {asked[0]}, but {refusal}, or leave {asked[0]} out"
    return None


def _late(prompt: Prompt, shape: Shape) -> str | None:
    """Whether a later prompt would never be used."""
    if prompt.later_prompts is None:
        return None
    compression, fps = shape.compression, shape.bucket.fps
    begins = [window.first_new_seconds(compression, fps) for window in shape.windows(prompt)]
    times = [each.seconds for each in prompt.later_prompts]
    for seconds, until in zip(times, [*times[1:], float("inf")], strict=True):
        if not any(seconds <= begin < until for begin in begins):
            return (
                f"has a later prompt at {seconds:g} s that no window takes: windows begin at "
                f"{', '.join(f'{begin:g}' for begin in begins)} s"
            )
    return None


def read_mask(path: Path, bucket: Bucket, compression: Compression) -> Bool[np.ndarray, "h w"]:
    """Which latent positions a mask keeps: those whose pixels are all black, below half of white.

    Raises:
        VideoError: it cannot be decoded.
        OSError: it cannot be read.
    """
    picture = resize_and_crop(read_image(path)[None], bucket.height, bucket.width)[0]
    side = compression.spatial_factor
    is_new = picture.max(-1).reshape(bucket.height // side, side, bucket.width // side, side) > 127
    return ~is_new.any((1, 3))
