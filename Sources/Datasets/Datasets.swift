// Datasets.
