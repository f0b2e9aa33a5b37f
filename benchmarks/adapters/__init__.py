"""What it costs to serve vision adapters beside their LLM instead of merged into it."""
