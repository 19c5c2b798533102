"""Settings of the sample stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.records import AddedLater, Runtime, Settings, Text
from models.attention.config import AttentionBackend
from models.flow.spec import OdeSolver
from pipeline.encode.config import MIN_TILE, TILE_MULTIPLE
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST_AVERAGE, WeightsName

GuidanceRule = Literal["plain", "cfg-zero-star", "apg", "rescaled"]
GridName = Literal["even", "diffusers_euler", "diffusers_unipc"]
Schedule = Literal["full_sequence", "pyramid", "autoregressive"]


class SampleConfig(Settings):
    """How clips are sampled."""

    solver: OdeSolver = "heun"
    """Method that integrates the flow from noise (time 0) to data (time 1). Midpoint and heun evaluate the network
    twice per step, rk4 four times, all others once.
    """
    steps: int = Field(default=20, ge=1)
    """Number of steps of the solver."""
    shift: float = Field(default=1.0, gt=0)
    """Time shift of the steps: above 1 they are denser near noise, below 1 denser near data, 1 spaces them evenly."""
    grid: Annotated[GridName, AddedLater("even")] = "even"
    """Times of the steps before the shift: `even`, or those of diffusers' schedulers for flows, with which published
    networks are sampled: `diffusers_euler`, or `diffusers_unipc`, where the network sees thousandths of the time.
    """
    bucket: str | None = None
    """Shape of the clips, written frames x height x width @ frames per second, such as 17x64x64@8. It must be one that
    the network was trained on; None takes the one with most training clips.
    """
    schedule: Schedule = "full_sequence"
    """Order in which latent frames are denoised: full_sequence all together, pyramid each frame one step after the
    frame before it, autoregressive each frame after the frame before it is finished. The last two need a network that
    was trained with `flow.times_per: frame`.
    """
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
    negative_prompt: Text | None = None
    """Prompt that guidance moves away from; None takes the null caption that the network was trained with."""
    sde_sigma: float = Field(default=0.0, ge=0)
    """Standard deviation at time 0 of the noise that is added while sampling, per square root of unit time; it falls
    with the noise level. Above 0 the stochastic Euler-Maruyama method replaces `solver`.
    """
    batch: Annotated[int, Runtime] = Field(default=24, ge=1)
    """Number of clips that a worker takes at once. It changes no clip: how many of them the network computes together
    follows from their size alone.
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


class SampleSection(SampleConfig):
    """How clips are sampled, and of which prompts."""

    prompts: Annotated[Path | None, Runtime] = None
    """Prompts file: text with one prompt per line, or a table (.jsonl, .csv, .json) with options. None samples
    combinations that were held out of training (synthetic videos) or captions of the data set (other videos).
    """
    compare_unguided: bool = False
    """Sample every prompt a second time without guidance, for comparison."""

    def sampler(self) -> SampleConfig:
        """The settings without the prompts."""
        return SampleConfig(**self.model_dump(exclude={"prompts", "compare_unguided"}))

    @property
    def guidance_scales(self) -> list[float]:
        """The guidance scales to sample at, the highest first."""
        return sorted({self.guidance_scale, 1.0}, reverse=True) if self.compare_unguided else [self.guidance_scale]
