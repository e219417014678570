// Aggregation.
