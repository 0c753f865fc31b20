"""Export a student as one folder that every runtime loads, verify it there, and measure it.

Public: `export.assembly.build.export_bundle`, `export.verification.verify.verify_bundle`, `export.measurement.measure.measure`, and
`export.edge`, the
torch-free runtime that travels inside a bundle. Importing this package loads nothing heavy.
"""
