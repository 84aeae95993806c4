"""`python -m gptscale` is the `gptscale` command."""

from gptscale.cli.main import main

main()
