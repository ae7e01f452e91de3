"""Who may ask for what: keys, peers, addresses, host names, rates, service classes."""
