"""`python -m mgi`: what the workflow's rules call, whatever environment they run in."""

from mgi.cli import main

main()
