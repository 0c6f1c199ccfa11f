"""Sentences: recipes, and the pure step from a recipe to a plan. Nothing here trains or writes."""
