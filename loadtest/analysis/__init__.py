"""From raw answers to measures, ratios with intervals, and what they should be on paper."""
