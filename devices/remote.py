"""A device at the other end of ssh: run a script there, send files there, and say in one line what went wrong.

The system's own ssh client does the work, so that its configuration, agents and jump hosts count. One connection is
made and shared by everything that follows.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgetta.errors import EdgettaError, MissingDependencyError

CONNECT_SECONDS = 15

_CONNECTION_FAILED = 255
"""Exit code of ssh itself, where the remote command has its own."""


class RemoteError(EdgettaError):
    """The device cannot be reached, lets nobody in, or failed at what it was asked to do."""


@dataclass(frozen=True)
class Address:
    """Where a device is, and how to get in.

    Attributes:
        target: `user@host` or `host`, or a name of ~/.ssh/config.
        port: of its ssh; None for what ssh's configuration says.
        identity: the file of a private key; None for those that ssh finds by itself.
        options: more options of ssh, such as "ProxyJump=gateway", each as after its `-o`.
    """

    target: str
    port: int | None = None
    identity: Path | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a remote command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line that the command wrote to standard error, or printed."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class Remote:
    """A connection to a device; use it in a `with` block.

    Raises `RemoteError` where the connection cannot be made or breaks, `MissingDependencyError` without an ssh client.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._sockets: str | None = None

    def __enter__(self) -> Remote:
        if shutil.which("ssh") is None:
            raise MissingDependencyError("this needs ssh, which is not installed: install OpenSSH's client")
        if os.name == "posix":
            # Short, because the path of a socket may have a hundred characters and no more.
            self._sockets = tempfile.mkdtemp(prefix="edgetta-", dir="/tmp" if Path("/tmp").is_dir() else None)
        try:
            self.run("true")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def run(self, script: str, *, check: bool = False) -> Answer:
        """Run a POSIX shell script there and wait for it.

        Args:
            script: its text, sent as standard input of `sh`, so that neither its length nor the login shell matter.
            check: raise `RemoteError` with the command's last words where it fails.
        """
        done = subprocess.run(self._command("sh -s"), input=script, capture_output=True, text=True, check=False)
        if done.returncode == _CONNECTION_FAILED:
            raise self._unreachable(done.stderr)
        answer = Answer(done.returncode, done.stdout, done.stderr)
        if check and answer.code != 0:
            raise RemoteError(f"{self.address.target}: {answer.complaint}")
        return answer

    def send(
        self, files: Iterable[tuple[str, Path]], folder: str, progress: Callable[[int], object] | None = None
    ) -> None:
        """Copy files into a folder there, which must exist; what arrives is whole, or `RemoteError` is raised.

        Args:
            files: (name below the folder, file here).
            folder: its path there.
            progress: is told the number of bytes sent so far.
        """
        process = subprocess.Popen(
            self._command(f"tar -xf - -C {shlex.quote(folder)}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        sent = 0
        try:
            # A reader that has gone shows in the exit code, with a reason.
            with suppress(BrokenPipeError), tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                for name, path in files:
                    archive.add(path, arcname=name, recursive=False, filter=_as_plain_file)
                    sent += path.stat().st_size
                    if progress is not None:
                        progress(sent)
        finally:
            # Whatever happened here, the tar there comes to its end before anybody tidies up behind it.
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdin = None
            _, complaint = process.communicate()
        words = complaint.decode("utf-8", "replace")
        if process.returncode == _CONNECTION_FAILED:
            raise self._unreachable(words)
        if process.returncode != 0:
            raise RemoteError(f"cannot write {folder} on {self.address.target}: {_reason(words)}")

    def _command(self, remote: str) -> list[str]:
        address = self.address
        options = [f"ConnectTimeout={CONNECT_SECONDS}", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
        if sys.stdin is None or not sys.stdin.isatty():
            options.append("BatchMode=yes")  # nobody is there who could type a password
        if self._sockets is not None:
            options += ["ControlMaster=auto", f"ControlPath={self._sockets}/s", "ControlPersist=60"]
        options += address.options
        command = ["ssh", "-T", *(part for option in options for part in ("-o", option))]
        if address.port is not None:
            command += ["-p", str(address.port)]
        if address.identity is not None:
            command += ["-i", str(address.identity), "-o", "IdentitiesOnly=yes"]
        return [*command, "--", address.target, remote]

    def _close(self) -> None:
        if self._sockets is None:
            return
        if Path(self._sockets, "s").exists():
            command = ["ssh", "-o", f"ControlPath={self._sockets}/s", "-O", "exit", "--", self.address.target]
            subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets = None

    def _unreachable(self, words: str) -> RemoteError:
        return RemoteError(unreachable(self.address, words))


def unreachable(address: Address, words: str) -> str:
    """One line about a connection that ssh could not make, from what it wrote to standard error."""
    target = address.target
    host = target.rpartition("@")[2]
    port = "" if address.port is None else f" -p {address.port}"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
        return (
            f"the key of {host} is not the one that is known: if it was flashed anew, `ssh-keygen -R {host}`; "
            "if not, somebody may be in between"
        )
    if "Host key verification failed" in words:
        return f"{host} is not known here yet: connect once with `ssh{port} {target}`, and accept its key"
    if "UNPROTECTED PRIVATE KEY FILE" in words or "bad permissions" in words:
        return f"ssh does not use a key that others may read: chmod 600 {address.identity or 'the key'}"
    if "Permission denied" in words:
        return (
            f"{target} refuses the key: put yours there with `ssh-copy-id{port} {target}`, or name one with --identity"
        )
    if "Could not resolve hostname" in words:
        return f"there is no host {host}: check the name, or use its address"
    if "Connection refused" in words:
        where = "" if address.port is None else f" at port {address.port}"
        return f"{host} does not take ssh{where}: start sshd there (`sudo systemctl enable --now ssh`), or give --port"
    if "timed out" in words or "No route to host" in words or "Network is unreachable" in words:
        return f"cannot reach {host}: is it on, and in this network? try `ping {host}`"
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith("Warning:")]
    return (
        f"the connection to {target} failed: {lines[-1] if lines else 'ssh gave no reason'}; try `ssh{port} {target}`"
    )


def _as_plain_file(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Neither this machine's users nor its permissions belong on the device."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def _reason(words: str) -> str:
    if "No space left on device" in words or "Disk quota exceeded" in words:
        return "its disk is full; free some space there, or choose another --path"
    lines: Sequence[str] = [line.strip() for line in words.splitlines() if line.strip()]
    # tar ends with "exiting with failure status"; what went wrong stands above.
    lines = [line for line in lines if "exiting now" not in line and "failure status" not in line] or lines
    return lines[0] if lines else "tar gave no reason"
