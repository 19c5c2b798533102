"""Models that write captions and score clips while shards are made: one process for each GPU, which all workers ask.

A worker waits for the judgement of its clip; meanwhile the clips of other workers join the same batch.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data.curation.caption_text import CaptionError, clean_caption
from data.curation.config import ModelsConfig
from data.curation.ledger import Filter
from data.files.checksums import file_sha256
from data.records import Frames

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

START_SECONDS = 30.0  # that the first process with models waits for the next, beside as long as it took itself
RESTART_SECONDS = 0.5  # after which a clip asks again, where no process runs
GATHER_SECONDS = 0.01  # how long a batch waits for further clips
BLANK: Frames = np.zeros((3, 64, 64, 3), np.uint8)  # judged at the start, so that a faulty model is known at once


@dataclass(frozen=True)
class Judgement:
    """What the models say about a clip."""

    caption: str  # empty: no captioner, or it had nothing to say
    scores: dict[str, float]  # `aesthetic` and `similarity`, of those that are used


class Judge(Protocol):
    """Asks the models about one clip."""

    def __call__(self, pictures: Frames, caption: str) -> Judgement:
        """The judgement.

        Args:
            pictures: its first, middle and last frame.
            caption: the one that it has so far.
        """
        ...


def check_models(config: ModelsConfig) -> None:
    """Check everything that does not need the weights.

    Raises:
        CurationModelError: a model is missing, damaged or of another kind.
    """
    from models.curation.captioner import check_captioner
    from models.curation.folders import CurationModelError
    from models.curation.scores import check_similarity

    if config.captioner is not None:
        check_captioner(config.captioner)
    if config.similarity is not None:
        check_similarity(config.similarity)
    if config.aesthetic is not None and not config.aesthetic.is_file():
        raise CurationModelError(f"{config.aesthetic}: there is no such file; give that of a TorchScript network")


def model_fingerprints(config: ModelsConfig) -> list[str]:
    """Of the files of each model that is used."""
    if not config.paths:
        return []
    from models.published import folders_fingerprint

    folders = {"captioner": config.captioner, "similarity": config.similarity}
    found = [f"{name} {folders_fingerprint(folder)}" for name, folder in folders.items() if folder is not None]
    return [*found, f"aesthetic {file_sha256(config.aesthetic)}"] if config.aesthetic is not None else found


def failed_judgement(judgement: Judgement, config: ModelsConfig) -> tuple[Filter, str] | None:
    """The first threshold that a clip does not reach, with the reason as a sentence; None if it reaches all."""
    aesthetic, similarity = judgement.scores.get("aesthetic"), judgement.scores.get("similarity")
    if aesthetic is not None and config.min_aesthetic is not None and aesthetic < config.min_aesthetic:
        return "unaesthetic", f"its aesthetic score is {aesthetic:.4g}, less than {config.min_aesthetic:g}"
    if similarity is not None and config.min_similarity is not None and similarity < config.min_similarity:
        return (
            "caption_mismatch",
            f"its similarity to its caption is {similarity:.3f}, less than {config.min_similarity:g}",
        )
    return None


class ClipModels:
    """The models of one process.

    Raises:
        CurationModelError: one cannot be loaded.
    """

    def __init__(self, config: ModelsConfig, device: "torch.device") -> None:
        from models.curation.captioner import Captioner
        from models.curation.scores import AestheticScore, PictureTextSimilarity

        self._captioner = (
            Captioner(config.captioner, config.max_caption_tokens, device) if config.captioner is not None else None
        )
        self._aesthetic = (
            AestheticScore(config.aesthetic, config.aesthetic_pixels, device) if config.aesthetic is not None else None
        )
        self._similarity = PictureTextSimilarity(config.similarity, device) if config.similarity is not None else None

    def judge(self, clips: Sequence[tuple[Frames, str]]) -> list[Judgement]:
        """What the models say about each clip: the mean over its pictures of each score.

        Args:
            clips: the pictures and the caption of each.
        """
        written = [""] * len(clips)
        if self._captioner is not None:
            written = [_cleaned(text) for text in self._captioner([pictures[1] for pictures, _ in clips])]
        scores: list[dict[str, float]] = [{} for _ in clips]
        flat = [picture for pictures, _ in clips for picture in pictures]
        if self._aesthetic is not None:
            _add_means(scores, "aesthetic", self._aesthetic(flat))
        if self._similarity is not None:
            texts = [text or caption for text, (_, caption) in zip(written, clips, strict=True)]
            repeated = [text for text, (pictures, _) in zip(texts, clips, strict=True) for _ in pictures]
            _add_means(scores, "similarity", self._similarity(flat, repeated))
        return [Judgement(text, found) for text, found in zip(written, scores, strict=True)]


def _cleaned(text: str) -> str:
    try:
        return clean_caption(text)
    except CaptionError:  # nothing is left of it
        return ""


def _add_means(scores: list[dict[str, float]], name: str, values: list[float]) -> None:
    for found, of_clip in zip(scores, np.array(values).reshape(len(scores), -1), strict=True):
        found[name] = float(of_clip.mean())


class JudgeActor:
    """The process of the models: clips that wait together are judged together."""

    def __init__(self, config: ModelsConfig) -> None:
        self._config = config
        self._models: ClipModels | None = None
        self._waiting: list[tuple[tuple[Frames, str], asyncio.Future[Judgement]]] = []
        self._running: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load the models and try them.

        Raises:
            CurationModelError: one cannot be used.
        """
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._models = ClipModels(self._config, device)
        self._models.judge([(BLANK, "a caption")])

    async def judge(self, pictures: Frames, caption: str) -> Judgement:
        """Wait for the judgement of a clip."""
        if self._models is None:  # the process was started again
            await self.load()
        future: asyncio.Future[Judgement] = asyncio.get_running_loop().create_future()
        self._waiting.append(((pictures, caption), future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._judge_waiting())
        return await future

    async def _judge_waiting(self) -> None:
        assert self._models is not None
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            batch = self._waiting[: self._config.batch_size]
            del self._waiting[: len(batch)]
            try:
                judgements = await asyncio.to_thread(self._models.judge, [clip for clip, _ in batch])
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), judgement in zip(batch, judgements, strict=True):
                    future.set_result(judgement)


class RemoteJudge:
    """Asks one of the processes, chosen by chance: their answers are equal.

    One that has died is passed over until it runs again, which may be never: where a host is lost, no other may have a
    free GPU. Where none runs, the clip waits for one until the deadline of its video.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)

    def __call__(self, pictures: Frames, caption: str) -> Judgement:
        """The judgement of a clip."""
        import ray
        from ray.exceptions import RayActorError

        shown = np.ascontiguousarray(pictures)
        while True:
            for actor in random.sample(self._actors, len(self._actors)):
                try:
                    judgement: Judgement = ray.get(actor.judge.remote(shown, caption))
                except RayActorError:
                    continue
                return judgement
            time.sleep(RESTART_SECONDS)


@contextmanager
def started_judge(config: ModelsConfig) -> Iterator[Judge | None]:
    """The processes of the models, one for each GPU of the cluster, or one without; None where no model is used.

    Raises:
        CurationModelError: a model cannot be used.
    """
    if not config.paths:
        yield None
        return
    import ray

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    # Without a CPU of its own: the workers that wait for it have taken them all. Ray repeats no call: it would wait
    # until the same process runs again.
    kind: Any = ray.remote(JudgeActor).options(num_cpus=0, num_gpus=min(1, num_gpus), max_restarts=-1)
    actors = [kind.remote(config) for _ in range(max(1, num_gpus))]
    try:
        yield RemoteJudge(_loaded(actors))
    finally:
        for actor in actors:
            ray.kill(actor)


def _loaded(actors: Sequence[Any]) -> list[Any]:
    """The processes that have loaded the models: all, but for those whose host was lost meanwhile.

    Raises:
        CurationModelError: a model cannot be used.
        RayActorError: no process has started.
    """
    import ray
    from ray.exceptions import RayActorError

    started, patience, loaded = time.monotonic(), None, list[Any]()
    loading = {actor.load.remote(): actor for actor in actors}
    while loading:
        ready, _ = ray.wait(list(loading), num_returns=1, timeout=patience)
        if not ready:
            break
        actor = loading.pop(ready[0])
        try:
            ray.get(ready[0])
        except RayActorError:
            if not (loading or loaded):
                raise
            continue
        loaded.append(actor)
        patience = time.monotonic() - started + START_SECONDS
    if len(loaded) < len(actors):
        logger.warning(
            "  models run in %d processes instead of %d: the others have not started", len(loaded), len(actors)
        )
    return loaded
