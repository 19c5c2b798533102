"""How well the autoencoder reconstructs clips of the validation split."""

from pathlib import Path

import numpy as np
import torch

from data.dataset.index import IndexRow, read_index
from data.dataset.reader import PayloadReader
from data.video.codec import decode_clip
from models.autoencoder.model import psnr_db, squared_error
from pipeline.encode.chunks import pixel_chunks, reconstructed
from pipeline.encode.codec import load_autoencoder, to_frames
from pipeline.report.figures import ReconstructedClip, Reconstructions
from pipeline.run.precision import autocast, prepare_to_compute
from pipeline.run.progress import bar


def held_out_rows(dataset_dir: Path, limit: int) -> list[IndexRow]:
    """At most `limit` clips of the validation split; of the training split where the dataset has no other."""
    rows = read_index(dataset_dir, "validation") or read_index(dataset_dir)
    return list(rows[:limit])


def measure_reconstruction(
    clips_dir: Path, autoencoder_path: Path, limit: int, num_shown: int
) -> tuple[Reconstructions, list[ReconstructedClip]]:
    """Peak signal-to-noise ratio on held-out clips, and the first `num_shown` of them with their reconstructions."""
    device = torch.device("cpu")
    prepare_to_compute(device)
    network = load_autoencoder(autoencoder_path)
    rows = held_out_rows(clips_dir, limit)
    reader = PayloadReader(clips_dir)
    values, shown = [], []
    with bar("reconstruct", len(rows), "clips") as progress, torch.inference_mode():
        for number, row in enumerate(rows, 1):
            content, errors, frames = reader.read(row), 0.0, []
            with autocast("auto", device):
                most_frames = network.config.call_frames(row.height, row.width)
                chunks = pixel_chunks([content], row.num_frames, network.config.compression, most_frames)
                for pixels, reconstruction in reconstructed(network, chunks):
                    errors += pixels.shape[2] * float(squared_error(pixels, reconstruction))
                    if len(shown) < num_shown:
                        frames.append(to_frames(reconstruction[0]))
            values.append(float(psnr_db(torch.tensor(errors / row.num_frames))))
            if frames:
                shown.append(ReconstructedClip(row.caption, row.fps, decode_clip(content), np.concatenate(frames)))
            progress.update(number)
    reader.close()
    result = Reconstructions(num_clips=len(values), psnr_db=float(np.mean(values)), psnr_db_min=min(values))
    return result, shown
