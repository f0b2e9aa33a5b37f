"""The tour of public clients through a real gateway in front of the demo's engine."""
