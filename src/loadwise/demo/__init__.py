"""`make demo`: a server, a day compressed into minutes, a failing member, a failing build, and a report."""
