"""A small world to learn and to be asked about: scenes of coloured shapes, digits, questions.

Below the demo, which trains on it, and below evaluation, which asks about it. Needs numpy, Pillow
and scikit-learn; neither torch nor a model.
"""
