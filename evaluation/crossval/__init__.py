"""Cross-validation: which rows train and judge in each fold, and what the folds say together."""
