"""A training of a small autoencoder with both networks, which takes seconds, and jobs of it for worker processes."""

from pathlib import Path

from models.autoencoder.config import AdversarialConfig, AutoencoderConfig, AutoencoderLossConfig
from pipeline.distributed.process_group import Worker
from pipeline.engine.config import ZeroStage
from pipeline.engine.ema_profile import FixedDecay
from pipeline.train.config import AutoencoderTrainConfig
from pipeline.train.loop import train
from pipeline.train.tasks.autoencoder import AutoencoderTask
from testing.clips import write_clips

MODEL = AutoencoderConfig(latent_channels=4, width=8, deep_width=16)
ADVERSARIAL = AdversarialConfig(width=4, num_layers=2, start_step=2, learning_rate_scale=0.5)
LOSS = AutoencoderLossConfig(gradient=0.5, adversarial=ADVERSARIAL)
IMAGE_SHARE = 0.3
CONFIG = AutoencoderTrainConfig(
    steps=6,
    global_batch=4,
    schedule="constant",
    warmup_steps=2,
    precision="fp32",
    checkpoint_every_steps=3,
    log_every_steps=1,
    validation_clips=2,
    image_share=IMAGE_SHARE,
    ema=(FixedDecay(decay=0.9),),
)


def write_dataset(folder: Path) -> None:
    """A shard of ten clips of 5 frames of 16 x 16 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clips(folder / "shard-00000.tar", [5] * 10, 16)


def make_task(folder: Path, loss: AutoencoderLossConfig = LOSS, image_share: float = IMAGE_SHARE) -> AutoencoderTask:
    """A small autoencoder on those clips."""
    return AutoencoderTask(model=MODEL, dataset_dir=folder, seed=7, loss=loss, image_share=image_share)


def train_both(worker: Worker, data: Path, run_dir: Path, stage: ZeroStage, steps: int) -> None:
    """Train both networks up to a step, from the newest checkpoint."""
    train(make_task(data), CONFIG.model_copy(update={"zero_stage": stage, "steps": steps}), run_dir, worker)
