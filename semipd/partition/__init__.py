"""Which lane holds how many units, and who decided so."""
