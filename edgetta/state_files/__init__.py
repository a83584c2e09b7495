"""What was learnt, on disk: arrays by name and a few facts, whatever they are, so that no end of a process loses them.

file = StateFile("learnt.safetensors")      # the three latest saves, each checksummed
with file.lock():                            # one process writes it
    found = file.load(restore)               # the newest whole one; damaged ones are set aside
    saver = Saver(file, contents)            # by time, where something was learnt, and again after a failure
"""

from edgetta.state_files.contents import Contents, decode, encode
from edgetta.state_files.generations import GENERATIONS, Found, StateFile
from edgetta.state_files.saver import Saver

__all__ = ["GENERATIONS", "Contents", "Found", "Saver", "StateFile", "decode", "encode"]
