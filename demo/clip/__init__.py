"""One clip: transcribed by each system, compared, shown, downloaded."""
