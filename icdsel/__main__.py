"""`python -m icdsel`."""

from icdsel.cli import main

main()
