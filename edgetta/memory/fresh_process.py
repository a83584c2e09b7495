"""Run one function in a fresh process: what another measurement left behind must not show in this one's memory.

    bytes = in_fresh_process("edgetta.memory.step_peak:step_peak", bundle="wrn.bundle", batch=64)

Arguments and result travel as JSON. The child's C library gives freed memory back at once, as under a budget
(`allocator.py`), so that resident memory is memory in use.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgetta.errors import EdgettaError
from edgetta.memory.allocator import return_freed_memory


class MeasurementError(EdgettaError):
    """A measurement that did not come to its end."""


def in_fresh_process(target: str, *, give_back: bool = True, timeout: float | None = None, **arguments: Any) -> Any:
    """Call `target` ("module:function") with JSON-able `arguments` in a new Python process; its JSON-able result.

    give_back  have the C library give freed memory back at once; False: as it is by default
    timeout    seconds, after which the process is ended
    Raises `MeasurementError` with the function's own words where it raises an `EdgettaError`, with the last line of
    its traceback for anything else, and a word on memory where the system killed it.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        call = {"target": target, "arguments": arguments, "answer": str(answer), "give_back": give_back}
        command = [sys.executable, "-m", "edgetta.memory.fresh_process"]
        try:
            done = subprocess.run(command, input=json.dumps(call), capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"{target} was not done after {timeout:.0f} s; allow it more time") from error
        if answer.exists():
            content = json.loads(answer.read_text())
            if "error" in content:
                raise MeasurementError(content["error"])
            return content["result"]
    if done.returncode == -signal.SIGKILL:
        raise MeasurementError(f"{target} was killed by the system: out of memory; choose a smaller batch")
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode < 0:
        raise MeasurementError(f"{target} was ended by {signal.Signals(-done.returncode).name}")
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise MeasurementError(f"{target} failed: {words[-1]}")


def _answer(call: dict[str, Any]) -> dict[str, Any]:
    module, _, name = call["target"].partition(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(**call["arguments"])}
    except EdgettaError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"{call['target']}: out of memory; choose a smaller batch"}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    if request["give_back"]:
        return_freed_memory()
    outcome = json.dumps(_answer(request))
    Path(request["answer"]).write_text(outcome)
