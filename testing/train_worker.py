"""One worker process of a group: `torchrun -m testing.train_worker DATA RUN STEPS [compile]`."""

import sys
from functools import partial
from pathlib import Path

from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from testing.tiny import CONFIG, make_task

if __name__ == "__main__":
    data_dir, run_dir, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # Fewer steps than the whole run need a constant learning rate, so that the steps in common are equal.
    config = CONFIG if steps == CONFIG.steps else CONFIG.model_copy(update={"steps": steps, "schedule": "constant"})
    config = config.model_copy(update={"compile": sys.argv[4:] == ["compile"]})
    train_here(partial(train, make_task(data_dir), config, run_dir), 1)
