"""Messages reach the console as they are and the files with time and level; handlers go when the block ends."""

import logging
import re
from pathlib import Path

from pipeline.run.logs import console_log, file_log, rank_log
from pipeline.run.progress import bar

logger = logging.getLogger("pipeline.run.somewhere")
library = logging.getLogger("some_library")


def test_console_shows_messages_of_the_level_and_above(capsys):
    with console_log(logging.INFO):
        logger.info("draw: %s", "new")
        logger.debug("details")
        library.warning("of a library")
    logger.info("after the block")
    assert capsys.readouterr().out == "draw: new\n"
    with console_log(logging.WARNING):
        logger.info("draw: new")
        logger.warning("careful")
    assert capsys.readouterr().out == "careful\n"
    with console_log(logging.DEBUG):
        logger.debug("details")
    assert capsys.readouterr().out == "details\n"


def test_a_file_holds_time_level_module_and_traceback(tmp_path):
    path = tmp_path / "logs" / "driver.log"
    with file_log(path):
        logger.info("shard: new")
        library.warning("deprecated")
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("it failed")
    logger.info("after the block")
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO pipeline.run.somewhere: shard: new", first)
    assert rest[0].endswith("WARNING some_library: deprecated")
    assert rest[-1] == "ValueError: broken"
    with file_log(path):
        logger.info("a second start")
    assert path.read_text(encoding="utf-8").splitlines()[0] == first  # appended, not replaced


def test_every_rank_has_a_file_of_its_own():
    paths = {rank_log(Path("runs/x"), "train dit", rank) for rank in range(3)}
    assert len(paths) == 3
    assert Path("runs/x/logs/train-dit-rank-00002.log") in paths


def test_progress_is_silent_where_only_warnings_are_shown(capsys):
    for level, shown in ((logging.INFO, True), (logging.WARNING, False)):
        with console_log(level), bar("draw", 2, "videos") as progress:
            progress.update(2)
        assert ("draw  2/2 videos" in capsys.readouterr().out) is shown
