"""`python -m workbench`, which is what `accelerate launch -m workbench distill ...` runs."""

from workbench.cli.app import main

main()
