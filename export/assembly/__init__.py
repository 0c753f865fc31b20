"""Making bundles: everything that a student's folder becomes, and the part of it that goes to a device."""
