"""Training data from what has none: pseudo-labels, long recordings cut into utterances, speech from text."""
