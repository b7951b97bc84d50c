"""Selection: named heads, and the search that chooses among them."""
