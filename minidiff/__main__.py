"""``python -m minidiff`` is the command line."""

from .cli import main

main()
