"""Whom the student learns from: one or several teachers, an earlier version of itself, or a teacher that scores the student's own transcripts."""
