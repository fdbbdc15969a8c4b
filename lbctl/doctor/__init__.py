"""Finds what is wrong with a host: ``gather`` looks, ``checks`` judge, nothing is changed."""
