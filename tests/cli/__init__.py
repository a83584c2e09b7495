"""Tests of the command line. A package, because verbs share their names with files tested elsewhere."""
