"""One way out to the web and its tape, served to many processes and hosts, and asked by them."""
