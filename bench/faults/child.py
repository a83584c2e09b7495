"""The process that is killed: it learns, writes a row and saves, over and over, as fast as the disk lets it.

python -m edgetta.bench.faults.child FOLDER NUMBERS
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgetta.predictions import Prediction, open_writer
from edgetta.state_files import Contents, StateFile


def main(folder: str, numbers: str) -> None:
    """Go on in `folder`, with a state of so many `numbers`; says where it is, a line at a time."""
    file = StateFile(Path(folder) / "state")
    learnt: list[int] = [0]
    with file.lock():
        file.tidy()
        found = file.load(lambda contents: learnt.append(int(contents.info["step"])))
        step = learnt[-1]
        say(f"from {step} {len(found.told)}")
        with open_writer(Path(folder) / "rows.jsonl", append=True) as writer:
            index = writer.next_index
            while True:
                step += 1
                writer.write([Prediction(index, f"frame[{index}]", 0, 1.0, 0.0, True)])
                index += 1
                say(f"saving {step} {index}")
                weights = np.full(int(numbers), step, np.float32)
                file.save(Contents({"weights": weights}, {"step": step, "rows": index}))
                say(f"saved {step} {index}")


def say(line: str) -> None:
    """A line for the parent, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
