"""Seeds of independent streams, by name."""

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed for a random generator: the BLAKE2b hash of the parts, separated by spaces."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
