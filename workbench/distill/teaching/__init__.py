"""Whom the student learns from: one or several teachers, an earlier self, or a teacher that hears what the student itself writes."""
