"""File formats of other toolkits of the field."""
