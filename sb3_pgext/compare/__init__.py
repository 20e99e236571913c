"""Studies: algorithms × environments × seeds, trained in parallel and compared."""
