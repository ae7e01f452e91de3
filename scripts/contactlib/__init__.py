"""First contact with a GPU: the plan, its parts, and what is made of their results."""
