"""``python -m antibackdoor`` is the command, so that launchers can start it."""

from antibackdoor.cli import main

main()
