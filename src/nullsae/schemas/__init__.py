"""The columns of every table. Units stand in column names or in a field's `unit` metadata."""
