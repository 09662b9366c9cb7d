"""``python -m walsh`` is ``walsh``."""

from walsh.cli import main

if __name__ == "__main__":
    main()
