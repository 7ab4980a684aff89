"""Seeds of independent streams, by name."""

import hashlib


def seed_of(*parts: object) -> int:
    """Hash the parts, separated by spaces, with BLAKE2b into a 63-bit seed for a random generator."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
