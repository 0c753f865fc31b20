"""`python -m workbench`, which is what `accelerate launch -m workbench distill ...` runs."""

from workbench.cli import main

main()
