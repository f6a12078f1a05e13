"""File formats of other toolkits and of challenges."""
