"""Recipes: everything that decides a distillation run."""
