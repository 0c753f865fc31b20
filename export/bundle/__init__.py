"""Reading a bundle's folder: its manifest, what is checked before it is opened, its card and token list."""
