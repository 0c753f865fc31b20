"""What is computed once and kept on disk: tensors by key, the teacher's targets, encoder states, the teacher's uncertainty."""
