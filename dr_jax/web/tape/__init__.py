"""What the web answered, kept in one SQLite file that many processes share."""
