"""What happened: a record for each request, the journal of events, service levels, metrics."""
