"""The oracle teacher of a stage: trained before the stage begins, then asked for its targets."""
