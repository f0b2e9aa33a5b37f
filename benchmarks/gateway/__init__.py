"""What the gateway costs: a mock engine, asked directly and through gateways."""
