"""Settings of the sample stage."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data.files.locations import Place
from data.records import AddedLater, Runtime, Settings, Text
from data.video.config import VideoConfig
from models.attention.config import AttentionBackend
from models.flow.spec import SampledPathName, SolverName
from pipeline.encode.config import MIN_TILE, TILE_MULTIPLE
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST_AVERAGE, WeightsName

GuidanceRule = Literal["plain", "cfg-zero-star", "apg", "rescaled"]
GridName = Literal["even", "diffusers_euler", "diffusers_unipc", "karras", "linear_quadratic"]
Schedule = Literal["full_sequence", "pyramid", "autoregressive"]
OutputFormat = Literal["mp4", "frames", "gif", "webp", "webdataset"]
Share = Annotated[float, Field(ge=0, le=1)]


class SampleConfig(Settings):
    """How clips are sampled."""

    solver: SolverName = "heun"
    """Method that integrates the flow from noise (time 0) to data (time 1). Midpoint and heun evaluate the network
    twice per step, rk4 four times, all others once. flow_map jumps from time to time in one call each, with guidance in
    it, and needs a network that was trained as a flow map (`dit.flow.map`, `distill`). renoise jumps to the data in
    each call and goes back to the next time by fresh noise: for flow maps, and the only one for students by
    `distill.kind: distribution_matching`. jumps is the method of networks that predict tokens (`dit.flow.tokens`), and
    of no others: one call a step. dopri5 chooses its own steps by `tolerance` instead of `steps`, `shift` and `grid`,
    and computes clips one by one.
    """
    steps: int = Field(default=20, ge=1)
    """Number of steps of the solver."""
    shift: float = Field(default=1.0, gt=0)
    """Time shift of the steps: above 1 they are denser near noise, below 1 denser near data, 1 spaces them evenly."""
    grid: Annotated[GridName, AddedLater("even")] = "even"
    """Times of the steps before the shift: `even`, or those of diffusers' schedulers for flows, with which published
    networks are sampled: `diffusers_euler`, or `diffusers_unipc`, where the network sees thousandths of the time.
    `karras` spaces ratios of noise to data by their seventh root (Karras et al. 2022, eq. 5); `linear_quadratic` takes
    half of the steps up to time 0.025, and then steps that grow (Polyak et al. 2024, section 3.4.2).
    """
    flow_path: Annotated[SampledPathName | None, AddedLater(None)] = None
    """Another path than that of the training, on which the same network is integrated (Karras et al. 2022, section 4):
    where it bends less, fewer steps do. `ve` is variance exploding. None: the path of the training.
    """
    tolerance: Annotated[float, AddedLater(1e-5)] = Field(default=1e-5, gt=0, le=0.1)
    """Largest error of a step of the solver dopri5, relative and absolute."""
    temperature: Annotated[float, AddedLater(1.0)] = Field(default=1.0, gt=0)
    """Divides the logits of tokens with the solver `jumps`: below 1 likely tokens become likelier."""
    corrector: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, lt=1)
    """Share of each step of the solver `jumps` that is gone back afterwards, in [0, 1): tokens return to the source at
    random and are drawn anew with the next step, so that the network can change what it chose when it knew less.
    """
    bucket: str | None = None
    """Shape of the clips, written frames x height x width @ frames per second, such as 17x64x64@8. A shape that the
    network was not trained on is sampled with a warning. None takes the one with most training clips.
    """
    schedule: Schedule = "full_sequence"
    """Order in which latent frames are denoised: full_sequence all together, pyramid each frame `pyramid_delay` steps
    after the frame before it, autoregressive each frame after the frame before it is finished. The last two need a
    network that was trained with `flow.times_per: frame`.
    """
    pyramid_delay: Annotated[int, AddedLater(1)] = Field(default=1, ge=1)
    """Steps by which each latent frame starts after the one before it in the schedule `pyramid`."""
    window_overlap: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=1)
    """Frames that a window of a clip longer than its bucket shares with the window before, 4k + 1, such as 5. None:
    about half a window, or one frame where the network was trained with the first frame alone given.
    """
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance: 1 means no guidance, larger values follow the prompt more closely."""
    guidance: GuidanceRule = "plain"
    """How the predictions with and without the prompt are combined: plain (Ho & Salimans 2022), cfg-zero-star (Fan et
    al. 2025), apg (adaptive projected guidance, Sadat et al. 2024) or rescaled (Lin et al. 2024).
    """
    guidance_interval: Annotated[tuple[Share, Share], AddedLater((0.0, 1.0))] = (0.0, 1.0)
    """First and last time at which the rule `plain` guides; outside of them the scale is 1 (Kynkäänniemi et al. 2024).
    """
    zero_until: Annotated[Share, AddedLater(0.0)] = 0.0
    """Time up to which the rule cfg-zero-star takes the velocity as zero."""
    rescale: Annotated[Share, AddedLater(0.7)] = 0.7
    """Strength phi of the rule `rescaled`: 0 is the plain rule, 1 the full correction."""
    apg_eta: Annotated[float, AddedLater(0.0)] = 0.0
    """Share that the rule apg keeps of the component that mainly saturates colours; 1 keeps all of it."""
    apg_momentum: Annotated[float, AddedLater(-0.5)] = Field(default=-0.5, gt=-1, lt=1)
    """Weight with which the rule apg adds its running average; below 0 it weakens what earlier steps changed."""
    apg_threshold: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0)
    """Largest norm of the difference that the rule apg adds; 0 sets no limit."""
    guidance_checkpoint: Annotated[Path | None, Runtime] = None
    """Folder of a weaker checkpoint, such as one of an early step, whose prediction with the prompt takes the place of
    that without it (autoguidance, Karras et al. 2024). Clips depend on what it holds, not on where it is.
    """
    guidance_weights: Annotated[WeightsName, AddedLater(FIRST_AVERAGE)] = FIRST_AVERAGE
    """Weights of `guidance_checkpoint` to use, as `weights`."""
    negative_prompt: Text | None = None
    """Prompt that guidance moves away from; None takes the null caption that the network was trained with."""
    sde_sigma: float = Field(default=0.0, ge=0)
    """Standard deviation at time 0 of the noise that is added while sampling, per square root of unit time; it falls
    with the noise level. Above 0 the stochastic Euler-Maruyama method replaces `solver`.
    """
    ddim_eta: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, le=1)
    """Share of fresh noise in the steps of the solver ddim: 0 none, 1 as in ancestral sampling (DDPM)."""
    batch: Annotated[int, Runtime] = Field(default=24, ge=1)
    """Number of clips that a worker takes at once. It changes no clip: how many of them the network computes together
    follows from their size alone.
    """
    sequence_parallel: Annotated[int, AddedLater(1)] = Field(default=1, ge=1)
    """Number of workers that make each clip together, for clips that are too large or too slow for one: they share its
    tokens, and must divide the network's heads and the tokens of a frame. They are processes of one machine, each with
    the resources of a worker. Clips differ in their last bits from those of one worker.
    """
    tile: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=MIN_TILE, multiple_of=TILE_MULTIPLE)
    """Side in pixels of the tiles in which larger frames are decoded, one after another, which saves memory. Tiles
    overlap by a quarter and are blended; results differ slightly from those of whole frames. None: whole frames.
    """
    weights: WeightsName = FIRST_AVERAGE
    """Weights of the checkpoint to use: "master" (as trained), "ema" (the first moving average) or the name of another
    average.
    """
    precision: Precision = "auto"
    """Floating-point type of matrix products: auto takes bf16 where the hardware has instructions for it, otherwise
    fp32.
    """
    attention: Annotated[AttentionBackend, Runtime] = "auto"
    """The kernel that computes attention in the network's blocks: auto chooses one for each call; any other ends the
    sampling, with the reason, at a call that it does not take.
    """
    text_encoder: Annotated[Path | None, Runtime] = None
    """Folder of the text encoder that the network was trained with, if it is not where it was then; None takes the
    folder that the checkpoint names.
    """

    @field_validator("guidance_interval", mode="before")
    @classmethod
    def _split(cls, interval: Any) -> Any:  # noqa: ANN401 - whatever a table holds
        return interval.split(",") if isinstance(interval, str) else interval

    @property
    def is_adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.solver == "dopri5" and self.sde_sigma == 0


class OutputsConfig(Settings):
    """Which files are made of each clip. They do not change the clip itself, nor its name."""

    outputs: Annotated[tuple[OutputFormat, ...], AddedLater(("mp4",))] = ("mp4",)
    """Formats to write: `mp4`, which is always one of them; `frames`, all frames without loss (PNG pictures in a zip
    file); `gif` and `webp`, small animated pictures; `webdataset`, shards of clips with latents, prompts and settings
    in the folder `dataset`, on which networks can be trained (docs/guides/sampling.md).
    """
    video: Annotated[VideoConfig, AddedLater(VideoConfig())] = VideoConfig()
    """How the MP4 files are compressed."""
    preview_side: Annotated[int, AddedLater(256)] = Field(default=256, ge=16, le=2048)
    """Most pixels of a side of `gif` and `webp`; larger clips are shrunk."""
    clips_per_shard: Annotated[int, AddedLater(256)] = Field(default=256, ge=1)
    """Most clips in a shard of `webdataset`."""

    @field_validator("outputs", mode="before")
    @classmethod
    def _listed(cls, outputs: Any) -> Any:  # noqa: ANN401 - whatever a file or `--set` holds
        return [part.strip() for part in outputs.split(",")] if isinstance(outputs, str) else outputs

    @field_validator("outputs")
    @classmethod
    def _with_mp4(cls, outputs: tuple[OutputFormat, ...]) -> tuple[OutputFormat, ...]:
        if "mp4" not in outputs:
            raise ValueError("mp4 has to be among them: the page, evaluation and `remake` read it")
        return tuple(dict.fromkeys(outputs))


MP4_ALONE = OutputsConfig()


class SampleSection(OutputsConfig, SampleConfig):
    """How clips are sampled, and of which prompts."""

    prompts: Annotated[Place | None, Runtime] = None
    """Prompts file, a path or URI (s3, gs, az, file): text with one prompt per line, or a table (.jsonl, .csv, .tsv,
    .json, .parquet) with options for each row (docs/guides/sampling.md). None samples combinations that were held out
    of training (synthetic videos) or captions of the data set (other videos).
    """
    compare_unguided: bool = False
    """Sample every prompt a second time without guidance, for comparison."""

    bad_rows: Annotated[Literal["refuse", "set_aside"], Runtime] = "refuse"
    """What becomes of a prompts file with rows that cannot be sampled: `refuse` ends the command before anything
    starts; `set_aside` lists them in failed.jsonl, samples the others, and ends with exit code 1.
    """

    def sampler(self) -> SampleConfig:
        """The settings without the prompts."""
        return SampleConfig(**{name: getattr(self, name) for name in SampleConfig.model_fields})

    def files(self) -> OutputsConfig:
        """Which files are made of each clip."""
        return OutputsConfig(**{name: getattr(self, name) for name in OutputsConfig.model_fields})

    @property
    def guidance_scales(self) -> list[float]:
        """The guidance scales to sample at, the highest first."""
        return sorted({self.guidance_scale, 1.0}, reverse=True) if self.compare_unguided else [self.guidance_scale]
