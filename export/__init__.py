"""Export a student as one folder that every runtime loads, verify it there, and measure it.

Public: `export.bundle.export_bundle`, `export.verify.verify_bundle`, `export.measure.measure`, and `export.edge`, the
torch-free runtime that travels inside a bundle. Importing this package loads nothing heavy.
"""
