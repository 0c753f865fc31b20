"""Languages by their names, and text made comparable for scoring."""
