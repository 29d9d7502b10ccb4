"""Which rows make up a batch where that is not left to chance: quotas of the classes."""
