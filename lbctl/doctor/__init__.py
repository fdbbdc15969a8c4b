"""Finds what is wrong with a host: ``gather`` reads, ``checks`` judge, nothing is changed."""
