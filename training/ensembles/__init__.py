"""Several fits of one model on rows drawn by what mistakes cost, or of which all rows get new labels: costing and MetaCost."""
