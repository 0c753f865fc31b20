"""A bundle's folder as it is read: its manifest, what is checked before it is opened, its card and token list."""
