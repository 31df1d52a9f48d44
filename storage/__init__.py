"""The trace: schema, writers, readers and the SQL door."""
