"""Files of models: the ``.walsh`` container, its packings, and the published container."""

from walsh.codec.container import WalshFile, dump, load, read_walsh, summary, write_walsh
from walsh.codec.packings import choose, pack, unpack
from walsh.codec.rows import four_bit_rows, quantise_rows

__all__ = [
    "WalshFile",
    "choose",
    "dump",
    "four_bit_rows",
    "load",
    "pack",
    "quantise_rows",
    "read_walsh",
    "summary",
    "unpack",
    "write_walsh",
]
