"""The samplers of a process: that of its job's model, and those of checkpoints that rows name for themselves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.checkpoint.record import CheckpointError
from pipeline.run.precision import prepare_to_compute
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler

if TYPE_CHECKING:
    from pipeline.sample.sharing import Sharing


class Samplers:
    """A `ClipSampler` of a model, and of other checkpoints that requests name, of which the last one is kept.

    Args:
        rank: of this process among those that share the tokens of each clip.
    """

    def __init__(self, model: SampledModel, config: SampleConfig, device: torch.device, rank: int = 0) -> None:
        self._config, self._device, self._rank = config, device, rank
        self.own = ClipSampler(model, config, device, rank)
        self._other: ClipSampler | None = None

    def of(self, request: PromptRequest) -> ClipSampler:
        """The sampler of the checkpoint that a request names, or else of the model.

        Raises:
            CheckpointError: the checkpoint is not what it was when the job was planned.
        """
        if (named := request.checkpoint) is None:
            return self.own
        if self._other is None or self._other.model.fingerprint != named.fingerprint:
            self._other = None  # so that never more than two are in memory
            model = open_model(Path(named.folder))
            if model.fingerprint != named.fingerprint:
                raise CheckpointError(f"{named.folder} has changed since the job began; start it again")
            weights = (request.settings or self._config).weights
            config = self._config.model_copy(update={"weights": weights})
            self._other = ClipSampler(model, config, self._device, self._rank)
        return self._other


class SamplingProcess:
    """What makes clips in this process, and in others if they share the tokens of each clip with it.

    Args:
        num_threads: that compute in each process.
    """

    def __init__(self, model: SampledModel, config: SampleConfig, num_threads: int) -> None:
        self._model, self._config, self._num_threads = model, config, num_threads
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prepare_to_compute(self._device, num_threads)
        self._sharing: Sharing | None = None
        self._samplers: Samplers | None = None
        self._start()

    def _start(self) -> Samplers:
        if self._config.sequence_parallel > 1:
            from pipeline.sample.sharing import Sharing

            self._sharing = Sharing(self._model, self._config, self._device, self._num_threads)
        self._samplers = Samplers(self._model, self._config, self._device)
        return self._samplers

    @contextmanager
    def batch(self, requests: Sequence[PromptRequest]) -> Iterator[ClipSampler]:
        """The sampler of requests that differ in prompt, seed and files alone; the block makes all of their groups.

        Raises:
            CheckpointError: a checkpoint that the requests name is not what it was when the job was planned.
            LostProcessError: a process that shares the clips was killed.
        """
        samplers = self._samplers or self._start()
        try:
            if self._sharing is not None:
                self._sharing.send(requests)
            yield samplers.of(requests[0])
        except BaseException:
            try:
                if self._sharing is not None:
                    self._sharing.check_alive()
            finally:
                self.close()  # they may be at different places in a clip: the next batch starts others
            raise

    def close(self) -> None:
        """End the processes that share the clips, if there are any."""
        if self._sharing is not None:
            self._samplers = None
            self._sharing.close()
            self._sharing = None
