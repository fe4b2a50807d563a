"""Model families: what a file says it is, its weights, and the one decoder over them."""
