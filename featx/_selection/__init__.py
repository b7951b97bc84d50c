"""Selection: named heads, the search that chooses among them, and the ranking of networks."""
