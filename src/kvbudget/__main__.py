"""`python -m kvbudget` is `kvbudget`."""

from kvbudget.cli import main

main()
