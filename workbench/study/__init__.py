"""A study: arms x seeds x corpora with the same initial student, data order and step budget, and one table at the end."""
