"""`edgetta verify`: is a bundle whole, and did the owner of a key sign it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgetta.signature import Verifier


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), required=True, help="The signer's public key.")
def command(bundle: Path, key: Path) -> None:
    """Check that the owner of a public key signed BUNDLE, and that every file is the one that was signed.

    The exit code is 4 where that is not so.
    """
    from edgetta.bundle import read_bundle
    from edgetta.cli.tables import print_line

    signer = verifier(key)
    assert signer is not None
    opened = read_bundle(bundle, signer)
    files = len(opened.files.manifest.files)
    print_line(f"{bundle} is whole ({files} files) and signed with key {signer.name}", style="green")
    if opened.unlisted:
        print_line(f"not part of the bundle, not signed, and not read: {', '.join(opened.unlisted)}", style="yellow")


def verifier(key: Path | None) -> Verifier | None:
    """The public key in a file; None where none is asked for."""
    if key is None:
        return None
    from edgetta.signature import Verifier

    return Verifier.read(key)
