"""Models of scikit-learn's behind the input encoder: fitted in one go, stored by skops."""
