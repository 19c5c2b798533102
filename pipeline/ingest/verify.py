"""Whether every shard is as it was planned, seen while the commits are read once at the end of the stage.

A worker may have failed to write a shard, because a host that held its clips was lost or a shard that clips are taken
from is damaged, and a sidecar may have changed since its caption was read. Then the caller plans again.
"""

from collections.abc import Iterator, Sequence

from data.curation.source import Source
from pipeline.ingest.commit import ShardCommit
from pipeline.ingest.duplicates import kept_clips
from pipeline.ingest.plan import Plan, caption_for
from pipeline.run.commits import read_commit


class NotAsPlannedError(Exception):
    """A shard is not as it was planned; the message says which one."""


def verified_commits(plan: Plan, present: Sequence[Source]) -> Iterator[ShardCommit]:
    """The commits of all shards of a plan that has been carried out, in order; one at a time is in memory.

    Args:
        present: the sources with what is known now of their sidecars.

    Raises:
        NotAsPlannedError: a shard is not as it should be.
    """
    source_of = {source.name: source for source in present}
    for shard in plan.shards:
        commit = read_commit(ShardCommit, shard.path)
        if commit is None or commit.input_fingerprint != shard.made_from:
            raise NotAsPlannedError(f"{shard.path} could not be written")
        keys, captions = commit.keys_and_captions()
        for report in commit.reports:
            name = report.source
            if keys.get(name, set()) != {clip.key for clip in kept_clips(report, plan.dropped)}:
                raise NotAsPlannedError(f"{shard.path} could not be written with the present clips of {name}")
            caption = caption_for(source_of[name], report, captions.get(name), plan.config)
            if caption is None or captions.get(name, caption) != caption:
                raise NotAsPlannedError(f"the caption of {name} has changed")
        yield commit
