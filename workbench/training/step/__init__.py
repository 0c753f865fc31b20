"""What one training step is made of: batches, micro-batch sizes, the student as a module, losses, metrics."""
