"""How good samples are: features, distances with paired errors, comparisons at equal cost, and the search for settings."""
