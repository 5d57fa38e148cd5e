"""Recipes: from public or synthesised recordings to a table, one folder a corpus."""
