"""The sound index: a SQLite file over the results of any number of runs, queries of it, and a page of the answers."""
