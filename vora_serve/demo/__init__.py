"""A small world that really learns: scenes, questions, and a model that trains within an hour."""
