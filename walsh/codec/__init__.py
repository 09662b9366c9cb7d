"""Files of models: the ``.walsh`` container, its packings, and the published container."""

from walsh.codec.layout import Stored, WalshFile
from walsh.codec.packings import choose, pack, unpack
from walsh.codec.reader import load, read_walsh, summary
from walsh.codec.rows import four_bit_rows, quantise_rows
from walsh.codec.writer import dump, write_walsh

__all__ = [
    "Stored",
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
