"""Training samples that cannot be read: said at once, listed, counted, and the end of the training above a limit.

The stream replaces such a sample by another, so a damaged shard would otherwise change what is learned without a word.
Readers are ahead of the training, so a sample counts when its batch is consumed: the count after a step depends on the
data and the step alone, not on threads, workers or restarts.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

from data.errors import ReelflowError
from data.files.jsonl import append_line, publish_jsonl, read_jsonl
from data.stream.loader import SkippedSample, Stream
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.engine.zero import ZeroTrainer

SKIPPED_NAME = "skipped.jsonl"


class UnreadableError(ReelflowError, ValueError):
    """Too many training samples cannot be read; the message says how many, which, and the way out."""


class UnreadableSamples:
    """The samples that could not be read so far. Constructed and called by all ranks.

    Lines of skipped.jsonl at or after `cursor` are removed, because these samples are read again.

    Args:
        cursor: number of samples that were consumed before.
        max_share: of the training samples that may be unreadable, in [0, 1].
        saved_step: the step of the newest checkpoint, or 0.
    """

    def __init__(
        self,
        run_dir: Path,
        stream: Stream,
        trainer: ZeroTrainer,
        cursor: int,
        max_share: float,
        saved_step: Callable[[], int],
    ) -> None:
        self._path, self._stream, self._max_share = run_dir / SKIPPED_NAME, stream, max_share
        self._saved_step = saved_step
        self._is_first = trainer.rank == 0
        # The ranks of a sequence group read the same samples, so only the first one of each group tells.
        self._tells = trainer.rank % (trainer.world_size // trainer.data_world_size) == 0
        before = _drop_after(self._path, cursor) if self._is_first else []
        before = from_rank_zero(before)
        self._keys = {sample.key for sample in before}
        self.num_replaced = len(before)
        """How often a sample was replaced."""

    def has_new(self, cursor: int) -> bool:
        """Whether this rank could not read a sample of the batches up to `cursor` and has not yet reported it."""
        return self._stream.has_skipped(cursor)

    def report(self, step: int, cursor: int) -> str | None:
        """List what could not be read in the batches up to `cursor`. Collective.

        Returns:
            A line for the user, or None: it is given for the first such sample, and whenever their number doubles.

        Raises:
            UnreadableError: on every rank: more of the training samples than `max_share` cannot be read.
        """
        own = self._stream.take_skipped(cursor)
        new = sorted(chain.from_iterable(from_every_rank(own if self._tells else [])), key=lambda s: s.position)
        num_before = len(self._keys)
        self._keys |= {sample.key for sample in new}
        self.num_replaced += len(new)
        if self._is_first:
            for sample in new:
                append_line(self._path, sample)
        if not new:
            return None
        number, total = len(self._keys), self._stream.num_samples
        told = f"{number} of {total} training samples ({number / total:.2%}) cannot be read"
        example = f"such as {new[-1].key}: {new[-1].reason[:300]}"
        if number > self._max_share * total:
            saved = self._saved_step()
            goes_on = f"goes on from the checkpoint of step {saved}" if saved else "begins again: none was saved"
            raise UnreadableError(
                f"{told} by step {step}, more than train.max_unreadable_share {self._max_share:g} allows; {self._path} "
                f"lists them, {example}. Restore the files and start again: the training {goes_on}. Or raise "
                "train.max_unreadable_share to train on the other samples"
            )
        if num_before.bit_length() == number.bit_length():
            return None
        return (
            f"{told} and are replaced by others, {example} (all are in {self._path}; the training stops above "
            f"{self._max_share:.2%}, train.max_unreadable_share)"
        )


def num_replaced_samples(run_dir: Path) -> int:
    """How often a training in `run_dir` replaced a sample that it could not read, over all its starts."""
    return len(_read(run_dir / SKIPPED_NAME))


def _read(path: Path) -> list[SkippedSample]:
    return read_jsonl(path, SkippedSample, skip_damaged=True)


def _drop_after(path: Path, cursor: int) -> list[SkippedSample]:
    """Remove the lines at or after `cursor`, which were read by steps that run again; returns the others."""
    lines = _read(path)
    kept = [sample for sample in lines if sample.position < cursor]
    if len(kept) < len(lines):
        publish_jsonl(path, kept)
    return kept
