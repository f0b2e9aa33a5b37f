"""How fast the wide world renders."""
