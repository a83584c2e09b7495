"""`edgetta sign`: a signature in a bundle, so that devices can tell it from others."""

from __future__ import annotations

from pathlib import Path

import click

from edgetta.errors import UsageError

EXAMPLES = """\b
Examples:
  edgetta sign --new-key release.key       (and release.key.pub, for the devices)
  edgetta sign bundle/ --key release.key
  edgetta run bundle/ camera:0 --require-signature release.key.pub
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="The private key to sign with.")
@click.option("--new-key", metavar="FILE", type=click.Path(path_type=Path), help="Make a key: FILE and FILE.pub.")
def command(bundle: Path | None, key: Path | None, new_key: Path | None) -> None:
    """Sign BUNDLE, a folder or a zip, with an Ed25519 key.

    Signed is the manifest, which names the SHA-256 of every file. The bundle is checked first, all of it.
    """
    from edgetta.cli.tables import print_line
    from edgetta.signature import Signer

    if (new_key is None) == (key is None) or (bundle is None and new_key is None):
        raise UsageError("give a bundle and --key FILE, or --new-key FILE to make a key first")
    if new_key is not None:
        signer = Signer.new(new_key)
        print_line(f"key {signer.verifier.name}: keep {new_key} to yourself, give {new_key}.pub to the devices")
    else:
        assert key is not None
        signer = Signer.read(key)
    if bundle is not None:
        from edgetta.bundle.signing import sign_bundle

        identity = sign_bundle(bundle, signer)
        print_line(f"{bundle} ({identity[:16]}) is signed with key {signer.verifier.name}")
